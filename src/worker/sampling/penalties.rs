//! The repeat, frequency and presence penalties: what the latest tokens do to their logits. And biases, which come before them.

use crate::engine::{Sampling, Token};
use std::collections::VecDeque;

/// The latest tokens, how often each occurs, and what that costs it; and the biases of single tokens.
#[derive(Clone, Debug)]
pub(super) struct Penalties {
    repeat: f32,
    frequency: f32,
    presence: f32,
    /// How many tokens we look at; 0 if no penalty is on.
    window: usize,
    /// The latest tokens, oldest first.
    latest: VecDeque<u32>,
    /// The distinct ones and those with a bias, in order of id: the scan over the logits meets them in this order.
    counts: Vec<Count>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    id: u32,
    times: u32,
    bias: f32,
}

impl Penalties {
    pub(super) fn new(sampling: &Sampling, prompt_tokens: &[Token]) -> Self {
        let neutral = (1.0, 0.0, 0.0);
        let Sampling {
            repeat_penalty: repeat,
            frequency_penalty: frequency,
            presence_penalty: presence,
            repeat_last_n,
            ref logit_bias,
            ..
        } = *sampling;
        let window = if (repeat, frequency, presence) == neutral {
            0
        } else {
            repeat_last_n as usize
        };
        let tail = &prompt_tokens[prompt_tokens.len().saturating_sub(window)..];
        let mut penalties = Self {
            repeat,
            frequency,
            presence,
            window,
            latest: VecDeque::new(),
            counts: Vec::new(),
        };
        for (token, bias) in logit_bias {
            penalties.count(token.0).bias = *bias;
        }
        for token in tail {
            penalties.accept(*token);
        }
        penalties
    }

    /// Notes the latest token and forgets the one that drops out of the window.
    pub(super) fn accept(&mut self, token: Token) {
        if self.window == 0 {
            return;
        }
        if self.latest.len() >= self.window
            && let Some(oldest) = self.latest.pop_front()
        {
            self.forget(oldest);
        }
        self.latest.push_back(token.0);
        self.count(token.0).times += 1;
    }

    fn forget(&mut self, id: u32) {
        let count = self.count(id);
        count.times = count.times.saturating_sub(1);
        if count.times == 0 && count.bias == 0.0 {
            self.counts.retain(|count| count.id != id);
        }
    }

    /// The entry of a token, made if there is none.
    fn count(&mut self, id: u32) -> &mut Count {
        let at = match self.counts.binary_search_by_key(&id, |count| count.id) {
            Ok(at) => at,
            Err(at) => {
                let none = Count {
                    id,
                    times: 0,
                    bias: 0.0,
                };
                self.counts.insert(at, none);
                at
            }
        };
        &mut self.counts[at]
    }

    /// The indices of recent and biased tokens and what their logits become, in order of id.
    pub(super) fn adjusted<'a>(
        &'a self,
        logits: &'a [f32],
    ) -> impl Iterator<Item = (usize, f32)> + 'a {
        self.counts.iter().filter_map(|count| {
            let index = count.id as usize;
            Some((index, self.adjust(*logits.get(index)?, *count)))
        })
    }

    fn adjust(&self, logit: f32, Count { times, bias, .. }: Count) -> f32 {
        let logit = logit + bias;
        // What is forbidden stays so, whatever the penalties are.
        if times == 0 || logit == f32::NEG_INFINITY {
            return logit;
        }
        let logit = if logit > 0.0 {
            logit / self.repeat
        } else {
            logit * self.repeat
        };
        // Exact: nobody repeats a token 16 million times.
        #[expect(clippy::cast_precision_loss, reason = "a count below 2^24")]
        let times = times as f32;
        logit - times * self.frequency - self.presence
    }
}
