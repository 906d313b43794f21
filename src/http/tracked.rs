//! Accounts: each request for an answer is counted and logged exactly once, however it ends.
//!
//! A [`Tracker`] begins when a request arrives and tells the metrics and the log when it is dropped. Without an outcome by
//! then, the client has left: its future or its body was dropped, and the generation with it.

use super::app::App;
use super::body::Memory;
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
    outcome: Option<Outcome>,
}

impl Tracker {
    pub(super) fn new(app: &App, endpoint: &'static str, client: String) -> Self {
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
            outcome: None,
        }
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

    fn observe(&mut self, event: &Event) {
        match event {
            Event::Accepted { prompt_tokens, .. } => {
                self.tokens.prompt = *prompt_tokens;
                self.memory = Memory::default();
            }
            Event::Started { cached_tokens } => {
                self.started = true;
                self.tokens.cached = *cached_tokens;
                self.app.metrics().queued(self.elapsed());
            }
            Event::Text { .. } | Event::ToolCall { .. } => self.spoke(),
            Event::Finished(outcome) => {
                self.tokens.generated = outcome.usage.completion_tokens;
                self.outcome = Some(match outcome.reason {
                    FinishReason::Stop | FinishReason::ToolCalls => Outcome::Ok,
                    FinishReason::Length => Outcome::Length,
                    FinishReason::Deadline => {
                        self.app.metrics().limit(Limit::Deadline);
                        Outcome::Deadline
                    }
                });
            }
            Event::Answered(_) => self.outcome = Some(Outcome::Ok),
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
        // Pieces until the true number is known at the end.
        self.tokens.generated += 1;
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or(Outcome::Cancelled);
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
    _lease: Lease,
}

impl Tracked {
    /// Submits a request to the model of the lease.
    pub(super) fn submit(
        mut tracker: Tracker,
        lease: Lease,
        request: Request,
    ) -> Result<Self, ApiError> {
        tracker.model = Some(lease.facts().model.name.clone());
        match lease.engine().submit(request) {
            Ok(generation) => Ok(Self {
                generation,
                tracker,
                _lease: lease,
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
            self.tracker.observe(event);
        }
        event
    }
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
