//! What a download has done so far, for whoever looks, and the button that ends it.
//!
//! The download's own thread writes; any thread reads. Cancelling shuts its sockets down, so a read that waits for a silent
//! server ends at once.

use super::DownloadError;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use ureq::Agent;

/// What a download is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for its turn.
    Waiting,
    /// It asks the hub what the file is.
    Asking,
    /// Another process has the file's lock.
    Locked,
    /// It reads what an earlier run left.
    Rereading,
    /// It asks for bytes.
    Connecting,
    /// Bytes come.
    Receiving,
    /// It waits before the next try.
    Pausing,
    /// All bytes are there; it checks and stores them.
    Checking,
    /// It has ended, well or not.
    Ended,
}

impl Phase {
    const ALL: [Self; 9] = [
        Self::Waiting,
        Self::Asking,
        Self::Locked,
        Self::Rereading,
        Self::Connecting,
        Self::Receiving,
        Self::Pausing,
        Self::Checking,
        Self::Ended,
    ];

    /// Its name in status reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Asking => "asking",
            Self::Locked => "locked",
            Self::Rereading => "rereading",
            Self::Connecting => "connecting",
            Self::Receiving => "receiving",
            Self::Pausing => "pausing",
            Self::Checking => "checking",
            Self::Ended => "ended",
        }
    }
}

/// The state of one download. Numbers are read one by one, so a reader may see two that belong to neighbouring moments.
#[derive(Debug, Default)]
pub struct Progress {
    received: AtomicU64,
    /// 0: nobody knows.
    total: AtomicU64,
    attempt: AtomicU32,
    phase: AtomicU8,
    cancelled: AtomicBool,
    /// Shuts down the sockets in use. A lock, because a cancel must not miss an agent that is handed over at that moment, and
    /// because pauses end by it. It is held for no input or output.
    agent: Mutex<Option<Agent>>,
    woken: Condvar,
}

impl Progress {
    /// Bytes of the file that are here, from earlier runs too.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes of the whole file, once that is known.
    pub fn total(&self) -> Option<u64> {
        Some(self.total.load(Ordering::Relaxed)).filter(|total| *total > 0)
    }

    /// Tries in a row without progress; 1 while all is well.
    pub fn attempt(&self) -> u32 {
        self.attempt.load(Ordering::Relaxed)
    }

    /// What it is doing.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Relaxed))]
    }

    /// Ends the download: it keeps what came and returns [`DownloadError::Cancelled`].
    pub fn cancel(&self) {
        let mut current = self.agent();
        self.cancelled.store(true, Ordering::Relaxed);
        let agent = current.take();
        drop(current);
        self.woken.notify_all();
        if let Some(agent) = agent {
            agent.shutdown();
        }
    }

    /// Whether somebody cancelled it.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Set once it is cancelled.
    pub(super) fn cancel_flag(&self) -> &AtomicBool {
        &self.cancelled
    }

    pub(super) fn check(&self) -> Result<(), DownloadError> {
        if self.is_cancelled() {
            return Err(DownloadError::Cancelled);
        }
        Ok(())
    }

    /// Waits, unless it is cancelled.
    pub(super) fn pause(&self, time: Duration) -> Result<(), DownloadError> {
        let waited = self
            .woken
            .wait_timeout_while(self.agent(), time, |_| !self.is_cancelled());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.check()
    }

    /// Cancelling shuts this agent's sockets down from now on.
    pub(super) fn attach(&self, agent: Agent) -> Result<(), DownloadError> {
        let mut current = self.agent();
        self.check()?;
        *current = Some(agent);
        Ok(())
    }

    pub(super) fn set_received(&self, bytes: u64) {
        self.received.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn set_total(&self, bytes: Option<u64>) {
        self.total.store(bytes.unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn set_attempt(&self, attempt: u32) {
        self.attempt.store(attempt, Ordering::Relaxed);
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    fn agent(&self) -> MutexGuard<'_, Option<Agent>> {
        // Nothing panics while it is held.
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_stored_as_their_places() {
        let progress = Progress::default();
        for phase in Phase::ALL {
            progress.set_phase(phase);
            assert_eq!(progress.phase(), phase);
        }
    }

    #[test]
    fn a_cancel_ends_pauses_and_lets_nothing_begin() {
        let progress = Progress::default();
        std::thread::scope(|scope| {
            let paused = scope.spawn(|| progress.pause(Duration::MAX));
            progress.cancel();
            assert!(matches!(
                paused.join().expect("no panic"),
                Err(DownloadError::Cancelled)
            ));
        });
        assert!(matches!(
            progress.attach(Agent::new_with_defaults()),
            Err(DownloadError::Cancelled)
        ));
    }
}
