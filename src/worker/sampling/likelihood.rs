//! How likely a token was, by the logits as the model gave them.

use super::scan::{Candidate, Scan, by_rank};
use crate::engine::{Likelihood, Logprob, MOST_ALTERNATIVES, Token};

/// Finds log-probabilities: the logarithm of the softmax over the whole vocabulary.
#[derive(Clone, Debug, Default)]
pub struct Likelihoods {
    alternatives: usize,
    scan: Scan,
    kept: Vec<Candidate>,
}

impl Likelihoods {
    /// Finds as many of the likeliest tokens as well, [`MOST_ALTERNATIVES`] at most.
    pub fn new(alternatives: u32) -> Self {
        Self {
            alternatives: alternatives.min(MOST_ALTERNATIVES) as usize,
            ..Self::default()
        }
    }

    /// The log-probability of `chosen` and of the likeliest tokens; `spell` appends a token's bytes.
    pub fn of(
        &mut self,
        logits: &[f32],
        chosen: Token,
        spell: impl Fn(Token, &mut Vec<u8>),
    ) -> Logprob {
        let max = self.scan.begin(logits, std::iter::empty());
        let sum = self.scan.mass(logits, max, 1.0, f32::MIN);
        let spelt = |token: Token, logit: f32| {
            let mut bytes = Vec::new();
            spell(token, &mut bytes);
            #[expect(clippy::cast_possible_truncation, reason = "logits are f32 too")]
            let logprob = (f64::from(logit) - f64::from(max) - sum.ln()) as f32;
            // NaN and −∞ can't be told in JSON.
            let logprob = if logprob.is_nan() {
                f32::MIN
            } else {
                logprob.clamp(f32::MIN, 0.0)
            };
            Likelihood {
                token,
                bytes,
                logprob,
            }
        };
        let logit = logits.get(chosen.0 as usize).copied();
        let chosen = spelt(chosen, logit.unwrap_or(f32::NEG_INFINITY));
        let top = self.likeliest(logits).iter();
        let top = top.map(|kept| spelt(Token(kept.id), kept.logit)).collect();
        Logprob { chosen, top }
    }

    fn likeliest(&mut self, logits: &[f32]) -> &[Candidate] {
        self.kept.clear();
        if self.alternatives > 0 {
            let floor = self.scan.floor_of(self.alternatives).unwrap_or(f32::MIN);
            self.scan.collect(logits, floor, &mut self.kept);
            self.kept.sort_unstable_by(by_rank);
            self.kept.truncate(self.alternatives);
        }
        &self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logprob(logits: &[f32], token: u32, alternatives: u32) -> Logprob {
        Likelihoods::new(alternatives).of(logits, Token(token), |token, bytes| {
            bytes.extend(token.0.to_string().bytes());
        })
    }

    #[test]
    fn it_is_the_softmax() {
        // Probabilities 1/2, 1/4, 1/8, 1/8, moved by a constant.
        let logits = [2f32.ln() + 7.0, 7.0, 0.5f32.ln() + 7.0, 0.5f32.ln() + 7.0];
        let told = logprob(&logits, 2, 3);
        assert!(
            (told.chosen.logprob - 0.125f32.ln()).abs() < 1e-4,
            "{told:?}"
        );
        assert_eq!(told.chosen.bytes, b"2");
        let tokens: Vec<u32> = told.top.iter().map(|top| top.token.0).collect();
        assert_eq!(tokens, [0, 1, 2], "likeliest first, then the lower id");
        let total: f32 = logprob(&logits, 0, 20)
            .top
            .iter()
            .map(|top| top.logprob.exp())
            .sum();
        assert!((total - 1.0).abs() < 1e-4);
    }

    #[test]
    fn what_cannot_be_is_the_lowest_number() {
        for nothing in [f32::NEG_INFINITY, f32::NAN] {
            let told = logprob(&[1.0, nothing], 1, 2);
            assert!(told.chosen.logprob <= f32::MIN);
            assert!(told.top[0].logprob.abs() < 1e-4);
        }
        assert!(logprob(&[1.0], 9, 0).chosen.logprob <= f32::MIN);
    }
}
