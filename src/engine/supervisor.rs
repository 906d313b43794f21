//! The front's half of an engine: one task that owns the routes from request to reader, and the life of the worker.
//!
//! It starts the worker, hands it requests, routes its events, cancels what nobody reads, watches for stalls, and starts
//! a dead worker again, with pauses when it does not get as far as a token. Nothing here waits for a reader: each
//! route's buffer covers all events that its request can have.

use super::connection::{Life, Outgoing, Over, can_write, finish, read_frames, write_frames};
use super::launch::Spawner;
use super::wire::{self, BUILD, FromWorker, RequestId, ToWorker};
use super::{EngineError, EngineOptions, EngineState, Event, Load, Work, WorkerConfig};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// Longest pause between two starts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// From this many deaths without a token on, requests are refused during the pause instead of waiting for it.
const HOPELESS_DEATHS: u32 = 3;
/// How often deadlines are looked at while there is no worker.
const EXPIRY_POLL: Duration = Duration::from_millis(250);
/// How often a request may be handed to a worker that dies before it answers.
const ATTEMPTS: u32 = 2;

/// What handles ask of the supervisor.
pub(super) enum Command {
    /// Serve a request, or answer a question.
    Submit {
        id: RequestId,
        work: Work,
        events: mpsc::Sender<Event>,
        at: Instant,
    },
    /// Nobody reads this request any more. The place is free when this has been read.
    Cancel {
        id: RequestId,
        place: OwnedSemaphorePermit,
    },
    /// End everything.
    Stop,
}

/// What an engine waits for before it starts its first worker: the word that there is room, with the settings that fit into it,
/// or why there is none.
pub(super) type Permit = oneshot::Receiver<Result<WorkerConfig, EngineError>>;

pub(super) fn start(
    options: EngineOptions,
    permit: Option<Permit>,
    commands: mpsc::Receiver<Command>,
) -> io::Result<(watch::Receiver<EngineState>, watch::Receiver<Load>)> {
    let spawner = Spawner::new(options.launch.clone())?;
    let first = EngineState::Loading {
        first: true,
        progress: 0.0,
        since: Instant::now(),
    };
    let (state, state_reader) = watch::channel(first);
    let (load, load_reader) = watch::channel(Load::default());
    let supervisor = Supervisor {
        options,
        spawner,
        commands,
        state,
        load,
        routes: BTreeMap::new(),
        loaded_once: false,
        barren_deaths: 0,
    };
    tokio::spawn(supervisor.run(permit));
    Ok((state_reader, load_reader))
}

/// A request that has not ended.
struct Route {
    work: Work,
    events: mpsc::Sender<Event>,
    /// When the client submitted it.
    at: Instant,
    /// When it was last handed to a worker.
    sent: Option<Instant>,
    attempts: u32,
    accepted: bool,
    started: Option<Instant>,
    /// Whether text went out: then it can't be served anew.
    spoke: bool,
}

struct Supervisor {
    options: EngineOptions,
    spawner: Spawner,
    commands: mpsc::Receiver<Command>,
    state: watch::Sender<EngineState>,
    load: watch::Sender<Load>,
    /// In order of arrival.
    routes: BTreeMap<RequestId, Route>,
    loaded_once: bool,
    /// Deaths since a token was last served.
    barren_deaths: u32,
}

impl Supervisor {
    async fn run(mut self, permit: Option<Permit>) {
        if let Some(permit) = permit
            && let Err(error) = self.wait_for(permit).await
        {
            self.refused(&error);
            return;
        }
        loop {
            let over = self.one_life().await;
            if matches!(over, Over::Stopped) {
                break;
            }
            let pause = self.bury(&over);
            if self.pause(pause, &over).await.is_break() {
                break;
            }
            self.load.send_modify(|load| load.restarts += 1);
            self.state.send_replace(EngineState::Loading {
                first: !self.loaded_once,
                progress: 0.0,
                since: Instant::now(),
            });
        }
        self.fail_all(&EngineError::ShuttingDown);
        self.state.send_replace(EngineState::Stopped);
    }

    /// Waits until there is room for the model. Requests may come, leave and be late meanwhile.
    async fn wait_for(&mut self, mut permit: Permit) -> Result<(), EngineError> {
        loop {
            tokio::select! {
                word = &mut permit => {
                    // Without anybody who could give the word, the program is ending.
                    self.options.config = word.unwrap_or(Err(EngineError::ShuttingDown))?;
                    return Ok(());
                }
                command = self.commands.recv() => if self.on_command(None, command).is_err() {
                    return Err(EngineError::ShuttingDown);
                },
                () = sleep(EXPIRY_POLL), if !self.routes.is_empty() => self.expire(),
            }
        }
    }

    /// Ends without ever having had a worker. Requests that are on their way still get the reason.
    fn refused(&mut self, error: &EngineError) {
        // First the reason: whoever finds the door closed looks for it.
        self.state.send_replace(EngineState::Failed {
            reason: error.to_string(),
        });
        self.commands.close();
        while let Ok(command) = self.commands.try_recv() {
            // Without a worker only routes change.
            let _ = self.on_command(None, Some(command));
        }
        self.fail_all(error);
    }

    /// Starts a worker and serves until it is gone.
    async fn one_life(&mut self) -> Over {
        let mut launched = match self.spawner.spawn().await {
            Ok(launched) => launched,
            Err(error) => return Over::Died(format!("the worker could not be started: {error}")),
        };
        let connected = launched.stream.try_clone().and_then(|stream| {
            stream.set_nonblocking(true)?;
            tokio::net::UnixStream::from_std(stream)
        });
        let (read, write) = match connected {
            Ok(stream) => stream.into_split(),
            Err(error) => return Over::Died(format!("no connection to the worker: {error}")),
        };
        tracing::debug!(worker = launched.pid, "worker started");
        self.load.send_modify(|load| load.pid = launched.pid);
        // A slow reader of frames is nobody's but ours; a step's frame is small.
        let (frames_in, frames) = mpsc::channel(64);
        // What waits to be written waits in `Life::waiting`, where a cancel can still take it back.
        let (outgoing, frames_out) = mpsc::channel(1);
        let reader = tokio::spawn(read_frames(read, frames_in));
        let writer = tokio::spawn(write_frames(write, frames_out));
        let mut life = Life::new(&self.options, launched.pid, outgoing, frames);
        let over = self.serve(&mut life).await;
        drop(life);
        let over = finish(over, &mut launched).await;
        reader.abort();
        writer.abort();
        self.load.send_modify(|load| {
            load.pid = None;
            let last = std::mem::take(&mut load.worker);
            load.before.add_counters(&last);
        });
        over
    }

    async fn serve(&mut self, life: &mut Life) -> Over {
        let load = ToWorker::Load {
            build: BUILD.into(),
            config: self.options.config.clone(),
        };
        match wire::encode(&load) {
            Ok(frame) => life.write(frame),
            Err(error) => {
                return Over::Died(format!("the worker can't be told what to load: {error}"));
            }
        }
        loop {
            // An idle engine must not wake the processor ten times a stall limit.
            let busy = !life.ready || self.routes.values().any(|route| route.sent.is_some());
            let step = tokio::select! {
                frame = life.frames.recv() => self.on_frame(life, frame),
                command = self.commands.recv() => self.on_command(Some(life), command),
                due = life.ticks.tick(), if busy => {
                    self.expire();
                    life.tick(due)
                }
                () = can_write(&life.outgoing), if !life.waiting.is_empty() => {
                    self.write_next(life);
                    Ok(())
                }
            };
            if let Err(over) = step {
                return over;
            }
        }
    }

    fn on_frame(
        &mut self,
        life: &mut Life,
        frame: Option<io::Result<FromWorker>>,
    ) -> Result<(), Over> {
        life.silent_ticks = 0;
        match frame {
            None => Err(Over::Died(String::new())),
            Some(Err(error)) => Err(Over::Died(format!("it sent a broken frame: {error}"))),
            Some(Ok(FromWorker::Hello { build })) if build == BUILD => {
                life.greeted = true;
                Ok(())
            }
            Some(Ok(FromWorker::Hello { build })) => Err(Over::Died(format!(
                "it is another build ({build}, this is {BUILD})"
            ))),
            Some(Ok(_)) if !life.greeted => Err(Over::Died("it did not greet first".into())),
            Some(Ok(FromWorker::Loading { progress })) => {
                self.state.send_modify(|state| {
                    if let EngineState::Loading { progress: now, .. } = state {
                        *now = progress;
                    }
                });
                Ok(())
            }
            Some(Ok(FromWorker::LoadFailed { reason })) => Err(Over::LoadFailed(reason)),
            Some(Ok(FromWorker::Loaded(info))) => {
                life.ready = true;
                self.loaded_once = true;
                tracing::info!(worker = ?self.load.borrow().pid, load_ms = info.load_ms.round(), "model loaded");
                self.state.send_replace(EngineState::Ready(Arc::new(*info)));
                life.waiting
                    .extend(self.routes.keys().copied().map(Outgoing::Submit));
                Ok(())
            }
            Some(Ok(FromWorker::Step { events, stats })) => {
                self.load.send_modify(|load| load.worker = stats);
                for (id, event) in events {
                    self.on_event(id, event);
                }
                Ok(())
            }
        }
    }

    /// Passes an event on to its reader.
    fn on_event(&mut self, id: RequestId, mut event: Event) {
        // A late event of a request that was cancelled has no route any more.
        let Some(route) = self.routes.get_mut(&id) else {
            return;
        };
        let now = Instant::now();
        match &mut event {
            Event::Accepted { .. } if std::mem::replace(&mut route.accepted, true) => return,
            Event::Started { .. } if route.started.replace(now).is_some() => return,
            Event::Text { .. } | Event::ToolCall { .. } => {
                route.spoke = true;
                self.barren_deaths = 0;
            }
            Event::Finished(outcome) => {
                self.barren_deaths = 0;
                // The worker counts from its own side; what the request waited for it comes on top.
                let before = route.sent.map_or(0.0, |sent| millis(sent - route.at));
                outcome.usage.queue_ms += before;
                outcome.usage.ttft_ms += before;
                if let Some(started) = route.started {
                    let seconds = (now - started).as_secs_f64();
                    self.load.send_modify(|load| load.answered(seconds));
                }
            }
            _ => {}
        }
        let last = event.is_last();
        if let Err(mpsc::error::TrySendError::Full(_)) = route.events.try_send(event) {
            tracing::error!(
                request = id,
                "an event buffer was too small; the request is lost"
            );
        }
        // A closed one was cancelled; that message is on its way.
        if last {
            self.routes.remove(&id);
        }
    }

    fn on_command(
        &mut self,
        life: Option<&mut Life>,
        command: Option<Command>,
    ) -> Result<(), Over> {
        match command {
            // Without handles nobody can ask or listen.
            None | Some(Command::Stop) => Err(Over::Stopped),
            Some(Command::Submit {
                id,
                work,
                events,
                at,
            }) => {
                let route = Route {
                    work,
                    events,
                    at,
                    sent: None,
                    attempts: 0,
                    accepted: false,
                    started: None,
                    spoke: false,
                };
                self.routes.insert(id, route);
                if let Some(life) = life.filter(|life| life.ready) {
                    life.waiting.push_back(Outgoing::Submit(id));
                }
                Ok(())
            }
            Some(Command::Cancel { id, place }) => {
                let sent = self
                    .routes
                    .remove(&id)
                    .is_some_and(|route| route.sent.is_some());
                match life {
                    Some(life) if sent => life.waiting.push_back(Outgoing::Cancel { id, place }),
                    Some(life) => life.waiting.retain(|waiting| !waiting.is_submit_of(id)),
                    None => {}
                }
                Ok(())
            }
        }
    }

    /// Hands what waits longest to the writer. A request that was cancelled before that is never written; the place of one
    /// that was cancelled later is free when the worker is being told. So what waits is never more than there are places.
    fn write_next(&mut self, life: &mut Life) {
        let Some(next) = life.waiting.pop_front() else {
            return;
        };
        let (frame, _place) = match next {
            Outgoing::Submit(id) => (self.hand_over(life, id), None),
            Outgoing::Cancel { id, place } => {
                (wire::encode(&ToWorker::Cancel { id }).ok(), Some(place))
            }
        };
        if let Some(frame) = frame {
            life.write(frame);
        }
    }

    /// A route's request as a frame, noted as sent.
    fn hand_over(&mut self, life: &mut Life, id: RequestId) -> Option<Vec<u8>> {
        let route = self.routes.get(&id)?;
        let mut work = route.work.clone();
        if let Some(deadline) = work.deadline_ms_mut() {
            let gone = u64::try_from(route.at.elapsed().as_millis()).unwrap_or(u64::MAX);
            *deadline = deadline.saturating_sub(gone);
        }
        if self.routes.values().all(|route| route.sent.is_none()) {
            life.silent_ticks = 0;
        }
        match wire::encode(&ToWorker::Submit { id, work }) {
            Ok(frame) => {
                let route = self.routes.get_mut(&id)?;
                route.sent = Some(Instant::now());
                route.attempts += 1;
                Some(frame)
            }
            Err(error) => {
                let failed = EngineError::BadRequest(format!("the request is too large: {error}"));
                self.on_event(id, Event::Failed(failed));
                None
            }
        }
    }

    /// Ends or keeps the routes of a worker that is gone, and says how long to pause.
    fn bury(&mut self, over: &Over) -> Duration {
        self.barren_deaths += 1;
        let pause =
            self.options.restart_pause * 2u32.pow(self.barren_deaths.saturating_sub(2).min(10));
        let mut pause = pause.min(LONGEST_PAUSE);
        match over {
            Over::Stopped => {}
            Over::LoadFailed(reason) => {
                // The first time it is the program's last word, and main says it.
                if self.loaded_once {
                    tracing::error!(reason, "the model can't be loaded");
                }
                self.fail_all(&EngineError::NotReady(reason.clone()));
                self.state.send_replace(EngineState::Failed {
                    reason: reason.clone(),
                });
            }
            Over::Died(reason) | Over::Killed(reason) => {
                if self.loaded_once {
                    tracing::error!(reason, in_flight = self.routes.len(), "the worker died");
                }
                if self.barren_deaths == 1 && self.loaded_once {
                    pause = Duration::ZERO;
                }
                self.end_routes(reason, matches!(over, Over::Died(_)));
                self.state.send_replace(EngineState::Restarting {
                    reason: reason.clone(),
                });
            }
        }
        pause
    }

    /// Requests that have said nothing yet are kept for the next worker; the others get their terminal error, and so does one
    /// that has had its attempts. A worker that was killed from outside is no attempt.
    fn end_routes(&mut self, reason: &str, to_blame: bool) {
        let ended = self.routes.extract_if(.., |_, route| {
            if route.sent.take().is_some() && !to_blame {
                route.attempts -= 1;
            }
            route.spoke || route.attempts >= ATTEMPTS
        });
        for (_, route) in ended {
            let died = Event::Failed(EngineError::EngineDied(reason.to_owned()));
            // A reader that has left needs no error.
            let _ = route.events.try_send(died);
        }
    }

    async fn pause(&mut self, pause: Duration, over: &Over) -> std::ops::ControlFlow<()> {
        let until = Instant::now() + pause;
        let failed = matches!(over, Over::LoadFailed(_));
        let (Over::Died(reason) | Over::Killed(reason) | Over::LoadFailed(reason)) = over else {
            return std::ops::ControlFlow::Break(());
        };
        loop {
            if failed || self.barren_deaths >= HOPELESS_DEATHS {
                let seconds = (until - Instant::now()).as_secs_f64().ceil();
                self.fail_all(&EngineError::NotReady(format!(
                    "the model is not available ({reason}); it is tried again in {seconds} s"
                )));
            }
            self.expire();
            if Instant::now() >= until {
                return std::ops::ControlFlow::Continue(());
            }
            tokio::select! {
                () = sleep_until(until.min(Instant::now() + EXPIRY_POLL)) => {}
                command = self.commands.recv() => if self.on_command(None, command).is_err() {
                    return std::ops::ControlFlow::Break(());
                },
            }
        }
    }

    /// Ends requests whose deadline passed before a worker had them; the others' are the worker's to keep.
    fn expire(&mut self) {
        let late = self.routes.extract_if(.., |_, route| {
            let deadline = route.work.deadline_ms().map(Duration::from_millis);
            route.sent.is_none() && deadline.is_some_and(|deadline| route.at.elapsed() >= deadline)
        });
        for (_, route) in late {
            // A reader that has left needs no error.
            let _ = route
                .events
                .try_send(Event::Failed(EngineError::DeadlineExceeded));
        }
    }

    fn fail_all(&mut self, error: &EngineError) {
        for (_, route) in std::mem::take(&mut self.routes) {
            // A reader that has left needs no error.
            let _ = route.events.try_send(Event::Failed(error.clone()));
        }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
