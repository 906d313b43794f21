//! The repeat, frequency and presence penalties: what the latest tokens do to their logits.

use crate::engine::{Sampling, Token};
use std::collections::VecDeque;

/// The latest tokens, how often each occurs, and what that costs it.
#[derive(Clone, Debug)]
pub(super) struct Penalties {
    repeat: f32,
    frequency: f32,
    presence: f32,
    /// How many tokens we look at; 0 if no penalty is on.
    window: usize,
    /// The latest tokens, oldest first.
    latest: VecDeque<u32>,
    /// The distinct ones, in order of id: the scan over the logits meets them in this order.
    counts: Vec<Count>,
}

#[derive(Clone, Copy, Debug)]
struct Count {
    id: u32,
    times: u32,
}

impl Penalties {
    pub(super) fn new(sampling: &Sampling, prompt_tokens: &[Token]) -> Self {
        let neutral = (1.0, 0.0, 0.0);
        let Sampling {
            repeat_penalty: repeat,
            frequency_penalty: frequency,
            presence_penalty: presence,
            repeat_last_n,
            ..
        } = *sampling;
        let window = if (repeat, frequency, presence) == neutral {
            0
        } else {
            repeat_last_n as usize
        };
        let tail = &prompt_tokens[prompt_tokens.len().saturating_sub(window)..];
        let latest: VecDeque<u32> = tail.iter().map(|token| token.0).collect();
        let mut ids: Vec<u32> = latest.iter().copied().collect();
        ids.sort_unstable();
        let counts = ids.chunk_by(|a, b| a == b).map(|same| Count {
            id: same[0],
            times: u32::try_from(same.len()).unwrap_or(u32::MAX),
        });
        Self {
            repeat,
            frequency,
            presence,
            window,
            latest,
            counts: counts.collect(),
        }
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
        match self.counts.binary_search_by_key(&token.0, |count| count.id) {
            Ok(at) => self.counts[at].times += 1,
            Err(at) => self.counts.insert(
                at,
                Count {
                    id: token.0,
                    times: 1,
                },
            ),
        }
    }

    fn forget(&mut self, id: u32) {
        if let Ok(at) = self.counts.binary_search_by_key(&id, |count| count.id) {
            self.counts[at].times -= 1;
            if self.counts[at].times == 0 {
                self.counts.remove(at);
            }
        }
    }

    /// The recent tokens' indices and penalised logits, in order of id.
    pub(super) fn adjusted<'a>(
        &'a self,
        logits: &'a [f32],
    ) -> impl Iterator<Item = (usize, f32)> + 'a {
        self.counts.iter().filter_map(|count| {
            let index = count.id as usize;
            Some((index, self.adjust(*logits.get(index)?, count.times)))
        })
    }

    fn adjust(&self, logit: f32, times: u32) -> f32 {
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
