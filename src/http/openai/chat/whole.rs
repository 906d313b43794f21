//! The one object of an answer that is not streamed.

use super::super::answer::{ChatLogprobs, Usage};
use super::super::collect::{Collected, sum};
use super::Frame;
use crate::engine::ToolCall;
use crate::engine::wire::BUILD;
use crate::http::timings::Timings;
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    usage: Usage,
    system_fingerprint: &'static str,
    timings: Timings,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    /// Null only where there is nothing but calls.
    content: Option<&'a str>,
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call<'a>>,
}

#[derive(Serialize)]
struct Call<'a> {
    id: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: &'a str,
}

impl<'a> Completion<'a> {
    pub(super) fn new(frame: &'a Frame, answers: &'a [Collected]) -> Self {
        let usages: Vec<_> = answers.iter().map(Collected::usage).collect();
        let usage = sum(&usages, answers.len());
        let choices = answers.iter().enumerate();
        Self {
            id: &frame.id,
            object: "chat.completion",
            created: frame.created,
            model: &frame.model,
            choices: choices
                .map(|(index, answer)| choice(frame, index, answer))
                .collect(),
            usage: Usage::from(&usage),
            system_fingerprint: BUILD,
            timings: Timings::from(&usage),
        }
    }
}

fn choice<'a>(frame: &Frame, index: usize, answer: &'a Collected) -> Choice<'a> {
    let says_something = !answer.text.is_empty() || answer.calls.is_empty();
    let thinking = Some(answer.thinking.as_str());
    Choice {
        index,
        message: Message {
            role: "assistant",
            content: says_something.then_some(&answer.text),
            refusal: None,
            reasoning_content: thinking.filter(|thinking| !thinking.is_empty()),
            tool_calls: answer.calls.iter().map(call).collect(),
        },
        logprobs: frame.logprobs.then(|| ChatLogprobs::new(&answer.logprobs)),
        finish_reason: answer.finish_reason(frame.named_call),
    }
}

fn call(call: &ToolCall) -> Call<'_> {
    Call {
        id: &call.id,
        kind: "function",
        function: Function {
            name: &call.name,
            arguments: &call.arguments,
        },
    }
}
