//! Tokens in the order in which they were said, and where a run of them came last.

use crate::engine::Token;

/// Stands between texts in a [`Corpus`]; no vocabulary has it.
const BETWEEN: Token = Token(u32::MAX);
/// Lengths of the runs that can be found, long ones first: they say more about what comes next.
const RUNS: [usize; 2] = [8, 3];
/// Places of a table for each token.
const SPREAD: usize = 4;
/// Matching further back than this says nothing more.
pub(super) const LONGEST_MATCH: usize = 64;

/// The last tokens of one or more texts: what is too old makes room.
///
/// It takes 36 bytes for each token: the token, and for each length of run places in a table that knows where the run with that
/// hash was last followed by something. Where two runs share a place the earlier one is lost (one in five in a full corpus), never
/// mistaken, because tokens are compared.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// A ring; its length is a power of two.
    tokens: Vec<Token>,
    /// Tokens ever taken in, the count that positions are in.
    len: u64,
    followed: [Vec<u32>; RUNS.len()],
}

/// A place in a corpus at which the same tokens came before as now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Match {
    /// How many, up to [`LONGEST_MATCH`].
    pub length: usize,
    /// Where the next token stands.
    pub at: u64,
}

impl Corpus {
    /// Room for `capacity` tokens at least; memory is taken as they come only in so far as the system hands it out late.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.clamp(1, 1 << 24).next_power_of_two();
        Self {
            tokens: vec![BETWEEN; capacity],
            len: 0,
            followed: RUNS.map(|_| vec![u32::MAX; capacity * SPREAD]),
        }
    }

    /// Takes in the next token of a text.
    pub fn push(&mut self, token: Token) {
        for (run, followed) in RUNS.iter().zip(&mut self.followed) {
            let Some(slot) =
                hash(&self.tokens, self.len, *run).map(|hash| hash & (followed.len() - 1))
            else {
                continue;
            };
            // Positions are told apart by their lowest 32 bits, and compared before they are believed.
            followed[slot] = low(self.len);
        }
        let at = self.index(self.len);
        self.tokens[at] = token;
        self.len += 1;
    }

    /// Ends a text: nothing runs on into the next one.
    pub fn end_text(&mut self) {
        if self.len > 0 && self.tokens[self.index(self.len - 1)] != BETWEEN {
            self.push(BETWEEN);
        }
    }

    /// The last `count` tokens, or all there are.
    fn tail(&self, count: usize) -> impl Iterator<Item = Token> {
        (self.oldest()..self.len)
            .rev()
            .take(count)
            .map(|at| self.tokens[self.index(at)])
    }

    /// The latest place where the tokens at the end of `text` came before. `text` may be this corpus.
    pub fn find(&self, text: &Self) -> Option<Match> {
        let runs = RUNS.iter().zip(&self.followed);
        let places = runs.filter_map(|(run, followed)| {
            let slot = hash(&text.tokens, text.len, *run)? & (followed.len() - 1);
            let at = self.position(followed[slot])?;
            let length = self.matching(at, text);
            (length >= *run).then_some(Match { length, at })
        });
        places.max_by_key(|place| place.length)
    }

    /// How many tokens before `at` are those at the end of `text`.
    pub fn matching(&self, at: u64, text: &Self) -> usize {
        let before = (self.oldest()..at)
            .rev()
            .map(|at| self.tokens[self.index(at)]);
        let pairs = before.zip(text.tail(LONGEST_MATCH));
        pairs
            .take_while(|(there, here)| there == here && *here != BETWEEN)
            .count()
    }

    /// Up to `most` tokens from `at` on. Where the corpus ends, what came before is repeated: text in a loop stays in it.
    pub fn continuation(&self, at: u64, most: usize, tokens: &mut Vec<Token>) {
        tokens.clear();
        if at < self.oldest() || at >= self.len {
            return;
        }
        for position in (at..).take(most) {
            let token = if position < self.len {
                self.tokens[self.index(position)]
            } else {
                // Below `tokens.len()`: there are `position - at` of them, and `len > at`.
                tokens[usize::try_from(position - self.len).unwrap_or(0)]
            };
            if token == BETWEEN {
                return;
            }
            tokens.push(token);
        }
    }

    fn oldest(&self) -> u64 {
        self.len.saturating_sub(self.tokens.len() as u64)
    }

    fn index(&self, at: u64) -> usize {
        index(&self.tokens, at)
    }

    /// The whole position of which these are the lowest bits, if it is still there.
    fn position(&self, bits: u32) -> Option<u64> {
        let back = low(self.len).wrapping_sub(bits);
        let at = self.len.checked_sub(back.into())?;
        (at > self.oldest() && at < self.len).then_some(at)
    }
}

fn index(ring: &[Token], at: u64) -> usize {
    // A ring's length is a power of two that a usize holds.
    usize::try_from(at & (ring.len() as u64 - 1)).unwrap_or(0)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the lowest bits are what is wanted"
)]
fn low(at: u64) -> u32 {
    at as u32
}

/// The hash of the `run` tokens before `end` (FNV-1a over whole tokens, mixed at the end); `None` if there are fewer.
fn hash(ring: &[Token], end: u64, run: usize) -> Option<usize> {
    let begin = end.checked_sub(run as u64)?;
    if run > ring.len() {
        return None;
    }
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for at in begin..end {
        let token = ring[index(ring, at)];
        if token == BETWEEN {
            return None;
        }
        hash = (hash ^ u64::from(token.0)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    usize::try_from(hash & u64::from(u32::MAX)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn corpus(ids: &[u32], capacity: usize) -> Corpus {
        let mut corpus = Corpus::new(capacity);
        for id in ids {
            corpus.push(Token(*id));
        }
        corpus
    }

    fn draft(from: &Corpus, at: u64, most: usize) -> Vec<u32> {
        let mut tokens = Vec::new();
        from.continuation(at, most, &mut tokens);
        tokens.into_iter().map(|token| token.0).collect()
    }

    #[test]
    fn what_came_before_is_found_with_what_followed() {
        let text = corpus(&[1, 2, 3, 4, 5, 9, 2, 3, 4], 16);
        let found = text.find(&text).expect("2 3 4 came before");
        assert_eq!(found, Match { length: 3, at: 4 });
        assert_eq!(draft(&text, found.at, 2), [5, 9]);
        assert_eq!(corpus(&[1, 2, 3, 9, 5], 16).find(&text), None);
    }

    #[test]
    fn the_longer_match_wins() {
        let mut ids: Vec<u32> = (0..10).collect();
        ids.push(100);
        // Later, and shorter: 7 8 9 followed by 200.
        ids.extend([7, 8, 9, 200]);
        let said = corpus(&ids, 64);
        let now = corpus(&(0..10).collect::<Vec<_>>(), 64);
        let found = said.find(&now).expect("a match");
        assert_eq!((found.length, draft(&said, found.at, 1)), (10, vec![100]));
    }

    #[test]
    fn a_loop_goes_on_past_the_end() {
        let text = corpus(&[1, 2, 3, 1, 2, 3], 16);
        let found = text.find(&text).expect("a loop");
        assert_eq!(draft(&text, found.at, 7), [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn nothing_runs_on_from_one_text_into_the_next() {
        let mut pool = corpus(&[1, 2, 3, 4], 16);
        pool.end_text();
        pool.end_text();
        for id in [5, 6, 7, 8] {
            pool.push(Token(id));
        }
        let at = pool.find(&corpus(&[1, 2, 3], 16)).expect("a match").at;
        assert_eq!(draft(&pool, at, 9), [4]);
        assert_eq!(pool.find(&corpus(&[3, 4, 5], 16)), None);
    }

    proptest! {
        /// Whatever is found stands there, however the ring wrapped.
        #[test]
        fn finds_are_true(ids in prop::collection::vec(0u32..4, 0..300), capacity in 1usize..64) {
            let mut text = Corpus::new(capacity);
            let mut all: Vec<u32> = Vec::new();
            for id in ids {
                if let Some(found) = text.find(&text) {
                    let at = usize::try_from(found.at).expect("a small number");
                    prop_assert!(at < all.len());
                    let length = found.length;
                    prop_assert_eq!(&all[at - length..at], &all[all.len() - length..]);
                    let drafted = draft(&text, found.at, 5);
                    let known = drafted.len().min(all.len() - at);
                    prop_assert_eq!(&drafted[..known], &all[at..at + known]);
                    prop_assert_eq!(drafted.len(), 5);
                }
                text.push(Token(id));
                all.push(id);
            }
        }
    }
}
