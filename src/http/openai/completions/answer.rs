//! The shapes of completions, with the older form of log-probabilities.

use super::super::answer::{Usage, UsageField, logprob};
use super::super::{new_id, now};
use super::request::CompletionRequest;
use crate::engine::wire::BUILD;
use crate::engine::{self, Logprob};
use crate::http::timings::Timings;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// What stands around an answer and is known before it begins.
#[derive(Debug)]
pub(super) struct Frame {
    id: String,
    created: u64,
    model: String,
    pub(super) n: usize,
    pub(super) logprobs: Option<u32>,
    echo: bool,
}

/// The one object of an answer, or one of a stream.
#[derive(Serialize)]
pub(super) struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
    system_fingerprint: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

#[derive(Serialize)]
pub(super) struct Choice<'a> {
    pub(super) text: &'a str,
    pub(super) index: usize,
    pub(super) logprobs: Option<LegacyLogprobs>,
    pub(super) finish_reason: Option<&'static str>,
}

/// Four lists of the same length, a place for each token.
#[derive(Serialize)]
pub(super) struct LegacyLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    /// Null where no alternatives were asked for.
    top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

/// How far a choice's text has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    tokens: usize,
    characters: usize,
}

impl Frame {
    pub(super) fn new(model: &str, asked: &CompletionRequest) -> Self {
        Self {
            id: new_id("cmpl-"),
            created: now(),
            model: model.to_owned(),
            n: asked.common.n,
            logprobs: asked.logprobs,
            echo: asked.echo,
        }
    }

    fn object<'a>(&'a self, choices: Vec<Choice<'a>>, usage: UsageField) -> Completion<'a> {
        Completion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.model,
            choices,
            usage,
            system_fingerprint: BUILD,
            timings: None,
        }
    }

    pub(super) fn whole<'a>(
        &'a self,
        choices: Vec<Choice<'a>>,
        usage: &engine::Usage,
    ) -> Completion<'a> {
        Completion {
            timings: Some(Timings::from(usage)),
            ..self.object(choices, UsageField::Now(Usage::from(usage)))
        }
    }

    pub(super) fn chunk<'a>(
        &'a self,
        choices: Vec<Choice<'a>>,
        include_usage: bool,
    ) -> Completion<'a> {
        self.object(choices, UsageField::later(include_usage))
    }

    /// The end of a choice.
    pub(super) fn last<'a>(
        &'a self,
        choices: Vec<Choice<'a>>,
        include_usage: bool,
        usage: &engine::Usage,
    ) -> Completion<'a> {
        Completion {
            timings: Some(Timings::from(usage)),
            ..self.chunk(choices, include_usage)
        }
    }

    /// The tokens of all choices.
    pub(super) fn counted(&self, usage: &engine::Usage) -> Completion<'_> {
        self.object(Vec::new(), UsageField::Now(Usage::from(usage)))
    }
}

impl LegacyLogprobs {
    /// Of the tokens that follow what came before.
    pub(super) fn new(frame: &Frame, logprobs: &[Logprob], position: &mut Position) -> Self {
        let alternatives = frame.logprobs.unwrap_or(0) > 0;
        let mut legacy = Self {
            tokens: Vec::new(),
            token_logprobs: Vec::new(),
            top_logprobs: alternatives.then(Vec::new),
            text_offset: Vec::new(),
        };
        for token in logprobs {
            // An echoed prompt's first token has nothing before it.
            let known = position.tokens > 0 || !frame.echo;
            legacy.tokens.push(shown(&token.chosen.bytes));
            legacy
                .token_logprobs
                .push(known.then(|| logprob(&token.chosen)));
            if let Some(top) = &mut legacy.top_logprobs {
                top.push(known.then(|| likeliest(token)));
            }
            legacy.text_offset.push(position.characters);
            position.tokens += 1;
            // Each character counts where it begins.
            let begins = |byte: &&u8| **byte & 0b1100_0000 != 0b1000_0000;
            position.characters += token.chosen.bytes.iter().filter(begins).count();
        }
        legacy
    }
}

/// The alternatives, and the token itself in any case.
fn likeliest(token: &Logprob) -> BTreeMap<String, f32> {
    let all = token.top.iter().chain([&token.chosen]);
    all.map(|one| (shown(&one.bytes), logprob(one))).collect()
}

/// A token's text; one that is no whole characters is shown as OpenAI shows it, `bytes:\xc3`.
fn shown(bytes: &[u8]) -> String {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.to_owned();
    }
    let mut shown = String::from("bytes:");
    for byte in bytes {
        // Writing to a string can't fail.
        let _ = write!(shown, "\\x{byte:02x}");
    }
    shown
}
