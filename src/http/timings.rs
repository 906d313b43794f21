//! Where an answer's time went, under the names that llama-server uses, and two of ours.

use crate::engine::Usage;
use serde::Serialize;

/// Tokens, milliseconds and speeds of one answer. A speed that nothing was measured for is `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Timings {
    /// Prompt tokens that were not decoded again.
    cache_n: u32,
    /// Prompt tokens that were decoded.
    prompt_n: u32,
    prompt_ms: f64,
    prompt_per_token_ms: Option<f64>,
    prompt_per_second: Option<f64>,
    /// Tokens of the answer.
    predicted_n: u32,
    predicted_ms: f64,
    predicted_per_token_ms: Option<f64>,
    predicted_per_second: Option<f64>,
    /// Tokens that were guessed and decoded together with one that was due.
    draft_n: u32,
    /// Those of them that the model said.
    draft_n_accepted: u32,
    /// Ours: from arrival to the start of prefill.
    queue_ms: f64,
    /// Ours: from arrival to the first token.
    ttft_ms: f64,
}

impl From<&Usage> for Timings {
    fn from(usage: &Usage) -> Self {
        let prompt_n = usage.prompt_tokens.saturating_sub(usage.cached_tokens);
        let predicted_n = usage.completion_tokens;
        Self {
            cache_n: usage.cached_tokens,
            prompt_n,
            prompt_ms: usage.prompt_ms,
            prompt_per_token_ms: ratio(usage.prompt_ms, prompt_n.into()),
            prompt_per_second: ratio(1000.0 * f64::from(prompt_n), usage.prompt_ms),
            predicted_n,
            predicted_ms: usage.predicted_ms,
            predicted_per_token_ms: ratio(usage.predicted_ms, predicted_n.into()),
            predicted_per_second: ratio(1000.0 * f64::from(predicted_n), usage.predicted_ms),
            draft_n: usage.drafted_tokens,
            draft_n_accepted: usage.draft_tokens_kept,
            queue_ms: usage.queue_ms,
            ttft_ms: usage.ttft_ms,
        }
    }
}

fn ratio(a: f64, b: f64) -> Option<f64> {
    (b > 0.0).then(|| a / b).filter(|ratio| ratio.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_numbers_or_null() {
        let usage = Usage {
            prompt_tokens: 10,
            cached_tokens: 8,
            completion_tokens: 4,
            prompt_ms: 20.0,
            predicted_ms: 100.0,
            ..Usage::default()
        };
        let timings = Timings::from(&usage);
        assert_eq!(timings.prompt_n, 2);
        assert_eq!(timings.prompt_per_second, Some(100.0));
        assert_eq!(timings.predicted_per_token_ms, Some(25.0));
        assert_eq!(timings.predicted_per_second, Some(40.0));
        let nothing = Timings::from(&Usage::default());
        assert_eq!(nothing.predicted_per_second, None);
        assert_eq!(nothing.prompt_per_token_ms, None);
    }
}
