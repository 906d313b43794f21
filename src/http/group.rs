//! The generations of one request: its choices, run beside each other under one account.
//!
//! Dropping the group drops every generation, which cancels them all.

use super::error::ApiError;
use super::tracked::Tracker;
use crate::engine::{EngineError, Event, Generation, Request};
use crate::pool::Lease;
use futures_util::FutureExt;
use futures_util::stream::{self, BoxStream, SelectAll, StreamExt};

/// Answers to one request that may be asked for, all prompts together.
pub(super) const MOST_CHOICES: u32 = 8;

/// Events of several generations, each with the number of its choice.
pub(super) struct Group {
    events: SelectAll<BoxStream<'static, (usize, Event)>>,
    /// Generations that have not ended.
    open: usize,
    tracker: Tracker,
    /// The model stays while its generations live.
    lease: Lease,
}

impl Group {
    /// Submits requests to the model of the lease: all of them, or none.
    pub(super) fn submit(
        mut tracker: Tracker,
        lease: Lease,
        requests: Vec<Request>,
    ) -> Result<Self, ApiError> {
        tracker.goes_to(&lease.facts().model.name, requests.len());
        let places = lease.engine().places() as usize;
        let open = requests.len();
        let submitted = if open > places {
            let error = format!("this server takes {places} at once");
            Err(ApiError::bad_request("too many answers are asked for").details(error))
        } else {
            let submit = |request| lease.engine().submit_fairly(request);
            let all: Result<Vec<Generation>, _> = requests.into_iter().map(submit).collect();
            all.map_err(|error| ApiError::from(&error))
        };
        let generations = submitted.inspect_err(|error| tracker.failed(error))?;
        let events = generations.into_iter().enumerate().map(events).collect();
        Ok(Self {
            events,
            open,
            tracker,
            lease,
        })
    }

    /// The next event; `None` after the last one of all.
    pub(super) async fn next(&mut self) -> Option<(usize, Event)> {
        let event = self.events.next().await;
        self.seen(event)
    }

    /// The next event if it is there already.
    pub(super) fn try_next(&mut self) -> Option<(usize, Event)> {
        let event = self.events.next().now_or_never().flatten();
        self.seen(event)
    }

    /// Whether nothing is left to come.
    pub(super) fn is_over(&self) -> bool {
        self.open == 0
    }

    fn seen(&mut self, event: Option<(usize, Event)>) -> Option<(usize, Event)> {
        if let Some((_, event)) = &event {
            self.tracker.observe(event, &self.lease);
            self.open -= usize::from(event.is_last());
        }
        event
    }
}

fn events((choice, generation): (usize, Generation)) -> BoxStream<'static, (usize, Event)> {
    let events = stream::unfold(generation, move |mut generation| async move {
        let event = generation.next().await?;
        Some(((choice, event), generation))
    });
    events.boxed()
}

/// The engine promises a terminal event; this is for a day on which it breaks its word.
pub(super) fn ended_early() -> ApiError {
    ApiError::from(&EngineError::Internal(
        "the events ended without a terminal one".into(),
    ))
}
