//! A response while it comes to be: events of the engine in, items and OpenAI's events out.
//!
//! One item is open at a time: reasoning, then the message, then the calls. An answer that is not streamed goes the same way,
//! with nobody listening.

use super::item::{Item, Kind};
use super::request::Echo;
use crate::engine::wire::BUILD;
use crate::engine::{Event, FinishReason, Likelihood, Logprob, Outcome, Request, Usage};
use crate::http::error::ApiError;
use crate::http::openai::answer::logprob;
use crate::http::openai::{new_id, now};
use crate::http::timings::Timings;
use serde_json::{Value, json};

/// Hears events: the name and the object of each.
pub(super) type Listener<'a> = &'a mut dyn FnMut(&str, Value);

/// A response under way.
pub(super) struct Building {
    id: String,
    created: u64,
    model: String,
    echo: Echo,
    temperature: f32,
    top_p: f32,
    max_tokens: Option<u32>,
    top_logprobs: u32,
    /// Events so far.
    sequence: u64,
    items: Vec<Item>,
    end: Option<End>,
}

/// How it ended.
enum End {
    Finished(Outcome),
    Failed(String),
}

impl Building {
    pub(super) fn new(model: &str, echo: Echo, request: &Request) -> Self {
        Self {
            id: new_id("resp_"),
            created: now(),
            model: model.to_owned(),
            echo,
            temperature: request.sampling.temperature,
            top_p: request.sampling.top_p,
            max_tokens: request.max_tokens,
            top_logprobs: request.logprobs.unwrap_or(0),
            sequence: 0,
            items: Vec::new(),
            end: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.end.is_some()
    }

    /// The request was accepted.
    pub(super) fn begin(&mut self, listener: Listener<'_>) {
        for name in ["response.created", "response.in_progress"] {
            let response = self.response();
            self.tell(listener, name, json!({"response": response}));
        }
    }

    pub(super) fn event(&mut self, event: Event, listener: Listener<'_>) {
        match event {
            Event::Text {
                text,
                thinking,
                logprobs,
            } => {
                let kind = if thinking {
                    Kind::Reasoning
                } else {
                    Kind::Message
                };
                self.open(kind, listener);
                self.add(&text, &logprobs, listener);
            }
            Event::ToolCall {
                name, arguments, ..
            } => {
                if let Some(name) = name {
                    let call_id = new_id("call_");
                    self.open(Kind::Call { call_id, name }, listener);
                }
                self.add(&arguments, &[], listener);
            }
            Event::Finished(outcome) => self.finish(outcome, listener),
            Event::Accepted { .. }
            | Event::Started { .. }
            | Event::Answered(_)
            | Event::Failed(_) => {}
        }
    }

    pub(super) fn fail(&mut self, error: &ApiError, listener: Listener<'_>) {
        self.end = Some(End::Failed(error.text().to_owned()));
        let response = self.response();
        self.tell(listener, "response.failed", json!({"response": response}));
    }

    fn finish(&mut self, outcome: Outcome, listener: Listener<'_>) {
        let is_cut = matches!(
            outcome.reason,
            FinishReason::Length | FinishReason::Deadline
        );
        // An answer without a word is an empty message all the same.
        if self.items.is_empty() {
            self.open(Kind::Message, listener);
        }
        self.close(if is_cut { "incomplete" } else { "completed" }, listener);
        self.end = Some(End::Finished(outcome));
        let name = if is_cut {
            "response.incomplete"
        } else {
            "response.completed"
        };
        let response = self.response();
        self.tell(listener, name, json!({"response": response}));
    }

    /// Makes sure that an item of this kind is open.
    fn open(&mut self, kind: Kind, listener: Listener<'_>) {
        if self.items.last().is_some_and(|item| item.goes_on(&kind)) {
            return;
        }
        self.close("completed", listener);
        let item = Item {
            id: new_id(kind.prefix()),
            kind,
            text: String::new(),
            logprobs: Vec::new(),
            status: "in_progress",
        };
        let added = json!({"output_index": self.items.len(), "item": item.begun()});
        self.tell(listener, "response.output_item.added", added);
        self.items.push(item);
        self.tell_part(listener, "response.content_part.added");
    }

    /// Adds to the open item.
    fn add(&mut self, text: &str, logprobs: &[Logprob], listener: Listener<'_>) {
        let says_nothing = text.is_empty() && logprobs.is_empty();
        let Some(item) = self.items.last_mut().filter(|_| !says_nothing) else {
            return;
        };
        item.text.push_str(text);
        let logprobs: Vec<Value> = logprobs.iter().map(scored).collect();
        item.logprobs.extend_from_slice(&logprobs);
        let (name, delta) = match item.kind {
            Kind::Reasoning => ("response.reasoning_text.delta", json!({"content_index": 0})),
            Kind::Message => (
                "response.output_text.delta",
                json!({"content_index": 0, "logprobs": logprobs}),
            ),
            Kind::Call { .. } => ("response.function_call_arguments.delta", json!({})),
        };
        let mut delta = self.located(delta);
        delta["delta"] = text.into();
        self.tell(listener, name, delta);
    }

    /// Ends the open item, if there is one.
    fn close(&mut self, status: &'static str, listener: Listener<'_>) {
        let Some(item) = self.items.last_mut().filter(|item| item.is_open()) else {
            return;
        };
        item.status = status;
        let text = item.text.clone();
        let (name, done) = match &item.kind {
            Kind::Reasoning => (
                "response.reasoning_text.done",
                json!({"content_index": 0, "text": text}),
            ),
            Kind::Message => (
                "response.output_text.done",
                json!({"content_index": 0, "text": text, "logprobs": item.logprobs}),
            ),
            Kind::Call { name, .. } => (
                "response.function_call_arguments.done",
                json!({"name": name, "arguments": text}),
            ),
        };
        let item = item.whole();
        let done = self.located(done);
        self.tell(listener, name, done);
        self.tell_part(listener, "response.content_part.done");
        let done = json!({"output_index": self.items.len() - 1, "item": item});
        self.tell(listener, "response.output_item.done", done);
    }

    /// Reasoning and messages have one part each; calls have none.
    fn tell_part(&mut self, listener: Listener<'_>, name: &str) {
        if let Some(part) = self.items.last().and_then(Item::part) {
            let told = self.located(json!({"content_index": 0, "part": part}));
            self.tell(listener, name, told);
        }
    }

    /// An event about the latest item.
    fn located(&self, mut event: Value) -> Value {
        event["output_index"] = self.items.len().saturating_sub(1).into();
        event["item_id"] = self.items.last().map(|item| item.id.as_str()).into();
        event
    }

    fn tell(&mut self, listener: Listener<'_>, name: &str, mut event: Value) {
        event["type"] = name.into();
        event["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        listener(name, event);
    }

    /// The response as it stands.
    pub(super) fn response(&self) -> Value {
        let (status, why_cut, error) = match &self.end {
            None => ("in_progress", Value::Null, Value::Null),
            Some(End::Failed(message)) => (
                "failed",
                Value::Null,
                json!({"code": "server_error", "message": message}),
            ),
            Some(End::Finished(outcome)) => match outcome.reason {
                FinishReason::Stop | FinishReason::ToolCalls => {
                    ("completed", Value::Null, Value::Null)
                }
                FinishReason::Length | FinishReason::Deadline => (
                    "incomplete",
                    json!({"reason": "max_output_tokens"}),
                    Value::Null,
                ),
            },
        };
        let usage = match &self.end {
            Some(End::Finished(outcome)) => Some(&outcome.usage),
            _ => None,
        };
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": error,
            "incomplete_details": why_cut,
            "instructions": self.echo.instructions,
            "max_output_tokens": self.max_tokens,
            "metadata": self.echo.metadata,
            "model": self.model,
            "output": self.items.iter().map(Item::whole).collect::<Vec<_>>(),
            "parallel_tool_calls": self.echo.parallel,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "store": false,
            "system_fingerprint": BUILD,
            "temperature": short(self.temperature),
            "text": {"format": self.echo.format},
            "tool_choice": self.echo.tool_choice,
            "tools": self.echo.tools,
            "top_logprobs": self.top_logprobs,
            "top_p": short(self.top_p),
            "truncation": "disabled",
            "usage": usage.map(counted),
            "timings": usage.map(Timings::from),
        })
    }
}

/// The tokens, in the words of responses.
fn counted(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens.saturating_add(usage.completion_tokens),
    })
}

/// A token with its log-probability and its alternatives'.
fn scored(token: &Logprob) -> Value {
    let one = |one: &Likelihood| {
        let text = String::from_utf8_lossy(&one.bytes);
        json!({"token": text, "logprob": short(logprob(one)), "bytes": one.bytes})
    };
    let mut scored = one(&token.chosen);
    scored["top_logprobs"] = token.top.iter().map(one).collect();
    scored
}

/// A number with the digits that it was asked with: 0.95, not 0.949999988079071.
fn short(number: f32) -> Value {
    serde_json::from_str(&number.to_string()).unwrap_or_else(|_| number.into())
}
