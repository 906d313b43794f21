//! Whole answers: events put together, one [`Collected`] for each choice.

use super::new_id;
use crate::engine::{Event, FinishReason, Logprob, Outcome, ToolCall, Usage};
use crate::http::error::ApiError;
use crate::http::group::{Group, ended_early};

/// An answer, or what there is of it.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) text: String,
    pub(super) thinking: String,
    pub(super) calls: Vec<ToolCall>,
    /// Of the answer's tokens, those of the reasoning left out.
    pub(super) logprobs: Vec<Logprob>,
    pub(super) outcome: Option<Outcome>,
}

impl Collected {
    /// Adds an event that is no end.
    pub(super) fn push(&mut self, event: Event) {
        match event {
            Event::Text {
                text,
                thinking: true,
                ..
            } => {
                self.thinking.push_str(&text);
            }
            Event::Text { text, logprobs, .. } => {
                self.text.push_str(&text);
                self.logprobs.extend(logprobs);
            }
            Event::ToolCall {
                index,
                name,
                arguments,
            } => self.call(index, name, &arguments),
            _ => {}
        }
    }

    fn call(&mut self, index: u32, name: Option<String>, arguments: &str) {
        let index = index as usize;
        if let Some(name) = name
            && index == self.calls.len()
        {
            self.calls.push(ToolCall {
                id: new_id("call_"),
                name,
                arguments: String::new(),
            });
        }
        if let Some(call) = self.calls.get_mut(index) {
            call.arguments.push_str(arguments);
        }
    }

    /// Why the answer ended, in OpenAI's words. After a call that the request named, the answer ends as any other does.
    pub(super) fn finish_reason(&self, named_call: bool) -> &'static str {
        let outcome = self.outcome.as_ref();
        outcome.map_or("stop", |outcome| finish_reason(outcome.reason, named_call))
    }

    pub(super) fn usage(&self) -> Usage {
        self.outcome
            .as_ref()
            .map(|outcome| outcome.usage.clone())
            .unwrap_or_default()
    }
}

/// See [`Collected::finish_reason`].
pub(super) fn finish_reason(reason: FinishReason, named_call: bool) -> &'static str {
    match reason {
        FinishReason::ToolCalls if !named_call => "tool_calls",
        FinishReason::Stop | FinishReason::ToolCalls => "stop",
        FinishReason::Length | FinishReason::Deadline => "length",
    }
}

/// Collects whole answers. When the client leaves, this future is dropped, and the generations with it; so are they when one
/// of them fails.
pub(super) async fn collect(mut group: Group, choices: usize) -> Result<Vec<Collected>, ApiError> {
    let mut answers: Vec<Collected> = (0..choices).map(|_| Collected::default()).collect();
    while let Some((choice, event)) = group.next().await {
        match event {
            Event::Failed(error) => return Err(ApiError::from(&error)),
            Event::Finished(outcome) => answers[choice].outcome = Some(outcome),
            event => answers[choice].push(event),
        }
    }
    if answers.iter().any(|answer| answer.outcome.is_none()) {
        return Err(ended_early());
    }
    Ok(answers)
}

/// What several answers took together: `prompts` of them read a prompt each, and the choices of one share it.
pub(super) fn sum(usages: &[Usage], choices_of_a_prompt: usize) -> Usage {
    let mut sum = Usage::default();
    for (choice, usage) in usages.iter().enumerate() {
        if choice % choices_of_a_prompt.max(1) == 0 {
            sum.prompt_tokens += usage.prompt_tokens;
            sum.cached_tokens += usage.cached_tokens;
            sum.prompt_ms += usage.prompt_ms;
        }
        sum.completion_tokens += usage.completion_tokens;
        sum.drafted_tokens += usage.drafted_tokens;
        sum.draft_tokens_kept += usage.draft_tokens_kept;
        sum.reasoning_tokens += usage.reasoning_tokens;
        sum.queue_ms = sum.queue_ms.max(usage.queue_ms);
        sum.ttft_ms = sum.ttft_ms.max(usage.ttft_ms);
        sum.predicted_ms = sum.predicted_ms.max(usage.predicted_ms);
    }
    sum
}
