//! The thread that compiles formats: neither plain requests nor running answers wait for it.
//!
//! It begins with the first request that has a format, and reads the vocabulary then; a server that is never asked for one pays
//! nothing. A hostile format costs the engine's bounded work here, and delays requests with formats only.

use super::{Constraints, Form, Plan};
use crate::device::memory::Free;
use crate::engine::{EngineError, Event};
use crate::worker::decoder::Vocab;
use crate::worker::run::Inbound;
use crate::worker::sequence::Arrival;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

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
        let thread = thread::Builder::new()
            .name("formats".into())
            .stack_size(STACK_BYTES);
        let spawned = thread.spawn(move || work(&*vocab, &inbox, &engine));
        spawned.map_err(|error| EngineError::Internal(format!("no thread: {error}")))?;
        Ok(jobs.insert(sender).clone())
    }
}

fn work(vocab: &dyn Vocab, jobs: &Receiver<Job>, engine: &SyncSender<Inbound>) {
    let mut constraints = None;
    while let Ok(job) = jobs.recv() {
        if job.arrival.is_cancelled() {
            continue;
        }
        let id = job.arrival.id;
        let inbound = constrained(&mut constraints, vocab, job)
            .unwrap_or_else(|error| Inbound::Done(id, Event::Failed(error)));
        if engine.send(inbound).is_err() {
            return;
        }
    }
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
