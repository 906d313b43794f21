//! The front's half of an engine: one task that owns the routes from request to reader, and the life of the worker.
//!
//! It starts the worker, hands it requests, routes its events, cancels what nobody reads, watches for stalls, and starts
//! a dead worker again, with pauses when it does not get as far as a token. Nothing here waits for a reader: each
//! route's buffer covers all events that its request can have.

mod burial;
mod gate;

use super::connection::{
    EXPIRY_POLL, Life, Outgoing, Over, can_write, finish, read_frames, write_frames,
};
use super::launch::Spawner;
use super::quarantine::{Fingerprint, Quarantine};
use super::wire::{self, BUILD, FromWorker, RequestId, ToWorker};
use super::{EngineError, EngineOptions, EngineState, Event, Load, Work, WorkerConfig};
use crate::models::Identity;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

/// From this many deaths without a token on, requests are refused during the pause instead of waiting for it.
const HOPELESS_DEATHS: u32 = 3;

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
        quarantine: Quarantine::default(),
        loaded_once: false,
        loaded_file: None,
        left_behind: false,
        barren_deaths: 0,
        excused: 0,
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
    /// How far the worker that has it is with it.
    stage: Stage,
    accepted: bool,
    started: Option<Instant>,
    /// Whether text went out: then it can't be served anew.
    spoke: bool,
    /// How many bytes of it.
    said: usize,
    /// What it is to the quarantine; known of all routes while that is not empty.
    fingerprint: Option<Fingerprint>,
}

/// How far a worker is with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It is on its way, or being tokenised; or it is a question.
    Prepares,
    /// It waits for a sequence: nothing is computed for it.
    Waits,
    /// It has rows in the worker's steps.
    Runs,
}

struct Supervisor {
    options: EngineOptions,
    spawner: Spawner,
    commands: mpsc::Receiver<Command>,
    state: watch::Sender<EngineState>,
    load: watch::Sender<Load>,
    /// In order of arrival.
    routes: BTreeMap<RequestId, Route>,
    quarantine: Quarantine,
    loaded_once: bool,
    /// The file that was last loaded.
    loaded_file: Option<Identity>,
    /// Whether a request that was cancelled may have been in the last worker's last step.
    left_behind: bool,
    /// Deaths since a token was last served.
    barren_deaths: u32,
    /// Requests refused since then whose deaths were not counted.
    excused: u32,
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
        self.left_behind = life.is_leaving();
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
            config: Box::new(self.options.config.clone()),
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
            let next = self.next(life);
            let step = tokio::select! {
                frame = life.frames.recv() => self.on_frame(life, frame),
                command = self.commands.recv() => self.on_command(Some(life), command),
                due = life.ticks.tick(), if busy => {
                    self.expire();
                    life.tick(due)
                }
                () = can_write(&life.outgoing), if next.is_some() => {
                    if let Some(next) = next.and_then(|next| life.waiting.remove(next)) {
                        self.write(life, next);
                    }
                    Ok(())
                }
                // Deadlines go on for who waits while somebody runs alone, or until somebody can.
                _ = life.looks.tick(), if next.is_none() && !life.waiting.is_empty() => {
                    self.expire();
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
            Some(Ok(FromWorker::Loaded(_))) if life.ready => {
                Err(Over::Died("it loaded a second time".into()))
            }
            Some(Ok(FromWorker::Loaded(info))) => {
                life.ready = true;
                self.loaded_once = true;
                self.loaded_file = Identity::of(&self.options.config.model);
                tracing::info!(worker = ?self.load.borrow().pid, load_ms = info.load_ms.round(), "model loaded");
                self.state.send_replace(EngineState::Ready(Arc::new(*info)));
                life.waiting
                    .extend(self.routes.keys().copied().map(Outgoing::Submit));
                Ok(())
            }
            Some(Ok(FromWorker::Step { events, stats })) => {
                life.heard(&stats);
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
        match &event {
            Event::Accepted { .. } => route.stage = Stage::Waits,
            Event::Started { .. } => route.stage = Stage::Runs,
            _ => {}
        }
        match &mut event {
            Event::Accepted { .. } if std::mem::replace(&mut route.accepted, true) => return,
            Event::Started { .. } if route.started.replace(now).is_some() => return,
            Event::Text { text, .. }
            | Event::ToolCall {
                arguments: text, ..
            } => {
                route.spoke = true;
                route.said += text.len();
                if let Some(fingerprint) = &route.fingerprint {
                    self.quarantine.says(fingerprint, route.said);
                }
                (self.barren_deaths, self.excused) = (0, 0);
            }
            Event::Finished(outcome) => {
                (self.barren_deaths, self.excused) = (0, 0);
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
        if matches!(event, Event::Finished(_) | Event::Answered(_))
            && let Some(fingerprint) = &route.fingerprint
        {
            // Suspects run alone, so this one did.
            self.quarantine.clear(fingerprint);
        }
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
                let known = !self.quarantine.is_empty();
                let fingerprint = known.then(|| self.quarantine.fingerprint(&work));
                if let Some(fingerprint) = &fingerprint
                    && let Some(refusal) = self.quarantine.refusal(fingerprint)
                {
                    tracing::warn!(%fingerprint, "a request that crashes the worker was refused");
                    // A reader that has left needs no error.
                    let _ = events.try_send(Event::Failed(refusal));
                    return Ok(());
                }
                let route = Route {
                    work,
                    events,
                    at,
                    sent: None,
                    attempts: 0,
                    stage: Stage::Prepares,
                    accepted: false,
                    started: None,
                    spoke: false,
                    said: 0,
                    fingerprint,
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
                    Some(life) => life
                        .waiting
                        .retain(|waiting| waiting.submitted() != Some(id)),
                    None => {}
                }
                Ok(())
            }
        }
    }

    async fn pause(&mut self, pause: Duration, over: &Over) -> std::ops::ControlFlow<()> {
        let until = Instant::now() + pause;
        let failed = matches!(over, Over::LoadFailed(_));
        let (Over::Died(reason)
        | Over::Crashed { reason, .. }
        | Over::Killed(reason)
        | Over::LoadFailed(reason)) = over
        else {
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
