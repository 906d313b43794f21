//! A loaded model whose speed is measured.
//!
//! Prompts are random tokens, as llama-bench has them; they are counted, not guessed. Answers go on past end tokens. Times are
//! the engine's own, from the first step to the last token.

use super::median;
use crate::engine::{Event, ModelInfo, Prompt, Request, Token, Usage};
use crate::models::Model;
use crate::pool::{Lease, Pool, PoolSettings};
use crate::serve;
use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use serde::Serialize;
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;
use tokio::time::timeout_at;

/// Tokens of the prompts before answers that are generated together.
pub const SHORT_PROMPT: u32 = 32;

/// A model in memory, and nobody else's.
pub struct Subject {
    pool: Pool,
    lease: Lease,
    info: Arc<ModelInfo>,
    /// Each prompt is another one.
    prompts: Cell<u64>,
    /// Nothing takes longer than until then.
    until: Instant,
}

/// What answers that were generated at once took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Streams {
    /// How many.
    pub answers: u32,
    /// Tokens per second of all together.
    pub tokens_per_second: f64,
    /// Of each, in the middle.
    pub each: f64,
    /// Milliseconds to the first token, in the middle.
    pub first_token_ms: f64,
}

impl Subject {
    /// Loads a model as a server would. Whatever it is asked ends at `until`, as well as that goes: answers with what they have,
    /// prompts with an error.
    pub async fn load(settings: PoolSettings, model: &Model, until: Instant) -> Result<Self> {
        let pool = Pool::new(settings);
        let lease = timeout_at(until.into(), serve::load(&pool, model)).await;
        let lease = lease.context("there was no time left to load the model")??;
        let crate::engine::EngineState::Ready(info) = lease.engine().state() else {
            bail!("{} is gone as soon as it was loaded", model.name);
        };
        Ok(Self {
            pool,
            lease,
            info,
            prompts: Cell::new(0),
            until,
        })
    }

    /// What the worker says about it.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The model and how it is run.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The lease on it.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Ends its process.
    pub async fn end(self) {
        self.pool.shutdown().await;
    }

    /// Computes a little, so that pages are mapped and the pace of steps is known.
    pub async fn warm_up(&self) -> Result<()> {
        self.prefill(128.min(self.info.context_per_sequence / 2))
            .await?;
        self.decode(1, 8).await?;
        Ok(())
    }

    /// Tokens per second of a prompt of so many tokens.
    pub async fn prefill(&self, tokens: u32) -> Result<f64> {
        let usage = self.ask(request(self.prompt(tokens), 1, false)).await?;
        per_second(
            usage.prompt_tokens.saturating_sub(usage.cached_tokens),
            usage.prompt_ms,
        )
    }

    /// Tokens per second of one answer of so many tokens, behind `depth` others. What is before it is decoded once and then
    /// reused.
    pub async fn decode(&self, depth: u32, tokens: u32) -> Result<f64> {
        let before = random(u64::MAX, depth.max(1), self.info.vocab_size);
        let usage = self.ask(request(before, tokens + 1, true)).await?;
        per_second(
            usage.completion_tokens.saturating_sub(1),
            usage.predicted_ms,
        )
    }

    /// Answers of so many tokens at once.
    pub async fn streams(&self, answers: u32, tokens: u32) -> Result<Streams> {
        let requests = (0..answers).map(|_| {
            let prompt = self.prompt(SHORT_PROMPT);
            self.ask(request(prompt, tokens + 1, false))
        });
        let usages = try_join_all(requests).await?;
        let each = usages.iter().map(|usage| {
            per_second(
                usage.completion_tokens.saturating_sub(1),
                usage.predicted_ms,
            )
        });
        let each: Vec<f64> = each.collect::<Result<_>>()?;
        let first: Vec<f64> = usages.iter().map(|usage| usage.ttft_ms).collect();
        Ok(Streams {
            answers,
            tokens_per_second: each.iter().sum(),
            each: median(&each),
            first_token_ms: median(&first),
        })
    }

    /// A prompt that was not there before.
    pub fn prompt(&self, tokens: u32) -> Vec<Token> {
        let number = self.prompts.get();
        self.prompts.set(number + 1);
        random(number, tokens, self.info.vocab_size)
    }

    async fn ask(&self, mut request: Request) -> Result<Usage> {
        let left = self.until.saturating_duration_since(Instant::now());
        request.deadline_ms = Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        let mut generation = self.lease.engine().submit(request)?;
        loop {
            match generation.next().await.context("the engine ended")? {
                Event::Finished(outcome) => return Ok(outcome.usage),
                Event::Failed(error) => return Err(error.into()),
                _ => {}
            }
        }
    }
}

fn request(prompt: Vec<Token>, max_tokens: u32, cache_prompt: bool) -> Request {
    Request {
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        cache_prompt,
        ..Request::new("bench", Prompt::Tokens(prompt))
    }
}

/// Tokens by a linear congruential generator: every run has the same ones.
fn random(seed: u64, count: u32, vocabulary: u32) -> Vec<Token> {
    // Knuth's constants; the upper bits are the random ones.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let drawn = (state >> 33) % u64::from(vocabulary.max(1));
        Token(u32::try_from(drawn).unwrap_or(0))
    };
    (0..count).map(|_| next()).collect()
}

fn per_second(tokens: u32, ms: f64) -> Result<f64> {
    if tokens == 0 || ms <= 0.0 {
        bail!("nothing was measured: {tokens} tokens in {ms} ms");
    }
    Ok(f64::from(tokens) * 1000.0 / ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_are_of_the_vocabulary_and_differ_from_the_first_token_on() {
        let prompts: Vec<_> = (0..20).map(|seed| random(seed, 64, 49_152)).collect();
        assert!(prompts.iter().flatten().all(|token| token.0 < 49_152));
        let mut firsts: Vec<_> = prompts.iter().map(|prompt| prompt[0]).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 20, "no two share a prefix");
        assert_eq!(
            random(3, 64, 49_152),
            prompts[3],
            "every run has the same ones"
        );
        assert_eq!(random(1, 2, 0), [Token(0); 2]);
    }

    #[test]
    fn nothing_has_no_speed() {
        assert_eq!(per_second(64, 640.0).expect("a speed").to_string(), "100");
        assert!(per_second(0, 5.0).is_err() && per_second(5, 0.0).is_err());
    }
}
