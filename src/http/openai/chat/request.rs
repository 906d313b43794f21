//! From a body to requests that can't be wrong.

use super::super::Asked;
use super::super::sampling::{CLASSIC_FIELDS, Common, FIELDS};
use super::super::{format, messages, tools};
use crate::engine::{Format, MOST_ALTERNATIVES, Message, Prompt, Request, Tools};
use crate::http::error::ApiError;
use crate::http::schema::{Body, Field, Shape, Table, needed, optional};
use crate::models::SamplingDefaults;

/// Every field.
pub(in crate::http) const TABLE: Table =
    &[CHAT, FIELDS, CLASSIC_FIELDS, format::FIELDS, tools::FIELDS];

#[rustfmt::skip] // A table reads best as one.
const CHAT: &[Field] = &[
    needed("messages", messages::MESSAGES, "the chat so far"),
    optional("max_completion_tokens", Shape::at_least(1), "tokens of an answer at most, reasoning included; the context's end is a limit in any case"),
    optional("max_tokens", Shape::at_least(1), "the older name of `max_completion_tokens`"),
    optional("logprobs", Shape::Flag, "true gives the log-probability of each token"),
    optional("top_logprobs", Shape::between(0, MOST_ALTERNATIVES), "alternatives with each token; needs `logprobs`"),
];

/// What was asked, checked.
#[derive(Debug)]
pub(super) struct ChatRequest {
    pub(super) common: Common,
    pub(super) tools: Option<Tools>,
    pub(super) logprobs: Option<u32>,
    messages: Vec<Message>,
    max_tokens: Option<u32>,
    format: Option<Format>,
}

impl Asked for ChatRequest {
    fn model(&self) -> Option<&str> {
        self.common.model.as_deref()
    }
}

impl ChatRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut body = Body::parse(body, TABLE)?;
        let logprobs = body.flag("logprobs").unwrap_or(false);
        let top_logprobs = body.count("top_logprobs");
        if top_logprobs.is_some() && !logprobs {
            return Err(ApiError::bad_request("`top_logprobs` needs `logprobs`")
                .details("set `logprobs` to true")
                .param("top_logprobs"));
        }
        let older = body.count("max_tokens");
        Ok(Self {
            common: Common::take(&mut body),
            tools: tools::take(&mut body)?,
            logprobs: logprobs.then(|| top_logprobs.unwrap_or(0)),
            messages: messages::chat(body.list("messages"))?,
            max_tokens: body.count("max_completion_tokens").or(older),
            format: format::take(&mut body)?,
        })
    }

    /// The engine's requests, one for each choice.
    pub(super) fn into_engine(self, model: &SamplingDefaults, client: &str) -> Vec<Request> {
        let prompt = Prompt::Messages(self.messages);
        let mut requests = self.common.requests(model, client, &[prompt]);
        for request in &mut requests {
            request.max_tokens = self.max_tokens;
            request.format.clone_from(&self.format);
            request.tools.clone_from(&self.tools);
            request.logprobs = self.logprobs;
        }
        requests
    }
}
