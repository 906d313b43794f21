//! Who may go to the worker, and the way there. A request that may have crashed one goes alone.

use super::{Route, Stage, Supervisor};
use crate::engine::connection::{Life, Outgoing};
use crate::engine::wire::{self, RequestId, ToWorker};
use crate::engine::{EngineError, Event};
use tokio::time::Instant;

/// Who may go to the worker.
enum Gate {
    Open,
    For(RequestId),
    Closed,
}

impl Supervisor {
    /// Where in `waiting` is what may be written next: a cancel always, a request unless one runs alone or is about to.
    pub(super) fn next(&self, life: &Life) -> Option<usize> {
        let gate = self.gate(life);
        life.waiting.iter().position(|waiting| match waiting {
            Outgoing::Cancel { .. } => true,
            Outgoing::Submit(id) => match gate {
                Gate::Open => true,
                Gate::For(only) => *id == only,
                Gate::Closed => false,
            },
        })
    }

    /// Who may go to the worker now. A suspect goes before all others, when nobody is there, and nobody follows it.
    fn gate(&self, life: &Life) -> Gate {
        if self.quarantine.is_empty() {
            return Gate::Open;
        }
        let suspected = |route: &Route| {
            let fingerprint = route.fingerprint.as_ref();
            fingerprint.is_some_and(|fingerprint| self.quarantine.suspects(fingerprint))
        };
        let mut inside = self.routes.values().filter(|route| route.sent.is_some());
        let mut waiting = life.waiting.iter().filter_map(Outgoing::submitted);
        let first = waiting.find(|id| self.routes.get(id).is_some_and(suspected));
        match (first, inside.next()) {
            (_, Some(inside)) if suspected(inside) => Gate::Closed,
            (Some(id), None) if !life.is_leaving() => Gate::For(id),
            (Some(_), _) => Gate::Closed,
            (None, _) => Gate::Open,
        }
    }

    /// Hands something to the writer. A request that was cancelled before that is never written; the place of one
    /// that was cancelled later is free when the worker is being told. So what waits is never more than there are places.
    pub(super) fn write(&mut self, life: &mut Life, next: Outgoing) {
        let (frame, _place) = match next {
            Outgoing::Submit(id) => (self.hand_over(life, id), None),
            Outgoing::Cancel { id, place } => {
                life.somebody_leaves();
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
                route.stage = Stage::Prepares;
                Some(frame)
            }
            Err(error) => {
                let failed = EngineError::BadRequest(format!("the request is too large: {error}"));
                self.on_event(id, Event::Failed(failed));
                None
            }
        }
    }
}
