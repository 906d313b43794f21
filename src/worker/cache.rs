//! Which sequence holds which tokens, and where a new request continues best. Pure book-keeping; the decoder moves
//! the cells.

use super::decoder::{Position, SeqId};
use crate::engine::Token;
use std::cmp::Reverse;
use std::ops::RangeInclusive;

/// A sequence is continued for what it keeps if that is this part of it at least (a half). Every chat begins with the same few
/// tokens, and they are no reason to forget a conversation while another sequence is free.
const WORTHWHILE: usize = 2;
/// Fewer tokens than this are neither worth keeping nor a loss: where the sequence lies counts more.
const LITTLE: usize = 16;

/// The sequences and the tokens that their KV cells stand for.
#[derive(Debug)]
pub struct Cache {
    held: Vec<Held>,
    clock: u64,
}

#[derive(Clone, Debug, Default)]
struct Held {
    tokens: Vec<Token>,
    busy: bool,
    used: u64,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The sequence that is now its own.
    pub seq: SeqId,
    /// Tokens of the prompt that the sequence keeps; everything after them must be cut.
    pub keep: Position,
}

impl Cache {
    /// Book-keeping for `sequences` empty sequences.
    pub fn new(sequences: u32) -> Self {
        Self {
            held: vec![Held::default(); sequences as usize],
            clock: 0,
        }
    }

    /// Takes the idle sequence in which the prompt continues best, or `None` when all are busy. `cuttable` tells to which
    /// lengths a sequence can be cut (see [`super::decoder::Decoder::cuttable`]). At least the last token of the prompt is
    /// left to be decoded, because its logits are needed. The tokens after `keep` are forgotten here.
    pub fn take(
        &mut self,
        prompt: &[Token],
        reuse: bool,
        cuttable: impl Fn(SeqId) -> RangeInclusive<Position>,
    ) -> Option<Choice> {
        let idle = self.held.iter().enumerate().filter(|(_, held)| !held.busy);
        let (index, keep) = idle
            .map(|(index, held)| {
                let keep = if reuse {
                    usable(held, prompt, &cuttable(seq(index)))
                } else {
                    0
                };
                (index, keep, held)
            })
            // Much to keep first; then little to lose, best beside a busy one; then the most to keep; then the one that was not
            // used for the longest time.
            .max_by_key(|(index, keep, held)| {
                let worth = keep * WORTHWHILE >= held.tokens.len();
                let counted = if worth { *keep } else { 0 };
                let little = held.tokens.len() - keep < LITTLE;
                let beside = little && self.beside_a_busy_one(*index);
                let empty = held.tokens.is_empty();
                (
                    counted / LITTLE,
                    little,
                    beside,
                    counted,
                    empty,
                    Reverse(held.used),
                    Reverse(*index),
                )
            })
            .map(|(index, keep, _)| (index, keep))?;
        self.clock += 1;
        let held = &mut self.held[index];
        held.tokens.truncate(keep);
        held.busy = true;
        held.used = self.clock;
        // The number of tokens fits, because positions are u32.
        Some(Choice {
            seq: seq(index),
            keep: Position::try_from(keep).unwrap_or(Position::MAX),
        })
    }

    /// llama.cpp takes the rows of a step in one pass over the weights only where their sequences are neighbours; every gap costs
    /// another pass.
    fn beside_a_busy_one(&self, index: usize) -> bool {
        let busy = |index: usize| self.held.get(index).is_some_and(|held| held.busy);
        busy(index + 1) || index.checked_sub(1).is_some_and(busy)
    }

    /// Notes that a token was decoded.
    pub fn push(&mut self, seq: SeqId, token: Token) {
        self.held[seq.0 as usize].tokens.push(token);
    }

    /// Tokens that the sequence holds.
    pub fn len(&self, seq: SeqId) -> usize {
        self.held[seq.0 as usize].tokens.len()
    }

    /// Gives the sequence back; what it holds stays for others.
    pub fn release(&mut self, seq: SeqId) {
        self.clock += 1;
        let held = &mut self.held[seq.0 as usize];
        held.busy = false;
        held.used = self.clock;
    }

    /// Forgets what the sequence holds, whoever has it.
    pub fn forget(&mut self, seq: SeqId) {
        self.held[seq.0 as usize].tokens.clear();
    }

    /// Cells in use, busy and kept ones.
    pub fn cells(&self) -> usize {
        self.held.iter().map(|held| held.tokens.len()).sum()
    }

    /// Whether a sequence is idle.
    pub fn any_idle(&self) -> bool {
        self.held.iter().any(|held| !held.busy)
    }
}

fn seq(index: usize) -> SeqId {
    // There are at most 256 sequences.
    SeqId(u32::try_from(index).unwrap_or(u32::MAX))
}

/// The longest part of the prompt that the sequence holds and can be cut to.
fn usable(held: &Held, prompt: &[Token], cuttable: &RangeInclusive<Position>) -> usize {
    let common = held
        .tokens
        .iter()
        .zip(prompt)
        .take_while(|(held, new)| held == new)
        .count();
    let keep = common.min(prompt.len().saturating_sub(1));
    match Position::try_from(keep) {
        Ok(position) if cuttable.contains(&position) => keep,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[u32]) -> Vec<Token> {
        ids.iter().copied().map(Token).collect()
    }

    fn anywhere(_: SeqId) -> RangeInclusive<Position> {
        0..=Position::MAX
    }

    /// Lets a request run through: takes a sequence and decodes prompt and answer there.
    fn serve(cache: &mut Cache, prompt: &[u32], answer: &[u32]) -> Choice {
        let choice = cache
            .take(&tokens(prompt), true, anywhere)
            .expect("an idle sequence");
        for token in tokens(prompt)
            .into_iter()
            .skip(choice.keep as usize)
            .chain(tokens(answer))
        {
            cache.push(choice.seq, token);
        }
        cache.release(choice.seq);
        choice
    }

    #[test]
    fn the_next_turn_continues_where_the_last_one_ended() {
        let mut cache = Cache::new(2);
        let first = serve(&mut cache, &[1, 2, 3], &[4, 5]);
        assert_eq!(first.keep, 0);
        let other = serve(&mut cache, &[9, 8, 7], &[6]);
        assert_ne!(other.seq, first.seq, "the empty sequence is taken first");
        let second = serve(&mut cache, &[1, 2, 3, 4, 5, 6], &[7]);
        assert_eq!(
            second,
            Choice {
                seq: first.seq,
                keep: 5
            }
        );
        assert_eq!(cache.len(first.seq), 7);
    }

    #[test]
    fn the_last_prompt_token_is_always_decoded() {
        let mut cache = Cache::new(1);
        serve(&mut cache, &[1, 2, 3], &[4]);
        assert_eq!(serve(&mut cache, &[1, 2, 3], &[4]).keep, 2);
        assert_eq!(serve(&mut cache, &[1], &[]).keep, 0);
    }

    #[test]
    fn a_window_that_forgot_is_not_continued() {
        let mut cache = Cache::new(1);
        serve(&mut cache, &[1, 2, 3, 4, 5], &[6, 7]);
        let choice = cache
            .take(&tokens(&[1, 2, 3, 9]), true, |_| 5..=7)
            .expect("idle");
        assert_eq!(choice.keep, 0);
        assert_eq!(cache.len(choice.seq), 0);
        for id in [1, 2, 3, 9] {
            cache.push(choice.seq, Token(id));
        }
        cache.release(choice.seq);
        let choice = cache
            .take(&tokens(&[1, 2, 3, 9, 9]), true, |_| 4..=4)
            .expect("idle");
        assert_eq!(choice.keep, 4, "going on at the end is always possible");
    }

    #[test]
    fn a_greeting_does_not_cost_a_long_conversation() {
        let mut cache = Cache::new(2);
        let long: Vec<u32> = (0..100).collect();
        let conversation = serve(&mut cache, &long, &[]);
        let stranger = serve(&mut cache, &[0, 1, 500], &[501]);
        assert_ne!(stranger.seq, conversation.seq);
        assert_eq!(serve(&mut cache, &[0, 1, 500, 777], &[]).seq, stranger.seq);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_busy_ones_never() {
        let mut cache = Cache::new(2);
        let a = serve(&mut cache, &[1, 2], &[]);
        let b = serve(&mut cache, &[3, 4], &[]);
        let taken = cache.take(&tokens(&[5, 6]), true, anywhere).expect("idle");
        assert_eq!(taken.seq, a.seq);
        let next = cache
            .take(&tokens(&[1, 2, 3]), true, anywhere)
            .expect("idle");
        assert_eq!(next.seq, b.seq);
        assert_eq!(cache.take(&tokens(&[3]), true, anywhere), None);
        assert!(!cache.any_idle());
    }

    #[test]
    fn busy_sequences_stay_neighbours() {
        let mut cache = Cache::new(4);
        let take = |cache: &mut Cache| {
            cache
                .take(&tokens(&[7]), true, anywhere)
                .expect("idle")
                .seq
                .0
        };
        assert_eq!(
            [take(&mut cache), take(&mut cache), take(&mut cache)],
            [0, 1, 2]
        );
        for seq in [0, 1, 2] {
            cache.push(SeqId(seq), Token(100 + seq));
        }
        cache.release(SeqId(0));
        cache.release(SeqId(2));
        assert_eq!(
            take(&mut cache),
            0,
            "2 would do as well, 3 is empty but lies apart"
        );
        let choice = cache
            .take(&tokens(&[102, 1]), true, anywhere)
            .expect("idle");
        assert_eq!((choice.seq, choice.keep), (SeqId(2), 1));
    }

    #[test]
    fn reuse_can_be_refused() {
        let mut cache = Cache::new(1);
        serve(&mut cache, &[1, 2, 3], &[]);
        let choice = cache
            .take(&tokens(&[1, 2, 3, 4]), false, anywhere)
            .expect("idle");
        assert_eq!(choice.keep, 0);
    }
}
