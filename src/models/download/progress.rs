//! What a download has done so far, for whoever looks, and the button that ends it.
//!
//! The download's own thread writes; any thread reads. Cancelling shuts its sockets down, so a read that waits for a silent
//! server ends at once.

use super::DownloadError;
use super::turns::Ticket;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
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
    /// Its place among others, where there are others.
    ticket: Option<Ticket>,
    /// Locked for a look only.
    speed: Mutex<Speed>,
    /// Shuts down the sockets in use. A lock, because a cancel must not miss an agent that is handed over at that moment, and
    /// because pauses end by it. It is held for no input or output.
    agent: Mutex<Option<Agent>>,
    woken: Condvar,
}

impl Progress {
    /// Of a download that waits for its turn, and lets others have it while it pauses.
    pub(super) fn in_line(ticket: Ticket) -> Self {
        Self {
            ticket: Some(ticket),
            ..Self::default()
        }
    }

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
        if let Some(ticket) = &self.ticket {
            ticket.wake();
        }
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

    /// Waits for its turn.
    pub(super) fn take_turn(&self) -> Result<(), DownloadError> {
        if let Some(ticket) = &self.ticket {
            self.set_phase(Phase::Waiting);
            // The end of the wait by a cancel is told below.
            let _ = ticket.take(|| self.is_cancelled());
        }
        self.check()
    }

    /// Lets the next one have its turn.
    pub(super) fn give_turn_back(&self) {
        if let Some(ticket) = &self.ticket {
            ticket.give_back();
        }
    }

    /// Waits, unless it is cancelled. Others have their turns meanwhile.
    pub(super) fn pause(&self, time: Duration) -> Result<(), DownloadError> {
        self.give_turn_back();
        let waited = self
            .woken
            .wait_timeout_while(self.agent(), time, |_| !self.is_cancelled());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.take_turn()
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
        self.speed();
    }

    /// Bytes per second over the last few seconds.
    pub(super) fn speed(&self) -> u64 {
        let mut speed = self.speed.lock().unwrap_or_else(PoisonError::into_inner);
        speed.at(self.received(), Instant::now())
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

/// Bytes per second over the last few seconds.
#[derive(Debug, Default)]
struct Speed {
    samples: VecDeque<(Instant, u64)>,
}

impl Speed {
    /// What is looked back at.
    const WINDOW: Duration = Duration::from_secs(5);
    /// Closer samples are not kept.
    const LEAST: Duration = Duration::from_millis(100);

    fn at(&mut self, bytes: u64, now: Instant) -> u64 {
        // It began anew.
        if self.samples.back().is_some_and(|(_, last)| *last > bytes) {
            self.samples.clear();
        }
        while self.samples.len() > 1 && now - self.samples[0].0 > Self::WINDOW {
            self.samples.pop_front();
        }
        let is_new = |(last, _): &(Instant, u64)| now.duration_since(*last) >= Self::LEAST;
        if self.samples.back().is_none_or(is_new) {
            self.samples.push_back((now, bytes));
        }
        let Some((since, then)) = self.samples.front() else {
            return 0;
        };
        let milliseconds =
            u64::try_from(now.duration_since(*since).as_millis()).unwrap_or(u64::MAX);
        (bytes - then)
            .saturating_mul(1000)
            .checked_div(milliseconds)
            .unwrap_or(0)
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

    #[test]
    fn speed_is_that_of_the_last_seconds() {
        let mut speed = Speed::default();
        let begin = Instant::now();
        let mut at =
            |milliseconds, bytes| speed.at(bytes, begin + Duration::from_millis(milliseconds));
        assert_eq!(at(0, 1000), 0);
        assert_eq!(at(1, 1000), 0);
        assert_eq!(at(1000, 3000), 2000);
        assert_eq!(at(2000, 3000), 1000);
        // Ten seconds later the fast beginning is forgotten.
        for second in 3..=12 {
            at(second * 1000, 3000 + second);
        }
        assert_eq!(at(13_000, 3013), 1);
        // Anew from nothing.
        assert_eq!(at(14_000, 0), 0);
        assert_eq!(at(15_000, 500), 500);
    }
}
