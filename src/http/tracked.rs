//! Accounts: each request for an answer is counted and logged exactly once, however it ends.
//!
//! A [`Tracker`] begins when a request arrives and tells the metrics and the log when it is dropped. Without an outcome by
//! then, the client has left: its future or its body was dropped, and the generation with it.

use super::app::App;
use super::body::Memory;
use super::caller::{Caller, QueueNote, RequestId};
use super::error::ApiError;
use crate::engine::{EngineError, Event, FinishReason, Generation, Request};
use crate::metrics::{Limit, Outcome, TokenCounts};
use crate::pool::Lease;
use std::time::{Duration, Instant};

/// One request's account.
pub(super) struct Tracker {
    app: App,
    endpoint: &'static str,
    client: String,
    /// The true name of the model, once it is known.
    model: Option<String>,
    arrived: Instant,
    /// The body's share of memory, until the engine has found that the prompt fits a context and so is small.
    memory: Memory,
    first_text: Option<Duration>,
    last_text: Instant,
    started: bool,
    tokens: TokenCounts,
    /// Pieces of answers so far: an estimate of their tokens until those are counted.
    pieces: u32,
    /// Generations that have not ended.
    open: u32,
    outcome: Option<Outcome>,
    id: Option<RequestId>,
    queue: QueueNote,
}

impl Tracker {
    fn new(app: &App, endpoint: &'static str, client: String) -> Self {
        app.request_begins();
        let arrived = Instant::now();
        Self {
            app: app.clone(),
            endpoint,
            client,
            model: None,
            arrived,
            memory: Memory::default(),
            first_text: None,
            last_text: arrived,
            started: false,
            tokens: TokenCounts::default(),
            pieces: 0,
            open: 1,
            outcome: None,
            id: None,
            queue: QueueNote::default(),
        }
    }

    /// The account of a caller's request.
    pub(super) fn of(app: &App, endpoint: &'static str, caller: Caller) -> Self {
        let mut tracker = Self::new(app, endpoint, caller.client);
        tracker.id = caller.id;
        tracker.queue = caller.queue;
        tracker
    }

    pub(super) fn client(&self) -> &str {
        &self.client
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.arrived.elapsed()
    }

    /// Keeps a body's share of memory for as long as its text may be large.
    pub(super) fn hold(&mut self, memory: Memory) {
        self.memory = memory;
    }

    /// The request ends with an error.
    pub(super) fn failed(&mut self, error: &ApiError) {
        self.outcome = Some(Outcome::Error(error.code().outcome()));
        if let Some(limit) = error.hit_limit() {
            self.app.metrics().limit(limit);
        }
    }

    /// The request goes to a model, as so many generations.
    pub(super) fn goes_to(&mut self, model: &str, generations: usize) {
        self.model = Some(model.to_owned());
        self.open = u32::try_from(generations).unwrap_or(u32::MAX);
    }

    /// A question was answered that took so many tokens.
    pub(super) fn answered(&mut self, prompt_tokens: u32) {
        self.started = true;
        self.tokens.prompt = prompt_tokens;
        self.open = 0;
        self.outcome = Some(Outcome::Ok);
    }

    /// Takes note of an event of the leased model.
    pub(super) fn observe(&mut self, event: &Event, lease: &Lease) {
        match event {
            Event::Accepted {
                prompt_tokens,
                position,
            } => {
                self.tokens.prompt = *prompt_tokens;
                self.queue.note(lease.engine().queued(*position));
                self.memory = Memory::default();
            }
            Event::Started { cached_tokens } => {
                self.started = true;
                self.tokens.cached = *cached_tokens;
                self.app.metrics().queued(self.elapsed());
            }
            Event::Text { .. } | Event::ToolCall { .. } => self.spoke(),
            Event::Finished(outcome) => {
                self.tokens.generated += outcome.usage.completion_tokens;
                self.open = self.open.saturating_sub(1);
                let outcome = match outcome.reason {
                    FinishReason::Stop | FinishReason::ToolCalls => Outcome::Ok,
                    FinishReason::Length => Outcome::Length,
                    FinishReason::Deadline => {
                        self.app.metrics().limit(Limit::Deadline);
                        Outcome::Deadline
                    }
                };
                // Of several answers, the one that did not end by itself is told.
                if self.outcome.is_none_or(|before| before == Outcome::Ok) {
                    self.outcome = Some(outcome);
                }
            }
            Event::Answered(_) => self.answered(self.tokens.prompt),
            Event::Failed(error) => {
                if let EngineError::Internal(what) = error {
                    tracing::error!(endpoint = self.endpoint, what, "the engine failed");
                }
                self.failed(&ApiError::from(error));
            }
        }
    }

    fn spoke(&mut self) {
        let now = Instant::now();
        if self.first_text.is_some() {
            self.app.metrics().between_texts(now - self.last_text);
        } else {
            self.first_text = Some(now - self.arrived);
            self.app.metrics().first_text(now - self.arrived);
        }
        self.last_text = now;
        self.pieces += 1;
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        let outcome = match self.outcome {
            Some(outcome) if self.open == 0 || matches!(outcome, Outcome::Error(_)) => outcome,
            _ => Outcome::Cancelled,
        };
        if self.open > 0 {
            self.tokens.generated = self.tokens.generated.max(self.pieces);
        }
        self.app.request_ends();
        self.app.metrics().request(self.endpoint, outcome);
        if self.started {
            self.app.metrics().tokens(self.tokens);
        }
        tracing::info!(
            endpoint = self.endpoint,
            outcome = outcome.as_str(),
            client = self.client,
            model = self.model,
            request = self.id.as_ref().map(tracing::field::display),
            prompt_tokens = self.tokens.prompt,
            cached_tokens = self.tokens.cached,
            generated_tokens = self.tokens.generated,
            ttft_ms = self.first_text.map(millis),
            total_ms = millis(self.elapsed()),
            "request finished"
        );
    }
}

/// A generation whose events are accounted for.
pub(super) struct Tracked {
    generation: Generation,
    tracker: Tracker,
    /// The model stays while its generation lives.
    lease: Lease,
}

impl Tracked {
    /// Submits a request to the model of the lease.
    pub(super) fn submit(
        mut tracker: Tracker,
        lease: Lease,
        request: Request,
    ) -> Result<Self, ApiError> {
        tracker.goes_to(&lease.facts().model.name, 1);
        match lease.engine().submit_fairly(request) {
            Ok(generation) => Ok(Self {
                generation,
                tracker,
                lease,
            }),
            Err(error) => {
                let error = ApiError::from(&error);
                tracker.failed(&error);
                Err(error)
            }
        }
    }

    /// The next event; `None` after the terminal one.
    pub(super) async fn next(&mut self) -> Option<Event> {
        let event = self.generation.next().await;
        self.seen(event)
    }

    /// The next event if it is there already.
    pub(super) fn try_next(&mut self) -> Option<Event> {
        let event = self.generation.try_next();
        self.seen(event)
    }

    /// Since the request's arrival.
    pub(super) fn elapsed(&self) -> Duration {
        self.tracker.elapsed()
    }

    fn seen(&mut self, event: Option<Event>) -> Option<Event> {
        if let Some(event) = &event {
            self.tracker.observe(event, &self.lease);
        }
        event
    }
}

/// A random number in hexadecimal digits, for ids. Nobody's secret, but hard to meet twice.
pub(super) fn hex() -> String {
    use std::hash::BuildHasher;
    // The standard library's hash keys are random.
    let random = || std::hash::RandomState::new().hash_one(0u8);
    format!("{:016x}{:016x}", random(), random())
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
