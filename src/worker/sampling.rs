//! Logits to a token.
//!
//! The stages and their order are those of llama.cpp's default chain: biases, penalties, top-k, top-p, min-p, temperature, draw.
//!
//! Where only some tokens may come, one is drawn from all of them first. Only if that one may not come, another is drawn from
//! those that may, by a random number of its own: [`Sampler::sample_among`]. Without truncation this gives each allowed token exactly
//! its share of the allowed probability p(x)/Z: p(x) by the first draw, and (1 − Z) · p(x)/Z by the second. Greedy, it is the largest
//! allowed logit. With truncation a token that may come keeps the probability that it has among all, and only what fell on forbidden ones
//! is shared out by the stages over the allowed ones; llama.cpp's server does the same. What it saves is the set of allowed tokens, which
//! costs up to some milliseconds, while asking about one token costs less than one microsecond.
//!
//! The draw is a function of seed, position and the distribution, and of nothing else: who shares the batch, what was
//! cached or drawn before does not show. Survivors are laid out in order of id, which rounding errors in the logits disturb
//! least.
//!
//! The logits are only read. NaN counts as −∞, and a token with −∞ is not chosen while there is any other. Nothing here
//! panics, whatever the logits and the settings are.

mod likelihood;
mod penalties;
mod scan;
mod truncate;

#[cfg(test)]
mod tests;

use crate::engine::{Sampling, Token};
pub use likelihood::Likelihoods;
use penalties::Penalties;
use scan::{CHUNK, Candidate, Scan, exp};
use truncate::Truncation;

/// Chooses the tokens of one generation.
#[derive(Clone, Debug)]
pub struct Sampler {
    penalties: Penalties,
    truncation: Truncation,
    /// One divided by the temperature; `None` is greedy.
    scale: Option<f32>,
    seed: u64,
    scan: Scan,
    /// The tokens to draw from, kept for their memory.
    kept: Vec<Candidate>,
    /// The logits with those of forbidden tokens taken away, kept for their memory.
    allowed: Vec<f32>,
}

impl Sampler {
    /// A sampler whose penalties look at the end of the prompt at first.
    pub fn new(sampling: &Sampling, prompt_tokens: &[Token]) -> Self {
        let temperature = sampling.temperature;
        // Neither 0 nor ∞, which times the other would be NaN.
        let scale = (1.0 / temperature).clamp(f32::MIN_POSITIVE, f32::MAX);
        Self {
            penalties: Penalties::new(sampling, prompt_tokens),
            truncation: Truncation::new(sampling),
            scale: (temperature > 0.0).then_some(scale),
            seed: sampling.seed,
            scan: Scan::default(),
            kept: Vec::new(),
            allowed: Vec::new(),
        }
    }

    /// The token for `position`, chosen from the logits of the whole vocabulary in order of id.
    pub fn sample(&mut self, logits: &[f32], position: u32) -> Token {
        self.choose(logits, random(self.seed, position))
    }

    /// The token for `position` among those whose bits are set in `mask` (one bit for each token, lowest first), where the one that
    /// [`Sampler::sample`] chose may not come. At least one bit must be set.
    pub fn sample_among(&mut self, logits: &[f32], position: u32, mask: &[u32]) -> Token {
        let mut allowed = std::mem::take(&mut self.allowed);
        forbid(logits, mask, &mut allowed);
        // Another number than the first draw's: that one led to a forbidden token, so it is not random any more.
        let token = self.choose(&allowed, random(!self.seed, position));
        self.allowed = allowed;
        if is_set(mask, token.0 as usize) {
            return token;
        }
        // All that may come have NaN or −∞ for logits.
        let first = (0..logits.len()).find(|id| is_set(mask, *id));
        Token(
            first
                .and_then(|id| u32::try_from(id).ok())
                .unwrap_or_default(),
        )
    }

    fn choose(&mut self, logits: &[f32], random: f64) -> Token {
        let max = self.scan.begin(logits, self.penalties.adjusted(logits));
        if max == f32::NEG_INFINITY {
            return Token(0);
        }
        let Some(scale) = self.scale else {
            return Token(self.scan.first_at(logits, max));
        };
        // +∞ would make differences of NaN. As the largest finite number it still leaves nothing to the others.
        let max = max.min(f32::MAX);
        if self.truncation.is_off(logits.len()) {
            return self.draw_from_all(logits, max, scale, random);
        }
        self.truncation
            .survivors(&mut self.scan, logits, max, &mut self.kept);
        let weights = self.kept.iter().map(|kept| exp((kept.logit - max) * scale));
        let total: f64 = weights.clone().map(f64::from).sum();
        let index = pick(weights, &mut (random * total));
        Token(self.kept.get(index).map_or(0, |kept| kept.id))
    }

    /// Tells the penalties which token the generation went on with.
    pub fn accept(&mut self, token: Token) {
        self.penalties.accept(token);
    }

    /// Draws without truncation, in two passes and without collecting anything.
    fn draw_from_all(&mut self, logits: &[f32], max: f32, scale: f32, random: f64) -> Token {
        let mut target = random * self.scan.mass(logits, max, scale, f32::MIN);
        let chunk = pick(self.scan.chunk_sums(), &mut target);
        let weights = self
            .scan
            .chunk(logits, chunk)
            .iter()
            .map(|logit| exp((logit - max) * scale));
        let id = chunk * CHUNK + pick(weights, &mut target);
        Token(u32::try_from(id).unwrap_or_default())
    }
}

/// Copies the logits, −∞ for those of tokens whose bits are not set.
fn forbid(logits: &[f32], mask: &[u32], allowed: &mut Vec<f32>) {
    allowed.clear();
    for (logits, word) in logits
        .chunks(32)
        .zip(mask.iter().chain(std::iter::repeat(&0)))
    {
        let bits = (0..32).map(|bit| word >> bit & 1 == 1);
        let each = logits.iter().zip(bits);
        allowed.extend(each.map(|(logit, may)| if may { *logit } else { f32::NEG_INFINITY }));
    }
}

fn is_set(mask: &[u32], id: usize) -> bool {
    mask.get(id / 32)
        .is_some_and(|word| word >> (id % 32) & 1 == 1)
}

/// The index in which `target` falls when the weights are laid end to end from 0; it is lowered by those before. Where
/// rounding puts it behind the end, the last weight counts. An index without weight is never chosen if there is another.
fn pick(weights: impl Iterator<Item = f32>, target: &mut f64) -> usize {
    let mut last = 0;
    for (index, weight) in weights.enumerate() {
        if weight > 0.0 {
            let weight = f64::from(weight);
            if *target < weight {
                return index;
            }
            *target -= weight;
            last = index;
        }
    }
    last
}

/// A number in 0..1 for each position, the same whenever it is asked for.
///
/// A counter is mixed instead of a state kept, as in `SplittableRandom` (Steele, Lea and Flood: Fast Splittable Pseudorandom
/// Number Generators, OOPSLA 2014); the mixing is Stafford's variant 13, known as the finaliser of `SplitMix64`. The seed is
/// mixed first, so that neighbouring seeds do not give the same numbers at shifted positions.
fn random(seed: u64, position: u32) -> f64 {
    let start = mix(seed.wrapping_add(GAMMA));
    let bits = mix(start.wrapping_add(GAMMA.wrapping_mul(u64::from(position) + 1)));
    // 53 bits are what an f64 holds.
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    let bits = (bits >> 11) as f64;
    bits / 9_007_199_254_740_992.0
}

/// The odd number closest to 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
