//! The engines that are in memory: which models are loaded, who must go when another needs room, who goes because nobody
//! asks.
//!
//! Owns every engine of the server. A request takes a [`Lease`] on the model that it names; while there is one, that model
//! stays. A model that is not loaded gets an engine at once, which takes requests into its queue, and a task that makes room
//! and then lets it load (`admission`). Which others must go is decided in `policy`, from plain numbers. Nothing here waits
//! while it holds the lock on the list of models.

mod admission;
mod pace;
mod policy;
mod slot;

use crate::device::{Placement, Topology};
use crate::engine::{
    CacheType, EngineError, EngineHandle, EngineOptions, EngineState, Load, WorkerStats,
};
use crate::models::gguf::GgufError;
use crate::models::memory::{Asked, Kernels};
use crate::models::{Collection, Facts, FindError, Model, Tunings};
use slot::Slot;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

pub use slot::Lease;

/// Models that may wait for room at once, beside those that have it. Each costs two threads and a few kilobytes.
const MOST_WAITING: usize = 8;
/// A file that could not be loaded is not tried again for this long.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);
/// Files that are remembered for that.
const MOST_FAILURES: usize = 16;
/// How often a drain looks whether everybody is served.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// How models are run, and how many of them.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// How an engine is run; each gets its own model, and sizes that fit.
    pub engine: EngineOptions,
    /// Sizes that somebody asked for; the others are chosen to fit.
    pub asked: Asked,
    /// What the processor's kernels want of the weights.
    pub kernels: Kernels,
    /// Bytes that all models may take together; `None` for what the machine has.
    pub memory: Option<u64>,
    /// Models in memory at most.
    pub most_loaded: usize,
    /// An idle model goes after this long; `None` lets it stay until another one needs its room.
    pub keep_alive: Option<Duration>,
    /// Where models compute.
    pub placed: Placed,
    /// Which smaller models draft for others.
    pub drafts: Drafts,
}

/// Which smaller model guesses what another one will say. One that does not fit into memory beside it, or has another vocabulary, is
/// left out.
#[derive(Clone, Debug, Default)]
pub enum Drafts {
    /// None.
    #[default]
    Nobody,
    /// For each model the one that the catalogue names, if it is on disk.
    Partners(Collection),
    /// This one for all others.
    One(Model),
}

impl Drafts {
    /// What somebody said: `auto`, or which model.
    pub fn new(said: Option<&str>, collection: &Collection) -> Result<Self, FindError> {
        Ok(match said.map(str::trim).filter(|said| !said.is_empty()) {
            None => Self::Nobody,
            Some("auto") => Self::Partners(collection.clone()),
            Some(words) => Self::One(collection.find(words)?),
        })
    }

    fn of(&self, model: &Model) -> Option<Model> {
        match self {
            Self::Nobody => None,
            Self::Partners(collection) => collection.draft_of(model),
            Self::One(draft) => Some(draft.clone()).filter(|draft| draft.path != model.path),
        }
    }
}

/// Where models compute if nothing was measured, and where to find what was.
#[derive(Clone, Debug, Default)]
pub struct Placed {
    /// Why the cores and threads of [`PoolSettings::engine`] are what they are, in half a sentence.
    pub reason: String,
    /// The machine's cores.
    pub topology: Topology,
    /// What was measured, for all models.
    pub tunings: Option<Tunings>,
}

/// The engines of a server. Clones are handles on the same ones.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    settings: PoolSettings,
    slots: Mutex<Slots>,
    /// Held by the task that makes room: one model at a time, in the order in which they were asked for.
    turn: tokio::sync::Mutex<()>,
    /// Held while a file's header is read.
    reading: tokio::sync::Mutex<()>,
    /// Files that could not be loaded lately. Locked for a look only.
    failures: Mutex<Vec<Failure>>,
    /// Rung when a use of a model ends.
    bell: Arc<Notify>,
    closed: AtomicBool,
}

/// A file that could not be loaded.
struct Failure {
    facts: Arc<Facts>,
    reason: String,
    at: Instant,
}

#[derive(Default)]
struct Slots {
    list: Vec<Arc<Slot>>,
    /// What the workers of models that are gone had counted.
    before: WorkerStats,
    restarts: u64,
    loads: u64,
    unloads: u64,
}

/// A model in memory, or on its way, as `/status` and `/metrics` show it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What it is.
    pub facts: Arc<Facts>,
    /// Where it stands.
    pub state: EngineState,
    /// Its load and history.
    pub load: Load,
    /// Requests that run or wait.
    pub in_flight: u32,
    /// Requests that may run or wait at once.
    pub places: u32,
    /// Bytes that it takes by the memory plan (0 while that is not decided), and what its worker took beyond that for embeddings.
    pub bytes: u64,
    /// Since when nobody uses it; `None` while somebody does.
    pub idle: Option<Duration>,
    /// Whether it goes as soon as its requests are done.
    pub leaving: bool,
    /// Whether it waits for others to make room.
    pub waiting: bool,
}

/// Counts over the life of the server.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// The workers' own counters, those of models that are gone included; gauges are sums over those that are loaded.
    pub workers: WorkerStats,
    /// Workers started after their engine's first.
    pub restarts: u64,
    /// Models that were let into memory.
    pub loads: u64,
    /// Models that went.
    pub unloads: u64,
}

impl Pool {
    /// A pool without models. Must be called inside a tokio runtime.
    pub fn new(settings: PoolSettings) -> Self {
        let inner = Arc::new(Inner {
            settings,
            slots: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            failures: Mutex::default(),
            bell: Arc::new(Notify::new()),
            closed: AtomicBool::new(false),
        });
        if let Some(keep_alive) = inner.settings.keep_alive {
            tokio::spawn(admission::unload_idle(Arc::downgrade(&inner), keep_alive));
        }
        Self { inner }
    }

    /// The model for one request. One that is not in memory begins to come in; its engine takes requests meanwhile. `kept`
    /// says that a load that fails is to be tried again by itself, as for the model that the server is for.
    pub async fn lease(&self, model: &Model, kept: bool) -> Result<Lease, EngineError> {
        if let Some(lease) = self.present(&model.path)? {
            return Ok(lease);
        }
        // A crowd that asks for the same model at once reads its header once.
        let _reading = self.inner.reading.lock().await;
        if let Some(lease) = self.present(&model.path)? {
            return Ok(lease);
        }
        let asked = model.clone();
        let tunings = self.inner.settings.placed.tunings.clone();
        let drafts = self.inner.settings.drafts.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut facts = Facts::read(asked)?;
            if let Some(draft) = drafts.of(&facts.model) {
                facts.set_draft(draft);
            }
            facts.tuned = tunings.and_then(|tunings| tunings.find(&facts.header));
            Ok(facts)
        });
        let facts = read
            .await
            .map_err(|error| EngineError::Internal(error.to_string()))?
            .map_err(|damage: GgufError| {
                EngineError::Unloadable(if kept {
                    // The one that the operator named, by its path.
                    damage.to_string()
                } else {
                    format!("model {} {}", model.name, damage.fault)
                })
            })?;
        if let Some(reason) = self.inner.failed_lately(&facts) {
            return Err(EngineError::Unloadable(reason));
        }
        self.bring_in(Arc::new(facts), kept)
    }

    /// What the default model is, if it is in memory or on its way.
    pub fn seen_of(&self, path: &Path) -> Option<Seen> {
        self.find(path).map(|slot| seen(&slot))
    }

    fn find(&self, path: &Path) -> Option<Arc<Slot>> {
        let slots = self.inner.slots();
        let mut here = slots.list.iter().filter(|slot| slot.path() == path);
        // One that leaves is the answer only while its successor does not exist.
        let slot = here.clone().find(|slot| !slot.is_leaving());
        slot.or_else(|| here.next()).cloned()
    }

    /// Every model in memory or on its way, in the order in which they came.
    pub fn seen(&self) -> Vec<Seen> {
        let list = self.inner.slots().list.clone();
        list.iter().map(|slot| seen(slot)).collect()
    }

    /// Counts over the server's life.
    pub fn totals(&self) -> Totals {
        let slots = self.inner.slots();
        let mut totals = Totals {
            workers: slots.before.clone(),
            restarts: slots.restarts,
            loads: slots.loads,
            unloads: slots.unloads,
        };
        for slot in &slots.list {
            let load = slot.engine.load();
            totals.workers.add_counters(&load.before);
            totals.workers.add_counters(&load.worker);
            totals.workers.running += load.worker.running;
            totals.workers.queued += load.worker.queued;
            totals.workers.kv_cells += load.worker.kv_cells;
            totals.workers.kv_cells_used += load.worker.kv_cells_used;
            totals.workers.threads_left_out += load.worker.threads_left_out;
            totals.workers.saved_bytes += load.worker.saved_bytes;
            totals.restarts += load.restarts;
        }
        totals
    }

    /// Requests that run or wait, in all models.
    pub fn in_flight(&self) -> u32 {
        let slots = self.inner.slots();
        slots.list.iter().map(|slot| slot.engine.in_flight()).sum()
    }

    /// Requests that may run or wait at once for one model.
    pub fn places(&self) -> u32 {
        self.inner.settings.engine.config.places
    }

    /// Where models compute.
    pub fn placed(&self) -> &Placed {
        &self.inner.settings.placed
    }

    /// Cores and threads of a model, how its cache is stored, and why.
    pub fn placement_of(&self, facts: &Facts) -> (Placement, CacheType, &str) {
        self.inner.placement_of(facts)
    }

    /// Unloads a model as soon as its requests are done, and waits until its processes are gone.
    pub async fn unload(&self, path: &Path) {
        let all: Vec<_> = {
            let slots = self.inner.slots();
            let of_it = slots.list.iter().filter(|slot| slot.path() == path);
            of_it.cloned().collect()
        };
        futures_util::future::join_all(all.iter().map(|slot| self.inner.remove(slot))).await;
    }

    /// Refuses new requests from now on.
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        for slot in &self.inner.slots().list {
            slot.engine.close();
        }
    }

    /// Waits until no request runs or waits.
    pub async fn idle(&self) {
        while self.in_flight() > 0 {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    }

    /// Refuses new requests, ends those that are left, and ends all workers.
    pub async fn shutdown(&self) {
        self.close();
        let list = std::mem::take(&mut self.inner.slots().list);
        futures_util::future::join_all(list.iter().map(|slot| slot.engine.shutdown())).await;
    }

    /// A lease on a model that is there.
    fn present(&self, path: &Path) -> Result<Option<Lease>, EngineError> {
        self.lease_on(&self.inner.slots(), path)
    }

    fn lease_on(&self, slots: &Slots, path: &Path) -> Result<Option<Lease>, EngineError> {
        // Looked at under the lock: whoever is let in here is seen by `close`.
        if self.inner.closed.load(Ordering::Acquire) {
            return Err(EngineError::ShuttingDown);
        }
        let mut present = slots.list.iter();
        let slot = present.find(|slot| slot.path() == path && !slot.is_leaving());
        let Some(slot) = slot else { return Ok(None) };
        if slot.facts.is_current() {
            let bell = Arc::clone(&self.inner.bell);
            return Ok(Some(Lease::new(Arc::clone(slot), bell)));
        }
        // Another file has taken its place: what is in memory is served to its end, and the new one is looked at.
        let (pool, slot) = (Arc::clone(&self.inner), Arc::clone(slot));
        slot.leave();
        tokio::spawn(async move { pool.remove(&slot).await });
        Ok(None)
    }

    /// A lease on a model that begins to come in, if nobody was faster.
    fn bring_in(&self, facts: Arc<Facts>, kept: bool) -> Result<Lease, EngineError> {
        let settings = &self.inner.settings;
        let mut slots = self.inner.slots();
        if let Some(lease) = self.lease_on(&slots, &facts.model.path)? {
            return Ok(lease);
        }
        if slots.list.len() >= settings.most_loaded.saturating_add(MOST_WAITING) {
            return Err(EngineError::Overloaded {
                places: self.places(),
                retry_after_seconds: 5,
            });
        }
        let mut options = settings.engine.clone();
        options.config.model.clone_from(&facts.model.path);
        options.config.chat_template = facts.chat_template();
        let (word, permit) = oneshot::channel();
        let engine = EngineHandle::start_when(options, permit)
            .map_err(|error| EngineError::Internal(format!("no thread for an engine: {error}")))?;
        let slot = Arc::new(Slot::new(facts, engine, kept));
        slots.list.push(Arc::clone(&slot));
        let lease = Lease::new(Arc::clone(&slot), Arc::clone(&self.inner.bell));
        drop(slots);
        tokio::spawn(admission::admit(Arc::clone(&self.inner), slot, word));
        Ok(lease)
    }
}

impl Inner {
    fn placement_of(&self, facts: &Facts) -> (Placement, CacheType, &str) {
        let mut config = self.settings.engine.config.clone();
        if let Some(tuned) = &facts.tuned {
            tuned.apply(&mut config);
        }
        let measured = facts
            .tuned
            .as_ref()
            .is_some_and(|tuned| tuned.placement.is_some());
        let reason = if measured {
            "measured by `pocket-llm tune`"
        } else {
            &self.settings.placed.reason
        };
        (config.placement(), config.cache_type, reason)
    }

    /// Locked to look at the list or to change it, never while waiting.
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody new gets in from now on. Under the lock, so that nobody is half in.
    fn leave(&self, slot: &Slot) {
        let _list = self.slots();
        slot.leave();
    }

    /// Lets a model go: nobody new gets in, who is there is served, then its process ends and its memory is free.
    async fn remove(&self, slot: &Arc<Slot>) {
        self.leave(slot);
        slot.unused().await;
        slot.engine.shutdown().await;
        self.forget(slot);
    }

    /// Lets those stay that were to make way and are still here. One whose successor waits already goes all the same.
    fn stay(self: &Arc<Self>, victims: &[Arc<Slot>]) {
        let slots = self.slots();
        let successor = |victim: &Arc<Slot>| {
            let mut others = slots.list.iter();
            others.any(|other| other.path() == victim.path() && !other.is_leaving())
        };
        for victim in victims {
            if successor(victim) {
                let (pool, victim) = (Arc::clone(self), Arc::clone(victim));
                tokio::spawn(async move { pool.remove(&victim).await });
            } else {
                victim.stay();
            }
        }
    }

    /// Why this very file could not be loaded a moment ago. It is not tried again at once: each try would cost others their
    /// room.
    fn failed_lately(&self, facts: &Facts) -> Option<String> {
        let mut failures = self.failures();
        failures.retain(|failure| failure.at.elapsed() < FAILURE_PAUSE);
        let mut of_it = failures.iter();
        let failure = of_it.find(|failure| failure.facts.is_same_file(facts));
        failure.map(|failure| failure.reason.clone())
    }

    fn note_failure(&self, slot: &Slot, reason: &str) {
        let mut failures = self.failures();
        if failures.len() >= MOST_FAILURES {
            failures.remove(0);
        }
        failures.push(Failure {
            facts: Arc::clone(&slot.facts),
            reason: reason.to_owned(),
            at: Instant::now(),
        });
    }

    fn failures(&self) -> MutexGuard<'_, Vec<Failure>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a model whose engine is over off the list.
    fn forget(&self, slot: &Arc<Slot>) {
        let mut slots = self.slots();
        let before = slots.list.len();
        slots.list.retain(|other| !Arc::ptr_eq(other, slot));
        if slots.list.len() < before {
            let load = slot.engine.load();
            slots.before.add_counters(&load.before);
            slots.before.add_counters(&load.worker);
            slots.restarts += load.restarts;
            slots.unloads += u64::from(slot.is_admitted());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Who looks after idle models has none left, and ends.
        self.bell.notify_one();
    }
}

fn seen(slot: &Slot) -> Seen {
    Seen {
        facts: Arc::clone(&slot.facts),
        state: slot.engine.state(),
        load: slot.engine.load(),
        in_flight: slot.engine.in_flight(),
        places: slot.engine.places(),
        bytes: slot.holds(),
        idle: (slot.uses() == 0).then(|| Instant::now() - slot.last_used()),
        leaving: slot.is_leaving(),
        waiting: !slot.is_admitted(),
    }
}
