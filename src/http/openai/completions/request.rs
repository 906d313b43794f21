//! From a body to requests that can't be wrong.

use super::super::Asked;
use super::super::sampling::{CLASSIC_FIELDS, Common, FIELDS};
use super::super::{format, prompts};
use crate::engine::{Format, MOST_ALTERNATIVES, Prompt, Request};
use crate::http::error::ApiError;
use crate::http::group::MOST_CHOICES;
use crate::http::schema::{Body, Field, Shape, Table, needed, optional};
use crate::models::SamplingDefaults;

/// Tokens of an answer when a request names no number, as OpenAI has it.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Every field.
pub(in crate::http) const TABLE: Table = &[COMPLETION, FIELDS, CLASSIC_FIELDS, format::FIELDS];

#[rustfmt::skip] // A table reads best as one.
const COMPLETION: &[Field] = &[
    needed("prompt", prompts::PROMPTS, "what to continue: a text, a list of texts, token ids, or a list of those"),
    optional("max_tokens", Shape::at_least(0), "tokens of an answer at most; 16 if absent; 0 needs `echo`"),
    optional("echo", Shape::Flag, "true begins the answer with the prompt"),
    optional("logprobs", Shape::between(0, MOST_ALTERNATIVES), "log-probabilities, with so many alternatives for each token"),
    optional("best_of", Shape::between(1, MOST_CHOICES), "at most `n`: all answers that are made are given"),
    optional("suffix", Shape::Absent("this server can't write what comes before a text"), "not possible"),
];

/// What was asked, checked.
#[derive(Debug)]
pub(super) struct CompletionRequest {
    pub(super) common: Common,
    pub(super) logprobs: Option<u32>,
    prompts: Vec<Prompt>,
    max_tokens: u32,
    pub(super) echo: bool,
    format: Option<Format>,
}

impl Asked for CompletionRequest {
    fn model(&self) -> Option<&str> {
        self.common.model.as_deref()
    }
}

impl CompletionRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut body = Body::parse(body, TABLE)?;
        let common = Common::take(&mut body);
        let prompts = prompts::take(&mut body, "prompt");
        let echo = body.flag("echo").unwrap_or(false);
        let max_tokens = body.count("max_tokens").unwrap_or(DEFAULT_MAX_TOKENS);
        if max_tokens == 0 && !echo {
            return Err(ApiError::bad_request("`max_tokens` must be at least 1")
                .details("0 is for `echo`, which gives the prompt back")
                .param("max_tokens"));
        }
        if body
            .count("best_of")
            .is_some_and(|best| best as usize > common.n)
        {
            return Err(ApiError::bad_request("`best_of` must be `n` at most")
                .details("this server gives every answer that it makes")
                .param("best_of"));
        }
        if prompts.len() * common.n > MOST_CHOICES as usize {
            let error = format!("`n` answers to each prompt must be {MOST_CHOICES} at most");
            return Err(ApiError::bad_request(error).param("n"));
        }
        Ok(Self {
            logprobs: body.count("logprobs"),
            format: format::take(&mut body)?,
            common,
            prompts,
            max_tokens,
            echo,
        })
    }

    /// The engine's requests: the choices of the first prompt, then those of the next.
    pub(super) fn into_engine(self, model: &SamplingDefaults, client: &str) -> Vec<Request> {
        let mut requests = self.common.requests(model, client, &self.prompts);
        for request in &mut requests {
            request.max_tokens = Some(self.max_tokens);
            request.format.clone_from(&self.format);
            request.logprobs = self.logprobs;
            request.echo = self.echo;
        }
        requests
    }
}
