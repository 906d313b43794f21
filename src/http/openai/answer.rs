//! Shapes that several resources share: tokens counted, log-probabilities.

use crate::engine::{self, Likelihood, Logprob};
use serde::{Serialize, Serializer};

/// Less likely than this is written as this, as OpenAI does.
const LEAST_LOGPROB: f32 = -9999.0;

/// Tokens of a request and of its answers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u32,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl From<&engine::Usage> for Usage {
    fn from(usage: &engine::Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
            prompt_tokens_details: PromptDetails {
                cached_tokens: usage.cached_tokens,
            },
            completion_tokens_details: CompletionDetails {
                reasoning_tokens: usage.reasoning_tokens,
            },
        }
    }
}

/// `usage` is left out unless it was asked for; then it is null until the end.
pub(super) enum UsageField {
    Absent,
    Later,
    Now(Usage),
}

impl UsageField {
    pub(super) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Before the end.
    pub(super) fn later(asked: bool) -> Self {
        if asked { Self::Later } else { Self::Absent }
    }
}

impl Serialize for UsageField {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Now(usage) => usage.serialize(serializer),
            Self::Absent | Self::Later => serializer.serialize_none(),
        }
    }
}

/// Log-probabilities of a chat's answer.
#[derive(Debug, Serialize)]
pub(super) struct ChatLogprobs {
    content: Vec<TokenLogprob>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct TokenLogprob {
    #[serde(flatten)]
    token: OneLogprob,
    top_logprobs: Vec<OneLogprob>,
}

#[derive(Debug, Serialize)]
struct OneLogprob {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
}

impl From<&Likelihood> for OneLogprob {
    fn from(likelihood: &Likelihood) -> Self {
        let bytes = &likelihood.bytes;
        Self {
            token: String::from_utf8_lossy(bytes).into_owned(),
            logprob: logprob(likelihood),
            bytes: (!bytes.is_empty()).then(|| bytes.clone()),
        }
    }
}

impl ChatLogprobs {
    pub(super) fn new(logprobs: &[Logprob]) -> Self {
        let content = logprobs.iter().map(|logprob| TokenLogprob {
            token: OneLogprob::from(&logprob.chosen),
            top_logprobs: logprob.top.iter().map(OneLogprob::from).collect(),
        });
        Self {
            content: content.collect(),
            refusal: None,
        }
    }
}

/// A logarithm that clients can read.
pub(super) fn logprob(likelihood: &Likelihood) -> f32 {
    likelihood.logprob.max(LEAST_LOGPROB)
}
