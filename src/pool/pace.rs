//! Loading in small bites while other models answer.
//!
//! Decoding threads spin at barriers. Where one of them finds itself behind another on the same core, it is moved as soon as some
//! core has nothing to do. A loader that computes without a break, however low its priority, keeps its core from ever having
//! nothing to do: then a token takes until the kernel's periodic balance, about 100 ms (measured on two cores). llama.cpp can't be
//! asked for breaks, so the loading process is stopped for a moment again and again, from outside.

use super::Inner;
use super::slot::Slot;
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::time::Duration;
use tokio::time::sleep;

/// How long a loader computes.
const BITE: Duration = Duration::from_millis(1);
/// How long it pauses then.
const BREAK: Duration = Duration::from_millis(7);

/// Paces a loading worker for as long as it is polled.
pub(super) async fn pace(inner: &Inner, slot: &Slot) {
    loop {
        if others_answer(inner, slot)
            && let Some(worker) = worker_of(slot)
        {
            let _stopped = Stopped::new(worker);
            sleep(BREAK).await;
        }
        sleep(BITE).await;
    }
}

fn others_answer(inner: &Inner, slot: &Slot) -> bool {
    let slots = inner.slots();
    let mut others = slots.list.iter();
    others.any(|other| !std::ptr::eq(&raw const **other, slot) && other.engine.in_flight() > 0)
}

/// A handle on the worker that can't come to mean another process.
fn worker_of(slot: &Slot) -> Option<OwnedFd> {
    let id = slot.engine.load().pid?;
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw)?;
    let worker = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    // It was still the worker's when the handle was made.
    (slot.engine.load().pid == Some(id)).then_some(worker)
}

/// A stopped process; it goes on when this is dropped.
struct Stopped(OwnedFd);

impl Stopped {
    fn new(worker: OwnedFd) -> Self {
        // An error means that it has ended.
        let _ = pidfd_send_signal(&worker, Signal::STOP);
        Self(worker)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = pidfd_send_signal(&self.0, Signal::CONT);
    }
}
