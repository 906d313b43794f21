//! The objects of a stream: role first, then pieces, then why it ended; then, if asked for, the tokens counted.

use super::super::answer::{ChatLogprobs, Usage, UsageField};
use super::super::collect::{finish_reason, sum};
use super::super::error::Envelope;
use super::super::new_id;
use super::super::sse::{Out, Script};
use super::Frame;
use crate::engine::wire::BUILD;
use crate::engine::{self, Event, Logprob, Outcome};
use crate::http::error::ApiError;
use crate::http::timings::Timings;
use serde::Serialize;

/// Writes them.
pub(super) struct Chunks {
    frame: Frame,
    include_usage: bool,
    /// Of each choice, once it has ended.
    usages: Vec<engine::Usage>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'static str,
    choices: &'a [Choice<'a>],
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[Call<'a>; 1]>,
}

#[derive(Serialize)]
struct Call<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

impl Chunks {
    pub(super) fn new(frame: Frame, choices: usize, include_usage: bool) -> Self {
        Self {
            frame,
            include_usage,
            usages: vec![engine::Usage::default(); choices],
        }
    }

    fn chunk<'a>(&'a self, choices: &'a [Choice<'a>]) -> Chunk<'a> {
        Chunk {
            id: &self.frame.id,
            object: "chat.completion.chunk",
            created: self.frame.created,
            model: &self.frame.model,
            system_fingerprint: BUILD,
            choices,
            usage: UsageField::later(self.include_usage),
            timings: None,
        }
    }

    fn delta(&self, index: usize, delta: Delta<'_>, logprobs: &[Logprob], out: &mut Out) {
        let choice = Choice {
            index,
            delta,
            logprobs: (self.frame.logprobs && !logprobs.is_empty())
                .then(|| ChatLogprobs::new(logprobs)),
            finish_reason: None,
        };
        out.data(&self.chunk(&[choice]));
    }

    fn call(&self, index: usize, call: Call<'_>, out: &mut Out) {
        let delta = Delta {
            tool_calls: Some([call]),
            ..Delta::default()
        };
        self.delta(index, delta, &[], out);
    }

    /// A call begins with its name and no arguments.
    fn tool_call(&self, choice: usize, event: (u32, Option<String>, String), out: &mut Out) {
        let (index, name, arguments) = event;
        let begins = name.is_some();
        if let Some(name) = &name {
            let call = Call {
                index,
                id: Some(&new_id("call_")),
                kind: Some("function"),
                function: Function {
                    name: Some(name),
                    arguments: "",
                },
            };
            self.call(choice, call, out);
        }
        if !arguments.is_empty() || !begins {
            let call = Call {
                index,
                id: None,
                kind: None,
                function: Function {
                    name: None,
                    arguments: &arguments,
                },
            };
            self.call(choice, call, out);
        }
    }

    fn finish(&mut self, index: usize, outcome: Outcome, out: &mut Out) {
        let choice = Choice {
            index,
            delta: Delta::default(),
            logprobs: None,
            finish_reason: Some(finish_reason(outcome.reason, self.frame.named_call)),
        };
        out.data(&Chunk {
            timings: Some(Timings::from(&outcome.usage)),
            ..self.chunk(&[choice])
        });
        self.usages[index] = outcome.usage;
    }
}

impl Script for Chunks {
    fn begin(&mut self, out: &mut Out) {
        for choice in 0..self.usages.len() {
            let delta = Delta {
                role: Some("assistant"),
                content: Some(""),
                ..Delta::default()
            };
            self.delta(choice, delta, &[], out);
        }
    }

    fn event(&mut self, choice: usize, event: Event, out: &mut Out) {
        match event {
            Event::Text {
                text,
                thinking: true,
                ..
            } => {
                let delta = Delta {
                    reasoning_content: Some(&text),
                    ..Delta::default()
                };
                self.delta(choice, delta, &[], out);
            }
            Event::Text { text, logprobs, .. } => {
                let delta = Delta {
                    content: Some(&text),
                    ..Delta::default()
                };
                self.delta(choice, delta, &logprobs, out);
            }
            Event::ToolCall {
                index,
                name,
                arguments,
            } => self.tool_call(choice, (index, name, arguments), out),
            Event::Finished(outcome) => self.finish(choice, outcome, out),
            Event::Accepted { .. }
            | Event::Started { .. }
            | Event::Answered(_)
            | Event::Failed(_) => {}
        }
    }

    fn end(&mut self, out: &mut Out) {
        if self.include_usage {
            let usage = sum(&self.usages, self.usages.len());
            out.data(&Chunk {
                usage: UsageField::Now(Usage::from(&usage)),
                ..self.chunk(&[])
            });
        }
        out.done();
    }

    fn fail(&mut self, error: &ApiError, out: &mut Out) {
        out.data(&Envelope::from(error));
    }
}
