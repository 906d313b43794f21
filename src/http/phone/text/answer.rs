//! The shapes of answers: one object, or the objects of a stream.

use super::super::super::error::ApiError;
use super::super::super::timings::Timings;
use crate::engine::{self, FinishReason, Outcome, Request, Sampling};
use crate::pool::Lease;
use serde::Serialize;

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Answer {
    text: String,
    thinking: String,
}

impl Answer {
    pub(super) fn push(&mut self, text: &str, thinking: bool) {
        let to = if thinking {
            &mut self.thinking
        } else {
            &mut self.text
        };
        to.push_str(text);
    }

    fn thinking(&self) -> Option<&str> {
        Some(self.thinking.as_str()).filter(|thinking| !thinking.is_empty())
    }
}

/// What stands around an answer and is known before it begins.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) model: String,
    pub(super) licence: Option<String>,
    pub(super) max_tokens: Option<u32>,
    pub(super) sampling: Sampling,
}

/// The one object of an answer that is not streamed.
#[derive(Serialize)]
pub(super) struct Whole<'a> {
    response: &'a str,
    model: &'a str,
    thinking: Option<&'a str>,
    license: Option<&'a str>,
    metadata: Metadata<'a>,
    /// Never a picture, but clients look for the field.
    image: Option<&'a str>,
    timings: Timings,
}

/// An object of a stream.
#[expect(
    clippy::large_enum_variant,
    reason = "lives until it is written, never in a collection"
)]
#[derive(Serialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub(super) enum Chunk<'a> {
    Token {
        token: &'a str,
        model: &'a str,
    },
    Thinking {
        token: &'a str,
        model: &'a str,
    },
    Complete {
        full_text: &'a str,
        success: bool,
        /// Milliseconds since the request's arrival.
        elapsed_time: u64,
        model: &'a str,
        metadata: Metadata<'a>,
        usage: Usage,
        timings: Timings,
        thinking: Option<&'a str>,
        license: Option<&'a str>,
    },
    Error {
        error: &'a str,
        code: &'static str,
        model: &'a str,
    },
}

/// Tokens of the prompt and of the answer.
#[expect(clippy::struct_field_names, reason = "the names are the wire's")]
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Usage {
    prompt_tokens: u32,
    cached_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
}

impl From<&engine::Usage> for Usage {
    fn from(usage: &engine::Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
        }
    }
}

/// How an answer was made.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata<'a> {
    model: &'a str,
    /// Milliseconds of prefill and decoding; waiting is in the timings.
    inference_time: u64,
    token_count: u32,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    backend: &'static str,
    is_multimodal: bool,
    prompt_tokens: u32,
    cached_tokens: u32,
    max_tokens: Option<u32>,
    seed: u64,
    finish_reason: FinishReason,
}

/// The answer of a model that was tried.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tested<'a> {
    success: bool,
    message: String,
    model_name: &'a str,
    #[serde(flatten)]
    whole: Whole<'a>,
}

impl Frame {
    /// Around the answers of a leased model to a request.
    pub(super) fn new(lease: &Lease, request: &Request) -> Self {
        let facts = lease.facts();
        Self {
            model: facts.model.name.clone(),
            licence: facts.licence_notice.clone(),
            max_tokens: request.max_tokens,
            sampling: request.sampling.clone(),
        }
    }

    pub(super) fn tested<'a>(&'a self, answer: &'a Answer, outcome: &Outcome) -> Tested<'a> {
        Tested {
            success: true,
            message: format!("{} answers", self.model),
            model_name: &self.model,
            whole: self.whole(answer, outcome),
        }
    }

    pub(super) fn whole<'a>(&'a self, answer: &'a Answer, outcome: &Outcome) -> Whole<'a> {
        Whole {
            response: &answer.text,
            model: &self.model,
            thinking: answer.thinking(),
            license: self.licence.as_deref(),
            metadata: self.metadata(outcome),
            image: None,
            timings: Timings::from(&outcome.usage),
        }
    }

    pub(super) fn token<'a>(&'a self, token: &'a str, thinking: bool) -> Chunk<'a> {
        let model = &self.model;
        if thinking {
            Chunk::Thinking { token, model }
        } else {
            Chunk::Token { token, model }
        }
    }

    pub(super) fn complete<'a>(
        &'a self,
        answer: &'a Answer,
        outcome: &Outcome,
        elapsed_time: u64,
    ) -> Chunk<'a> {
        Chunk::Complete {
            full_text: &answer.text,
            success: true,
            elapsed_time,
            model: &self.model,
            metadata: self.metadata(outcome),
            usage: Usage::from(&outcome.usage),
            timings: Timings::from(&outcome.usage),
            thinking: answer.thinking(),
            license: self.licence.as_deref(),
        }
    }

    pub(super) fn error<'a>(&'a self, error: &'a ApiError) -> Chunk<'a> {
        Chunk::Error {
            error: error.text(),
            code: error.code().as_str(),
            model: &self.model,
        }
    }

    fn metadata(&self, outcome: &Outcome) -> Metadata<'_> {
        let usage = &outcome.usage;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the cast saturates"
        )]
        let inference_time = (usage.prompt_ms + usage.predicted_ms).round() as u64;
        Metadata {
            model: &self.model,
            inference_time,
            token_count: usage.completion_tokens,
            temperature: self.sampling.temperature,
            top_k: self.sampling.top_k,
            top_p: self.sampling.top_p,
            backend: "CPU",
            is_multimodal: false,
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            max_tokens: self.max_tokens,
            seed: self.sampling.seed,
            finish_reason: outcome.reason,
        }
    }
}
