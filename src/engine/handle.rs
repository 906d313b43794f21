//! The handle on an engine that the rest of the program holds: submit a request, read its events, drop to cancel.

use super::places::{Between, Flow, Queued, Share, Shares, refusal, rows};
use super::supervisor::{self, Command};
use super::{
    Answer, DEFAULT_CONTEXT_PER_SEQUENCE, EngineError, Event, Launch, ModelInfo, Question, Request,
    Work, WorkerConfig, WorkerStats,
};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// What the worker loads, and how.
    pub config: WorkerConfig,
    /// How the worker is started.
    pub launch: Launch,
    /// A worker with work that says nothing for this long is killed and started again.
    pub stall: Duration,
    /// The same while loading, where a large file on slow storage may well be silent for a while.
    pub load_stall: Duration,
    /// The pause after a second death without a served token; it doubles up to 30 s. After the first there is none, unless the
    /// model was never loaded.
    pub restart_pause: Duration,
}

/// Where an engine stands.
#[derive(Clone, Debug)]
pub enum EngineState {
    /// The worker reads the model.
    Loading {
        /// Whether it has never been loaded before.
        first: bool,
        /// Fraction done, 0 to 1.
        progress: f32,
        /// Since when.
        since: Instant,
    },
    /// Requests are answered.
    Ready(Arc<ModelInfo>),
    /// The worker died and is started again after a pause.
    Restarting {
        /// How it died.
        reason: String,
    },
    /// The model can't be loaded; it is tried again after a pause.
    Failed {
        /// Why, in one sentence.
        reason: String,
    },
    /// Shut down.
    Stopped,
}

/// An engine's load and history, for metrics and `/status`.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// The worker's own numbers. Counters start anew with each worker.
    pub worker: WorkerStats,
    /// Times that a worker was started after the first.
    pub restarts: u64,
    /// The worker process, if there is one.
    pub pid: Option<u32>,
    /// Mean seconds that late requests ran, 0 before the first.
    pub request_seconds: f64,
    /// Requests that were answered, with all workers.
    pub served: u64,
    /// What workers that are gone had counted; add it to `worker` for totals.
    pub before: WorkerStats,
}

impl Load {
    /// Counts an answer that took so many seconds from its start to its end.
    pub(super) fn answered(&mut self, seconds: f64) {
        self.request_seconds = if self.served == 0 {
            seconds
        } else {
            0.9 * self.request_seconds + 0.1 * seconds
        };
        self.served += 1;
    }
}

/// A running engine. Clones are handles on the same one.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

struct Shared {
    commands: mpsc::Sender<Command>,
    places: Arc<Semaphore>,
    total_places: u32,
    shares: Arc<Shares>,
    parallel: u32,
    /// Tokens that a sequence has room for at most.
    share: u32,
    event_capacity: usize,
    next_id: AtomicU64,
    stopping: AtomicBool,
    state: watch::Receiver<EngineState>,
    load: watch::Receiver<Load>,
}

impl EngineHandle {
    /// Starts an engine; must be called inside a tokio runtime. The model loads in the background.
    pub fn start(options: EngineOptions) -> io::Result<Self> {
        Self::start_with(options, None)
    }

    /// Starts an engine that takes requests at once and starts its worker when it gets the word: the settings that the model
    /// is to be loaded with, of no more sequences and no more cells than `options` has. With an error instead, requests fail
    /// with it and the engine is over ([`EngineState::Failed`]).
    pub fn start_when(
        options: EngineOptions,
        word: oneshot::Receiver<Result<WorkerConfig, EngineError>>,
    ) -> io::Result<Self> {
        Self::start_with(options, Some(word))
    }

    fn start_with(
        options: EngineOptions,
        word: Option<oneshot::Receiver<Result<WorkerConfig, EngineError>>>,
    ) -> io::Result<Self> {
        let places = options.config.places;
        let parallel = options.config.parallel;
        // A sequence's share is padded by llama.cpp to 256 cells; every token makes two events at most (the end of reasoning or
        // of an argument and what comes after it), and a few are around it.
        let share = match options.config.ctx_size {
            Some(cells) => cells / parallel.max(1) + 256,
            None => DEFAULT_CONTEXT_PER_SEQUENCE,
        };
        // Each place can have one Submit and one Cancel under way, and there is one Stop.
        let (commands, inbox) = mpsc::channel(2 * places as usize + 1);
        let (state, load) = supervisor::start(options, word, inbox)?;
        Ok(Self {
            shared: Arc::new(Shared {
                commands,
                places: Arc::new(Semaphore::new(places as usize)),
                total_places: places,
                shares: Arc::default(),
                parallel,
                share,
                event_capacity: 2 * share as usize + 16,
                next_id: AtomicU64::new(1),
                stopping: AtomicBool::new(false),
                state,
                load,
            }),
        })
    }

    /// Takes a place for the request, or says at once why there is none.
    pub fn submit(&self, request: Request) -> Result<Generation, EngineError> {
        self.generate(request, Between::Ourselves)
    }

    /// The same for one of many clients: none of them gets so many places that nothing is left for others.
    pub fn submit_fairly(&self, request: Request) -> Result<Generation, EngineError> {
        self.generate(request, Between::Strangers)
    }

    fn generate(&self, request: Request, between: Between) -> Result<Generation, EngineError> {
        let client = request.client.clone();
        self.hand_in(&client, Work::Generate(Box::new(request)), between)
    }

    /// Asks the model something that needs no sampling. It takes a place as a request does.
    pub async fn ask(&self, question: Question) -> Result<Answer, EngineError> {
        self.put("", question, Between::Ourselves).await
    }

    /// The same for one of many clients, as in [`EngineHandle::submit_fairly`].
    pub async fn ask_fairly(
        &self,
        client: &str,
        question: Question,
    ) -> Result<Answer, EngineError> {
        self.put(client, question, Between::Strangers).await
    }

    async fn put(
        &self,
        client: &str,
        question: Question,
        between: Between,
    ) -> Result<Answer, EngineError> {
        let mut asked = self.hand_in(client, Work::Ask(Box::new(question)), between)?;
        loop {
            match asked.next().await {
                Some(Event::Answered(answer)) => return Ok(answer),
                Some(Event::Failed(error)) => return Err(error),
                Some(Event::Finished(_)) | None => {
                    return Err(EngineError::Internal("a question had no answer".into()));
                }
                Some(_) => {}
            }
        }
    }

    fn hand_in(
        &self,
        client: &str,
        work: Work,
        between: Between,
    ) -> Result<Generation, EngineError> {
        let shared = &self.shared;
        if shared.stopping.load(Ordering::Acquire) {
            return Err(EngineError::ShuttingDown);
        }
        let taken = shared.shares.take(
            client,
            rows(&work, shared.share),
            |own| between.allows(own, self.free(), self.sequences()),
            || Arc::clone(&shared.places).try_acquire_owned().ok(),
        );
        let (share, place) = taken.map_err(|refused| {
            let clients = shared.shares.clients();
            refusal(refused, shared.total_places, self.flow(), clients)
        })?;
        let (sender, events) = mpsc::channel(shared.event_capacity);
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let at = Instant::now();
        let deadline = work.deadline_ms().map(Duration::from_millis);
        let command = Command::Submit {
            id,
            work,
            events: sender,
            at,
        };
        shared.commands.try_send(command).map_err(|_| self.over())?;
        Ok(Generation {
            id,
            events,
            engine: self.clone(),
            deadline: deadline.map(|deadline| at + deadline),
            held: Some((place, share)),
        })
    }

    /// Why an engine that is over takes no request.
    fn over(&self) -> EngineError {
        match self.state() {
            EngineState::Failed { reason } => EngineError::NotReady(reason),
            _ => EngineError::ShuttingDown,
        }
    }

    /// How fast requests go through now.
    fn flow(&self) -> Flow {
        let mean_rows = self.shared.shares.mean_rows();
        Flow::new(&self.shared.load.borrow(), self.sequences(), mean_rows)
    }

    /// Sequences of the model; before it is loaded, those that were asked for.
    fn sequences(&self) -> u32 {
        match &*self.shared.state.borrow() {
            EngineState::Ready(info) if info.sequences > 0 => info.sequences,
            _ => self.shared.parallel,
        }
    }

    /// Where a request stands of which the worker says that so many are ahead ([`Event::Accepted`]).
    pub fn queued(&self, position: u32) -> Queued {
        let wait = if self.is_full() {
            self.flow().wait(position)
        } else {
            Some(Duration::ZERO)
        };
        Queued { position, wait }
    }

    /// Whether every sequence is taken and somebody waits for one, as the worker said last.
    fn is_full(&self) -> bool {
        let load = self.shared.load.borrow();
        load.worker.running >= self.sequences() && load.worker.queued > 0
    }

    /// Where the engine stands now.
    pub fn state(&self) -> EngineState {
        self.shared.state.borrow().clone()
    }

    /// Waits until the engine answers or has failed to load, and says which.
    pub async fn loaded(&self) -> EngineState {
        let mut state = self.shared.state.clone();
        let settled = state
            .wait_for(|state| !matches!(state, EngineState::Loading { .. }))
            .await
            .map(|state| state.clone());
        settled.unwrap_or(EngineState::Stopped)
    }

    /// Load and history.
    pub fn load(&self) -> Load {
        self.shared.load.borrow().clone()
    }

    /// Requests that run or wait (in the front or in the worker).
    pub fn in_flight(&self) -> u32 {
        self.shared.total_places.saturating_sub(self.free())
    }

    fn free(&self) -> u32 {
        u32::try_from(self.shared.places.available_permits()).unwrap_or(u32::MAX)
    }

    /// Requests that may run or wait at once.
    pub fn places(&self) -> u32 {
        self.shared.total_places
    }

    /// Refuses new requests from now on.
    pub fn close(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// Refuses new requests, ends those that are left with [`EngineError::ShuttingDown`], and ends the worker.
    pub async fn shutdown(&self) {
        self.close();
        if self.shared.commands.send(Command::Stop).await.is_ok() {
            let mut state = self.shared.state.clone();
            // An error means that the supervisor is gone already.
            let _ = state
                .wait_for(|state| matches!(state, EngineState::Stopped))
                .await;
        }
    }
}

/// The events of one request. Dropping it before the end cancels the request, wherever it is.
pub struct Generation {
    id: super::wire::RequestId,
    events: mpsc::Receiver<Event>,
    engine: EngineHandle,
    deadline: Option<Instant>,
    /// Until the last event.
    held: Option<(OwnedSemaphorePermit, Share)>,
}

impl Generation {
    /// The next event; `None` after the terminal one.
    pub async fn next(&mut self) -> Option<Event> {
        self.held.as_ref()?;
        // The supervisor ends the routes that it has; a request without an event came as it went.
        let gone = Event::Failed(EngineError::ShuttingDown);
        let event = self.events.recv().await.unwrap_or(gone);
        Some(self.seen(event))
    }

    /// The next event if it is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.held.as_ref()?;
        let event = self.events.try_recv().ok()?;
        Some(self.seen(event))
    }

    fn seen(&mut self, event: Event) -> Event {
        if let Event::Accepted { position, .. } = event
            && let Some(error) = self.hopeless(position)
        {
            self.cancel();
            return Event::Failed(error);
        }
        if event.is_last() {
            self.held = None;
        }
        event
    }

    /// Whether the request would only wait for its deadline, and so takes others' time for nothing.
    fn hopeless(&self, position: u32) -> Option<EngineError> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        let wait = self.engine.queued(position).wait?;
        let is_hopeless = self.engine.flow().is_hopeless(wait, left);
        is_hopeless.then(|| EngineError::DeadlineUnreachable {
            wait_seconds: u32::try_from(wait.as_secs().max(1)).unwrap_or(u32::MAX),
        })
    }

    fn cancel(&mut self) {
        if let Some((place, _share)) = self.held.take() {
            // The place travels with the message and is free when the cancel has been read. So messages never
            // outnumber places twice, and there is always room; an error means that the supervisor is gone.
            let cancel = Command::Cancel { id: self.id, place };
            let _ = self.engine.shared.commands.try_send(cancel);
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel();
    }
}
