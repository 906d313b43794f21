//! The thread that compiles formats: neither plain requests nor running answers wait for it.
//!
//! It begins with the first request that has a format, and reads the vocabulary then; a server that is never asked for one pays
//! nothing. A hostile format costs the engine's bounded work here, and delays requests with formats only: those of other clients by one
//! format each, because clients take turns.

use super::{Constraints, Form, Plan};
use crate::device::memory::Free;
use crate::engine::{EngineError, Event};
use crate::worker::decoder::Vocab;
use crate::worker::run::Inbound;
use crate::worker::scheduler::FairQueue;
use crate::worker::sequence::Arrival;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// The engine follows nested schemas and chains of references on its stack. Only what is used takes memory.
const STACK_BYTES: usize = 64 << 20;

/// A request that waits for its constraint.
pub struct Job {
    /// The request.
    pub arrival: Box<Arrival>,
    /// What it is to be held to.
    pub form: Form,
    /// Where.
    pub plan: Plan,
}

/// Hands requests to the thread.
pub struct Compiler {
    vocab: Arc<dyn Vocab>,
    to_engine: SyncSender<Inbound>,
    places: usize,
    /// The lock is held while the thread is started, by the first request.
    jobs: Mutex<Option<SyncSender<Job>>>,
}

impl Compiler {
    /// A compiler whose thread sends what is ready to the loop; at most `places` requests wait for it.
    pub fn new(vocab: Arc<dyn Vocab>, to_engine: SyncSender<Inbound>, places: usize) -> Self {
        Self {
            vocab,
            to_engine,
            places: places.max(1),
            jobs: Mutex::new(None),
        }
    }

    /// Takes a request over: it reaches the loop with its constraint, or its failure does.
    pub fn submit(&self, job: Job) -> Result<(), EngineError> {
        // Never waits: whoever has no format must get past.
        self.thread()?.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => EngineError::Overloaded {
                places: u32::try_from(self.places).unwrap_or(u32::MAX),
                retry_after_seconds: 1,
            },
            TrySendError::Disconnected(_) => {
                EngineError::Internal("the compiler of formats has ended".into())
            }
        })
    }

    fn thread(&self) -> Result<SyncSender<Job>, EngineError> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = &*jobs {
            return Ok(jobs.clone());
        }
        let (sender, inbox) = sync_channel(self.places);
        let (vocab, engine) = (Arc::clone(&self.vocab), self.to_engine.clone());
        let places = self.places;
        let thread = thread::Builder::new()
            .name("formats".into())
            .stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || work(&*vocab, &inbox, places, &engine));
        spawned.map_err(|error| EngineError::Internal(format!("no thread: {error}")))?;
        Ok(jobs.insert(sender).clone())
    }
}

fn work(vocab: &dyn Vocab, jobs: &Receiver<Job>, places: usize, engine: &SyncSender<Inbound>) {
    let mut constraints = None;
    let mut waiting = FairQueue::default();
    while receive(jobs, &mut waiting, places) {
        // Nobody is served before those who left or are late have gone: no work is spent on them.
        let now = Instant::now();
        let gone = |job: &Job| job.arrival.is_cancelled() || job.arrival.is_late(now);
        for Job { arrival, .. } in waiting.remove(gone) {
            let late = Event::Failed(EngineError::DeadlineExceeded);
            if !arrival.is_cancelled() && engine.send(Inbound::Done(arrival.id, late)).is_err() {
                return;
            }
        }
        let Some(job) = waiting.pop() else { continue };
        let id = job.arrival.id;
        let inbound = constrained(&mut constraints, vocab, job)
            .unwrap_or_else(|error| Inbound::Done(id, Event::Failed(error)));
        if engine.send(inbound).is_err() {
            return;
        }
    }
}

/// Takes in what has come, `places` at most, and waits if there is nothing. `false` is the end.
fn receive(jobs: &Receiver<Job>, waiting: &mut FairQueue<Job>, places: usize) -> bool {
    let first = if waiting.is_empty() {
        let Ok(first) = jobs.recv() else { return false };
        Some(first)
    } else {
        None
    };
    let room = places.saturating_sub(waiting.len());
    for job in first.into_iter().chain(jobs.try_iter()).take(room) {
        let client = job.arrival.client.clone();
        waiting.push(&client, job.arrival.id, job);
    }
    true
}

fn constrained(
    constraints: &mut Option<Arc<Constraints>>,
    vocab: &dyn Vocab,
    job: Job,
) -> Result<Inbound, EngineError> {
    let constraints = match constraints {
        Some(constraints) => constraints,
        None => constraints.insert(Arc::new(read(vocab)?)),
    };
    let Job {
        mut arrival,
        form,
        plan,
    } = job;
    let constraint = constraints.compile_form(&form, &plan);
    arrival.constraint = Some(constraint.map_err(EngineError::BadRequest)?);
    Ok(Inbound::Arrival(arrival))
}

/// Reads the vocabulary, if there is memory for that.
fn read(vocab: &dyn Vocab) -> Result<Constraints, EngineError> {
    let needs = Constraints::needs(vocab);
    if let Some(free) = Free::here().filter(|free| free.bytes < needs) {
        return Err(EngineError::NotReady(format!(
            "answers in a format need {} MiB more memory, but {} MiB are free: give this server more",
            needs.div_ceil(1 << 20),
            free.bytes >> 20
        )));
    }
    Constraints::new(vocab).map_err(EngineError::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Format, Sampling, Token};
    use crate::worker::constraint::tests::Words;
    use crate::worker::sampling::Sampler;
    use crate::worker::text::{TextStream, Think};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    fn job(id: u64, client: &str, deadline: Option<Instant>) -> (Job, Arc<AtomicBool>) {
        let prompt = vec![Token(1)];
        let cancelled = Arc::new(AtomicBool::new(false));
        let arrival = Arrival {
            id,
            client: client.into(),
            max_tokens: 1,
            sampler: Sampler::new(&Sampling::GREEDY, &prompt),
            constraint: None,
            text: TextStream::new(&[], Think::Off),
            calls: None,
            likelihoods: None,
            prompt,
            echo: None,
            ignore_eos: false,
            reuse: true,
            arrived: Instant::now(),
            deadline,
            cancelled: Arc::clone(&cancelled),
        };
        let job = Job {
            arrival: Box::new(arrival),
            form: Form::Asked(Format::JsonObject),
            plan: Plan::WHOLE,
        };
        (job, cancelled)
    }

    /// All that comes out when these jobs wait and no more come.
    fn compiled(jobs: Vec<Job>, places: usize) -> Vec<(u64, bool)> {
        let (sender, inbox) = sync_channel(64);
        for job in jobs {
            sender.try_send(job).ok().unwrap();
        }
        drop(sender);
        let (engine, out) = sync_channel(64);
        work(&Words::new(&[]), &inbox, places, &engine);
        drop(engine);
        let told = out.into_iter().map(|inbound| match inbound {
            Inbound::Arrival(arrival) => (arrival.id, arrival.constraint.is_some()),
            Inbound::Done(id, Event::Failed(EngineError::DeadlineExceeded)) => (id, false),
            _ => panic!("it is neither ready nor late"),
        });
        told.collect()
    }

    #[test]
    fn clients_take_turns() {
        let asked = [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "b"), (6, "c")];
        let jobs = || asked.map(|(id, client)| job(id, client, None).0).into();
        let order = |told: Vec<(u64, bool)>| told.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert_eq!(order(compiled(jobs(), 64)), [1, 4, 6, 2, 5, 3]);
        // What waits here is bounded; what waits for that comes in its order.
        assert_eq!(order(compiled(jobs(), 1)), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn no_work_is_spent_on_who_left_or_is_late() {
        let now = Instant::now();
        let (left, cancelled) = job(2, "a", None);
        cancelled.store(true, Ordering::Relaxed);
        let jobs = vec![
            job(1, "a", Some(now)).0,
            left,
            job(3, "a", now.checked_add(Duration::from_hours(1))).0,
        ];
        assert_eq!(compiled(jobs, 64), [(1, false), (3, true)]);
    }

    #[test]
    fn a_full_compiler_refuses_and_makes_nobody_wait() {
        let (engine, _out) = sync_channel(0);
        // Nobody takes what is ready: the thread stands still with one job, one waits there, one in the channel.
        let compiler = Compiler::new(Arc::new(Words::new(&[])), engine, 1);
        let refused = (0..10).find_map(|id| compiler.submit(job(id, "a", None).0).err());
        assert!(
            matches!(refused, Some(EngineError::Overloaded { places: 1, .. })),
            "{refused:?}"
        );
    }
}
