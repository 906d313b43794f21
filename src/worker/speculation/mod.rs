//! Speculative decoding: several tokens of an answer in one pass over the weights.
//!
//! A draft is a guess at the next tokens. It is decoded together with the token that is due, and each position is then
//! sampled from the model's own logits, as it would have been without; the draft is kept as far as the samples agree with it. So
//! what is said is the same, whatever was drafted (but for the rounding of kernels that take several rows at once).
//!
//! Drafts come from text in which the same tokens came before: the sequence itself (prompt and answer: quotes, edits, code,
//! loops), and a [`Pool`] of what this worker said in earlier answers. Whether a draft is worth its rows is computed for
//! each step from what was seen: [`Odds`] say how often drafts with as long a match came true, [`Costs`] what rows cost. Guesses are
//! compared with what was said also when they were not decoded, so being wrong costs nothing while speculation is off, and
//! it comes back by itself.
//!
//! Pure book-keeping: no clock, no channel, no FFI.

mod corpus;
mod costs;
mod odds;

use crate::engine::Token;
pub use corpus::Corpus;
use corpus::{LONGEST_MATCH, Match};
pub use costs::Costs;
pub use odds::Odds;

/// Tokens that are drafted at most, for one sequence and step.
pub const MOST_DRAFTED: usize = 31;
/// Lengths of drafts that are considered. With the token that is due they fill groups of rows that kernels take at once.
const LENGTHS: [usize; 11] = [1, 2, 3, 4, 5, 7, 11, 15, 19, 23, MOST_DRAFTED];
/// A plan must promise this much more speed than none; less is lost in what estimates are off.
const WORTHWHILE: f32 = 1.05;
/// Tokens of a prompt's end that are learned with the answer, so that its beginning can be drafted too.
const LEAD: usize = 16;
/// Tokens that the pool remembers in all.
const POOL_TOKENS: usize = 1 << 15;
/// Clients whose answers are kept apart, where they are.
const POOL_CLIENTS: usize = 8;

/// What the worker said in earlier answers, and how much drafts were worth. 1.2 MB.
#[derive(Debug)]
pub struct Pool {
    /// By owner, the one used last at the end.
    corpora: Vec<(String, Corpus)>,
    tokens_each: usize,
    clients: usize,
    odds: BySource,
}

impl Pool {
    /// An empty pool. `apart` keeps the answers to each client from drafts for others, in a share of the same memory for each of
    /// the latest clients.
    pub fn new(apart: bool) -> Self {
        let clients = if apart { POOL_CLIENTS } else { 1 };
        Self {
            corpora: Vec::new(),
            tokens_each: POOL_TOKENS / clients,
            clients,
            odds: BySource::default(),
        }
    }

    /// Learns an answer: `text` is the prompt and what was said, which begins at `answer`.
    pub fn learn(&mut self, client: &str, text: &[Token], answer: usize) {
        let owner = self.owner(client).to_owned();
        let known = self.corpora.iter().position(|(name, _)| *name == owner);
        let mut corpus = match known {
            Some(at) => self.corpora.remove(at).1,
            None => Corpus::new(self.tokens_each),
        };
        if self.corpora.len() >= self.clients {
            self.corpora.remove(0);
        }
        corpus.end_text();
        let begin = answer.saturating_sub(LEAD).min(text.len());
        for token in &text[begin..] {
            corpus.push(*token);
        }
        self.corpora.push((owner, corpus));
    }

    fn of(&self, client: &str) -> Option<&Corpus> {
        let owner = self.owner(client);
        self.corpora
            .iter()
            .find(|(name, _)| name == owner)
            .map(|(_, corpus)| corpus)
    }

    fn owner<'a>(&self, client: &'a str) -> &'a str {
        if self.clients > 1 { client } else { "" }
    }
}

/// Where a draft comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The sequence's own text.
    Own,
    /// Earlier answers.
    Pool,
}

/// What drafts from each source were worth.
#[derive(Clone, Debug, Default)]
struct BySource([Odds; 2]);

impl BySource {
    fn of(&self, source: Source) -> &Odds {
        &self.0[source as usize]
    }

    fn learn(&mut self, source: Source, length: usize, came_true: bool) {
        self.0[source as usize].learn(length, came_true);
    }
}

/// What a sequence will say next, perhaps.
#[derive(Clone, Debug)]
struct Guess {
    source: Source,
    found: Match,
    tokens: Vec<Token>,
}

/// Drafts for one sequence.
#[derive(Debug)]
pub struct Drafter {
    client: String,
    text: Corpus,
    odds: BySource,
    guess: Option<Guess>,
}

impl Drafter {
    /// A drafter for an answer to `prompt`, whose text may grow to `longest` tokens.
    pub fn new(client: &str, prompt: &[Token], longest: usize) -> Self {
        let mut text = Corpus::new(longest);
        for token in prompt {
            text.push(*token);
        }
        Self {
            client: client.to_owned(),
            text,
            odds: BySource::default(),
            guess: None,
        }
    }

    /// Takes in what was said next; the guess at it is compared and forgotten.
    pub fn said(&mut self, tokens: &[Token], pool: &mut Pool) {
        for token in tokens {
            self.text.push(*token);
        }
        let Some(mut guess) = self.guess.take() else {
            return;
        };
        let mut matched = 0;
        for (length, (guessed, said)) in (guess.found.length..).zip(guess.tokens.iter().zip(tokens))
        {
            let came_true = guessed == said;
            pool.odds.learn(guess.source, length, came_true);
            self.odds.learn(guess.source, length, came_true);
            if !came_true {
                break;
            }
            matched += 1;
        }
        if matched == tokens.len() {
            // Where it was right it is kept up: the latest place of a short run may be another one.
            guess.found.at += matched as u64;
            guess.found.length = (guess.found.length + matched).min(LONGEST_MATCH);
            guess.tokens.clear();
            self.guess = Some(guess);
        }
    }

    /// Guesses up to `most` next tokens, and returns the chance that each of them comes true together with all before it.
    pub fn guess(&mut self, pool: &Pool, most: usize) -> Vec<f32> {
        let others = pool.of(&self.client);
        let kept = self.guess.take().map(|guess| (guess.source, guess.found));
        let own = self.text.find(&self.text).map(|found| (Source::Own, found));
        let earlier = others
            .and_then(|corpus| corpus.find(&self.text))
            .map(|found| (Source::Pool, found));
        let candidates = [earlier, own, kept].into_iter().flatten();
        // Of equal ones the last: what was right before, then the sequence's own.
        let Some((source, found)) = candidates.max_by_key(|(_, found)| found.length) else {
            return Vec::new();
        };
        let mut tokens = Vec::new();
        match source {
            Source::Own => self.text.continuation(found.at, most, &mut tokens),
            Source::Pool => {
                if let Some(corpus) = others {
                    corpus.continuation(found.at, most, &mut tokens);
                }
            }
        }
        let (odds, belief) = (self.odds.of(source), pool.odds.of(source));
        let lengths = found.length..found.length + tokens.len();
        let chances = lengths.scan(1.0, |chance, length| {
            *chance *= odds.chance_among(belief, length.min(LONGEST_MATCH));
            Some(*chance)
        });
        let chances = chances.collect();
        if !tokens.is_empty() {
            self.guess = Some(Guess {
                source,
                found,
                tokens,
            });
        }
        chances
    }

    /// The first tokens of the guess.
    pub fn draft(&self, length: usize) -> &[Token] {
        let tokens = self.guess.as_ref().map_or(&[][..], |guess| &guess.tokens);
        &tokens[..length.min(tokens.len())]
    }
}

/// Decides how many tokens of its guess each sequence decodes, so that the step makes the most tokens for its time.
///
/// `chances` are those of [`Drafter::guess`], for each sequence with an answer under way. `prefill_ms` is what prompts in the same step
/// take, and `most_rows` what it has room for. llama.cpp makes one pass for the rows that all sequences have, and another for those
/// that only some have, so all drafts of a step are equally long (or as long as their guesses).
pub fn plan(chances: &[Vec<f32>], costs: &Costs, prefill_ms: f32, most_rows: usize) -> Vec<usize> {
    let none = vec![0; chances.len()];
    let all = chances.len();
    let Some(alone) = costs.ms(rows(all)) else {
        return none;
    };
    let tokens = |n: usize| f32::from(u16::try_from(n).unwrap_or(u16::MAX));
    let mut best = (WORTHWHILE * tokens(all) / (alone + prefill_ms), none);
    for length in LENGTHS {
        // Who is expected to gain most comes first.
        let mut gains: Vec<(usize, usize, f32)> = chances
            .iter()
            .enumerate()
            .map(|(index, chances)| {
                let length = length.min(chances.len());
                (index, length, chances[..length].iter().sum())
            })
            .filter(|(_, length, _)| *length > 0)
            .collect();
        gains.sort_by(|(_, _, less), (_, _, more)| more.total_cmp(less));
        let (mut gain, mut drafted) = (0.0, 0);
        for count in 1..=gains.len() {
            let (_, own, more) = gains[count - 1];
            gain += more;
            drafted += own;
            if all + drafted > most_rows {
                break;
            }
            let time = if count == all {
                costs.ms(rows(all + drafted))
            } else {
                costs.ms(rows(drafted)).map(|ms| alone + ms)
            };
            let Some(time) = time else { continue };
            let rate = (tokens(all) + gain) / (time + prefill_ms);
            if rate > best.0 {
                let mut lengths = vec![0; all];
                for (index, length, _) in &gains[..count] {
                    lengths[*index] = *length;
                }
                best = (rate, lengths);
            }
        }
    }
    best.1
}

fn rows(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        text.bytes().map(|byte| Token(byte.into())).collect()
    }

    /// A pass costs 10 ms, and each further row `row` ms.
    fn costs(row: f32) -> Costs {
        let mut costs = Costs::default();
        for (rows, number) in [
            (1, 1.0),
            (2, 2.0),
            (4, 4.0),
            (8, 8.0),
            (16, 16.0),
            (32, 32.0),
            (64, 64.0),
            (128, 128.0),
        ] {
            costs.observe(rows, 10.0 + row * (number - 1.0));
        }
        costs
    }

    fn text(tokens: &[Token]) -> String {
        tokens
            .iter()
            .map(|token| char::from(u8::try_from(token.0).expect("a byte")))
            .collect()
    }

    #[test]
    fn a_copy_is_drafted_further_and_further() {
        let mut pool = Pool::new(false);
        let prompt = tokens("the quick brown fox jumps over the lazy dog. Again: the quick");
        let mut drafter = Drafter::new("a", &prompt, 256);
        let chances = drafter.guess(&pool, 8);
        assert_eq!(text(drafter.draft(8)), " brown f");
        assert!(chances.is_sorted_by(|more, less| more >= less));
        drafter.said(&tokens(" brown"), &mut pool);
        let later = drafter.guess(&pool, 8);
        assert_eq!(text(drafter.draft(8)), " fox jum");
        assert!(later[0] > chances[0], "a longer match is worth more");
    }

    #[test]
    fn guesses_that_fail_are_not_decoded_and_come_back_when_they_are_right() {
        let mut pool = Pool::new(false);
        let costs = costs(1.0);
        let mut drafter = Drafter::new("a", &tokens("abcdefgh"), 4096);
        let mut lengths = Vec::new();
        // What was said before comes again up to a point, and then something else, each time.
        for round in 0..60u32 {
            drafter.said(&tokens("abc"), &mut pool);
            let chances = drafter.guess(&pool, MOST_DRAFTED);
            lengths.push(plan(&[chances], &costs, 0.0, 128)[0]);
            drafter.said(&[Token(1000 + round)], &mut pool);
        }
        assert_eq!(lengths.iter().skip(20).max(), Some(&0), "{lengths:?}");
        for _ in 0..60 {
            drafter.said(&tokens("x"), &mut pool);
            drafter.guess(&pool, MOST_DRAFTED);
        }
        let chances = drafter.guess(&pool, MOST_DRAFTED);
        assert!(plan(&[chances], &costs, 0.0, 128)[0] > 8);
    }

    #[test]
    fn earlier_answers_are_drafted_from_their_first_token_on() {
        let mut pool = Pool::new(false);
        let said = tokens("Q: how?\nA: like this, of course.");
        let answer = "Q: how?\nA: ".len();
        pool.learn("a", &said, answer);
        let mut drafter = Drafter::new("b", &said[..answer], 256);
        drafter.guess(&pool, 5);
        assert_eq!(text(drafter.draft(5)), "like ");
    }

    #[test]
    fn answers_are_kept_apart_where_they_must_be() {
        let mut pool = Pool::new(true);
        let said = tokens("Q: who?\nA: the secret name.");
        let answer = "Q: who?\nA: ".len();
        pool.learn("a", &said, answer);
        let mut stranger = Drafter::new("b", &said[..answer], 256);
        assert!(stranger.guess(&pool, 5).is_empty());
        let mut same = Drafter::new("a", &said[..answer], 256);
        assert!(!same.guess(&pool, 5).is_empty());
        for client in 0..100 {
            pool.learn(&client.to_string(), &said, answer);
        }
        assert_eq!(pool.corpora.len(), POOL_CLIENTS);
    }

    #[test]
    fn drafts_are_as_long_as_they_are_worth() {
        let sure = vec![0.99; 31];
        let unsure: Vec<f32> = (1..=31).map(|n| 0.5_f32.powi(n)).collect();
        assert_eq!(
            plan(std::slice::from_ref(&sure), &costs(0.1), 0.0, 128),
            [31]
        );
        assert_eq!(plan(std::slice::from_ref(&sure), &costs(0.1), 0.0, 9), [7]);
        let short = plan(std::slice::from_ref(&unsure), &costs(1.0), 0.0, 128)[0];
        assert!((1..=4).contains(&short), "{short}");
        // A row that costs as much as a pass is never worth a chance.
        assert_eq!(
            plan(std::slice::from_ref(&sure), &costs(10.0), 0.0, 128),
            [0]
        );
        assert_eq!(
            plan(std::slice::from_ref(&sure), &Costs::default(), 0.0, 128),
            [0]
        );
        // Beside a long chunk of a prompt rows weigh less.
        assert!(plan(&[unsure], &costs(1.0), 300.0, 128)[0] > short);
        assert_eq!(plan(&[], &costs(1.0), 0.0, 128), [0; 0]);
    }

    #[test]
    fn one_of_many_drafts_only_if_all_together_gain() {
        let mut chances = vec![Vec::new(); 8];
        chances[3] = vec![0.99; 31];
        let lengths = plan(&chances, &costs(0.2), 0.0, 128);
        assert_eq!(lengths.iter().filter(|length| **length > 0).count(), 1);
        assert!(lengths[3] > 8);
        chances[3] = vec![0.6];
        assert_eq!(
            plan(&chances, &costs(0.2), 0.0, 128),
            [0; 8],
            "a second pass for one token is no gain"
        );
    }
}
