//! One model in memory, or on its way there, and who uses it.

use super::Facts;
use crate::engine::{EngineHandle, EngineState};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio::time::Instant;

/// It takes new requests.
const STAYS: u8 = 0;
/// It was told to make way for another model; that can be taken back.
const MAKES_WAY: u8 = 1;
/// It goes, whatever happens.
const GOES: u8 = 2;

/// A model's place. Shared by the pool, by everyone who uses the model, and by the task that brings it in.
pub(super) struct Slot {
    pub(super) facts: Arc<Facts>,
    pub(super) engine: EngineHandle,
    /// Bytes that it takes, 0 until that was decided.
    bytes: AtomicU64,
    /// Whether it must go: nobody new gets in. Changed under the lock on the pool's list only.
    leaving: AtomicU8,
    /// Whether it was let into memory.
    admitted: AtomicBool,
    /// Whether it is kept although its load failed (the default model, which is tried again).
    pub(super) kept: bool,
    uses: watch::Sender<u32>,
    /// Locked for a copy only.
    last_used: Mutex<Instant>,
}

impl Slot {
    pub(super) fn new(facts: Arc<Facts>, engine: EngineHandle, kept: bool) -> Self {
        Self {
            facts,
            engine,
            bytes: AtomicU64::new(0),
            leaving: AtomicU8::new(STAYS),
            admitted: AtomicBool::new(false),
            kept,
            uses: watch::Sender::new(0),
            last_used: Mutex::new(Instant::now()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.facts.model.path
    }

    pub(super) fn uses(&self) -> u32 {
        *self.uses.borrow()
    }

    pub(super) fn last_used(&self) -> Instant {
        *self
            .last_used
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire) != STAYS
    }

    /// From now on nobody new gets in, and that is final: whoever says so sees it out.
    pub(super) fn leave(&self) {
        self.leaving.store(GOES, Ordering::Release);
    }

    /// Nobody new gets in while another model waits for its room.
    pub(super) fn make_way(&self) {
        // One that goes in any case goes.
        let _ =
            self.leaving
                .compare_exchange(STAYS, MAKES_WAY, Ordering::AcqRel, Ordering::Acquire);
    }

    /// It need not make way any more.
    pub(super) fn stay(&self) {
        // One that goes in any case goes.
        let _ =
            self.leaving
                .compare_exchange(MAKES_WAY, STAYS, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether it was let into memory.
    pub(super) fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }

    pub(super) fn admit(&self) {
        self.admitted.store(true, Ordering::Release);
    }

    pub(super) fn takes(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Release);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Bytes that it takes with what its worker took beyond the plan: for embeddings, for as long as there are some to make.
    pub(super) fn holds(&self) -> u64 {
        let more = self.engine.load().worker.embedding_bytes;
        self.bytes().saturating_add(more)
    }

    /// Waits until nobody uses it.
    pub(super) async fn unused(&self) {
        // The sender lives as long as `self`.
        let _ = self.uses.subscribe().wait_for(|uses| *uses == 0).await;
    }

    /// Whether its model answers.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.engine.state(), EngineState::Ready(_))
    }

    fn begins(&self) {
        self.uses.send_modify(|uses| *uses += 1);
    }

    fn ends(&self) {
        *self
            .last_used
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.uses.send_modify(|uses| *uses = uses.saturating_sub(1));
    }
}

/// The use of a model for one request: while it lives, the model stays.
pub struct Lease {
    slot: Arc<Slot>,
    /// Rung at the end, for who looks after idle models.
    bell: Arc<tokio::sync::Notify>,
}

impl Lease {
    pub(super) fn new(slot: Arc<Slot>, bell: Arc<tokio::sync::Notify>) -> Self {
        slot.begins();
        Self { slot, bell }
    }

    /// The engine. It takes requests, also while its model is still being loaded.
    pub fn engine(&self) -> &EngineHandle {
        &self.slot.engine
    }

    /// What the model is and wants.
    pub fn facts(&self) -> &Arc<Facts> {
        &self.slot.facts
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.slot.ends();
        self.bell.notify_one();
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.slot.path()).finish()
    }
}
