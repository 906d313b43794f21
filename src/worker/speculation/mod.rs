//! Speculative decoding: several tokens of an answer in one pass over the weights.
//!
//! A draft is a guess at the next tokens. It is decoded together with the token that is due, and each position is then
//! sampled from the model's own logits, as it would have been without; the draft is kept as far as the samples agree with it. So
//! what is said is the same, whatever was drafted (but for the rounding of kernels that take several rows at once).
//!
//! Drafts come from text in which the same tokens came before: the sequence itself (prompt and answer: quotes, edits, code,
//! loops), and a [`Pool`] of what this worker said in earlier answers; or from a smaller model, which has to decode for them.
//! Whether a draft is worth its rows is computed for each step from what was seen: [`Odds`] say how often drafts with as much to
//! speak for them came true, [`Costs`] what rows cost. Guesses from text are compared with what was said also when they were not
//! decoded, so being wrong costs nothing while speculation is off, and it comes back by itself. Guesses of a model cost time, so
//! they are made only where they are expected to pay ([`plan_model`]), and what was seen of them fades.
//!
//! Pure book-keeping: no clock, no channel, no FFI.

mod corpus;
mod costs;
mod odds;

use crate::engine::Token;
pub use corpus::Corpus;
use corpus::{LONGEST_MATCH, Match};
pub use costs::Costs;
pub use odds::{Evidence, Odds};

/// Tokens that are drafted at most, for one sequence and step.
pub const MOST_DRAFTED: usize = 31;
/// Tokens that a draft model guesses at most, for one sequence and step: each is a pass of its own.
pub const MOST_MODELLED: usize = 12;
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

    /// Notes that a draft model was not asked: what was seen of it fades.
    pub fn offered_nothing(&mut self) {
        self.odds.of_mut(Source::Model).fade();
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
    /// A smaller model.
    Model,
}

/// What drafts from each source were worth.
#[derive(Clone, Debug, Default)]
struct BySource([Odds; 3]);

impl BySource {
    fn of(&self, source: Source) -> &Odds {
        &self.0[source as usize]
    }

    fn of_mut(&mut self, source: Source) -> &mut Odds {
        &mut self.0[source as usize]
    }
}

/// What a sequence will say next, perhaps, because it was said before.
#[derive(Clone, Debug)]
struct Guess {
    source: Source,
    found: Match,
    tokens: Vec<Token>,
}

impl Guess {
    fn with_evidence(&self) -> impl Iterator<Item = (Token, Evidence)> {
        let lengths = (self.found.length..).map(|length| length.min(LONGEST_MATCH));
        let tokens = self.tokens.iter().copied();
        tokens.zip(lengths.map(Evidence::Match))
    }
}

/// Drafts for one sequence.
#[derive(Debug)]
pub struct Drafter {
    client: String,
    text: Corpus,
    odds: BySource,
    guess: Option<Guess>,
    /// What a smaller model would say next, and how sure it is.
    offered: Vec<(Token, Evidence)>,
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
            offered: Vec::new(),
        }
    }

    /// Takes in what was said next; guesses at it are compared and forgotten.
    pub fn said(&mut self, tokens: &[Token], pool: &mut Pool) {
        for token in tokens {
            self.text.push(*token);
        }
        let offered = std::mem::take(&mut self.offered);
        self.compare(Source::Model, offered, tokens, pool);
        let Some(mut guess) = self.guess.take() else {
            return;
        };
        let matched = self.compare(guess.source, guess.with_evidence(), tokens, pool);
        if matched == tokens.len() {
            // Where it was right it is kept up: the latest place of a short run may be another one.
            guess.found.at += matched as u64;
            guess.found.length = (guess.found.length + matched).min(LONGEST_MATCH);
            guess.tokens.clear();
            self.guess = Some(guess);
        }
    }

    /// Learns how far a guess was right.
    fn compare(
        &mut self,
        source: Source,
        guess: impl IntoIterator<Item = (Token, Evidence)>,
        said: &[Token],
        pool: &mut Pool,
    ) -> usize {
        let (own, all) = (self.odds.of_mut(source), pool.odds.of_mut(source));
        let mut matched = 0;
        for ((guessed, evidence), said) in guess.into_iter().zip(said) {
            let came_true = guessed == *said;
            own.learn(evidence, came_true);
            all.learn(evidence, came_true);
            if !came_true {
                break;
            }
            matched += 1;
        }
        matched
    }

    /// The chance that the next token of a draft model comes true, before it is known.
    pub fn usual_chance(&self, pool: &Pool) -> f32 {
        let (own, all) = (self.odds.of(Source::Model), pool.odds.of(Source::Model));
        own.usual_among(all)
    }

    /// The chance that a token comes true of which a draft model is so sure.
    pub fn chance_of(&self, pool: &Pool, confidence: f32) -> f32 {
        let (own, all) = (self.odds.of(Source::Model), pool.odds.of(Source::Model));
        own.chance_among(all, Evidence::Confidence(confidence))
    }

    /// Takes what a draft model would say next, and how likely it finds that, in place of what was guessed; returns chances as
    /// [`Drafter::guess`] does.
    pub fn offer(&mut self, pool: &Pool, tokens: &[(Token, f32)]) -> Vec<f32> {
        let chances = tokens.iter().scan(1.0, |chance, (_, confidence)| {
            *chance *= self.chance_of(pool, *confidence);
            Some(*chance)
        });
        let chances = chances.collect();
        let with_evidence =
            |(token, confidence): &(Token, f32)| (*token, Evidence::Confidence(*confidence));
        self.offered = tokens.iter().map(with_evidence).collect();
        chances
    }

    /// Notes that a draft model was not asked: what was seen of it fades.
    pub fn offered_nothing(&mut self) {
        self.odds.of_mut(Source::Model).fade();
    }

    /// Guesses up to `most` next tokens, and returns the chance that each of them comes true together with all before it. No guess goes
    /// as far as a token that `ends` an answer: most templates put one behind each message, and what is copied is most often the end of a
    /// message.
    pub fn guess(&mut self, pool: &Pool, most: usize, ends: impl Fn(Token) -> bool) -> Vec<f32> {
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
        let corpus = match source {
            Source::Pool => others,
            Source::Own | Source::Model => Some(&self.text),
        };
        if let Some(corpus) = corpus {
            corpus.continuation(found.at, most, &mut tokens);
        }
        let end = tokens.iter().position(|token| ends(*token));
        tokens.truncate(end.unwrap_or(tokens.len()));
        let guess = Guess {
            source,
            found,
            tokens,
        };
        let (odds, belief) = (self.odds.of(source), pool.odds.of(source));
        let chances = guess.with_evidence().scan(1.0, |chance, (_, evidence)| {
            *chance *= odds.chance_among(belief, evidence);
            Some(*chance)
        });
        let chances = chances.collect();
        if !guess.tokens.is_empty() {
            self.guess = Some(guess);
        }
        chances
    }

    /// The first tokens of the guess; a draft model's, if it offered some.
    pub fn draft(&self, length: usize) -> Vec<Token> {
        if !self.offered.is_empty() {
            let offered = self.offered.iter().take(length);
            return offered.map(|(token, _)| *token).collect();
        }
        let tokens = self.guess.as_ref().map_or(&[][..], |guess| &guess.tokens);
        tokens.iter().take(length).copied().collect()
    }
}

/// How many tokens of its guess each sequence decodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Planned {
    /// For each sequence; all 0 where drafts do not pay.
    pub lengths: Vec<usize>,
    /// Tokens that are expected in a millisecond; 0 before anything is known.
    pub rate: f32,
}

/// Decides how many tokens of its guess each sequence decodes, so that the step makes the most tokens for its time.
///
/// `chances` are those of [`Drafter::guess`], for each sequence with an answer under way. `prefill_ms` is what prompts in the same step
/// take, and `most_rows` what it has room for; `seqs` are the sequences' numbers, in order. Rows that only some sequences have make more
/// [`passes`], so all drafts of a step are equally long (or as long as their guesses).
pub fn plan(
    chances: &[Vec<f32>],
    seqs: &[u32],
    costs: &Costs,
    prefill_ms: f32,
    most_rows: usize,
) -> Planned {
    let none = vec![0; chances.len()];
    let all = chances.len();
    let Some(alone) = costs.ms(rows(all)).filter(|_| all > 0) else {
        return Planned {
            lengths: none,
            rate: 0.0,
        };
    };
    let plain = number(all) / (alone + prefill_ms);
    let mut best = (WORTHWHILE * plain, none.clone());
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
        let (mut gain, mut drafted, mut lengths) = (0.0, 0, none.clone());
        for (index, own, more) in gains {
            gain += more;
            drafted += own;
            lengths[index] = own;
            if all + drafted > most_rows {
                break;
            }
            let Some(time) = time_of(&lengths, seqs, costs, alone) else {
                continue;
            };
            // A token now is one less later. If somebody takes the place of who is through, that saves what a token of a step without
            // drafts and prompts takes; if not, only what a step of fewer sequences takes less: in between. Prompts take what they take.
            let count = lengths.iter().filter(|length| **length > 0).count();
            let without = costs.ms(rows(all - count)).unwrap_or(0.0).min(alone);
            let shares = [alone / number(all), (alone - without) / number(count)];
            let saved = gain * (shares[0] + shares[1]) / 2.0;
            let rate = plain * (alone + prefill_ms + saved) / (time + prefill_ms);
            if rate > best.0 {
                best = (rate, lengths.clone());
            }
        }
    }
    let drafts = best.1.iter().any(|length| *length > 0);
    Planned {
        lengths: best.1,
        rate: if drafts { best.0 } else { plain },
    }
}

/// What passes of a row and of drafts take, in milliseconds; `alone` is what those of a row take, however their sequences lie.
fn time_of(lengths: &[usize], seqs: &[u32], costs: &Costs, alone: f32) -> Option<f32> {
    let sizes = seqs.iter().zip(lengths);
    let made = passes(sizes.map(|(seq, drafted)| (*seq, rows(1 + drafted))));
    if made.len() == 1 {
        return costs.ms(made[0]);
    }
    let others = passes(
        seqs.iter()
            .zip(lengths)
            .map(|(seq, drafted)| (*seq, rows(*drafted))),
    );
    others
        .iter()
        .try_fold(alone, |sum, rows| Some(sum + costs.ms(*rows)?))
}

/// The rows of each pass that llama.cpp makes for a step, from each sequence's number, in order, and its rows: it takes the same number of
/// rows of the first sequence and of those that follow it without a gap, then begins again with what is left.
pub fn passes(rows: impl Iterator<Item = (u32, u32)>) -> Vec<u32> {
    let mut left: Vec<(u32, u32)> = rows.filter(|(_, rows)| *rows > 0).collect();
    let mut made = Vec::new();
    while let Some((first, _)) = left.first() {
        let run = left
            .iter()
            .zip(*first..)
            .take_while(|((seq, _), next)| seq == next);
        let run = run.count();
        let each = left[..run].iter().map(|(_, rows)| *rows).min().unwrap_or(0);
        made.push(each * u32::try_from(run).unwrap_or(u32::MAX));
        for (_, rows) in &mut left[..run] {
            *rows -= each;
        }
        left.retain(|(_, rows)| *rows > 0);
    }
    made
}

/// What a step may come to with a draft model.
#[derive(Clone, Copy, Debug)]
pub struct Outlook<'a> {
    /// Sequences with an answer under way.
    pub speaking: usize,
    /// For each of them that the model would guess for, the usual chance of a guessed token.
    pub chances: &'a [f32],
    /// What rows cost.
    pub costs: &'a Costs,
    /// What rows of the draft model cost.
    pub model: &'a Costs,
    /// What prompts in the same step take.
    pub prefill_ms: f32,
    /// Rows that the step has room for.
    pub most_rows: usize,
}

/// Decides how many tokens a draft model should guess at most, for each sequence, to make more tokens in a millisecond than `rate`, and
/// returns the rate that it expects. Each guessed token is a pass of that model, for all of these sequences together.
pub fn plan_model(outlook: &Outlook<'_>, rate: f32) -> Option<(usize, f32)> {
    let guessing = outlook.chances.len();
    let pass = outlook.model.ms(rows(guessing)).filter(|_| guessing > 0)?;
    let alone = outlook.costs.ms(rows(outlook.speaking))?;
    let mut best = (0, WORTHWHILE * rate);
    let (mut gain, mut reach) = (0.0, vec![1.0; guessing]);
    for length in 1..=MOST_MODELLED {
        if outlook.speaking + guessing * length > outlook.most_rows {
            break;
        }
        for (reach, chance) in reach.iter_mut().zip(outlook.chances) {
            *reach *= chance;
            gain += *reach;
        }
        let time = if guessing == outlook.speaking {
            outlook.costs.ms(rows(guessing * (1 + length)))?
        } else {
            alone + outlook.costs.ms(rows(guessing * length))?
        };
        let time = time + pass * number(length) + outlook.prefill_ms;
        let expected = (number(outlook.speaking) + gain) / time;
        if expected > best.1 {
            best = (length, expected);
        }
    }
    Some(best).filter(|(length, _)| *length > 0)
}

fn rows(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn number(n: usize) -> f32 {
    f32::from(u16::try_from(n).unwrap_or(u16::MAX))
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
        let chances = drafter.guess(&pool, 8, |_| false);
        assert_eq!(text(&drafter.draft(8)), " brown f");
        assert!(chances.is_sorted_by(|more, less| more >= less));
        drafter.said(&tokens(" brown"), &mut pool);
        let later = drafter.guess(&pool, 8, |_| false);
        assert_eq!(text(&drafter.draft(8)), " fox jum");
        assert!(later[0] > chances[0], "a longer match is worth more");
    }

    #[test]
    fn nothing_is_drafted_that_would_follow_the_end() {
        let mut pool = Pool::new(false);
        let ends = |token: Token| token == Token(b'$'.into());
        let prompt = tokens("copy: one two three$ <answer> ");
        let mut drafter = Drafter::new("a", &prompt, 256);
        drafter.said(&tokens("one"), &mut pool);
        let chances = drafter.guess(&pool, MOST_DRAFTED, ends);
        assert_eq!(text(&drafter.draft(MOST_DRAFTED)), " two three");
        assert_eq!(chances.len(), " two three".len());
        drafter.said(&tokens(" two three"), &mut pool);
        assert!(drafter.guess(&pool, MOST_DRAFTED, ends).is_empty());
        // Where nothing ends an answer the text may go on as it did.
        let mut endless = Drafter::new("a", &prompt, 256);
        endless.said(&tokens("one two three"), &mut pool);
        endless.guess(&pool, MOST_DRAFTED, |_| false);
        assert_eq!(text(&endless.draft(4)), "$ <a");
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
            let chances = drafter.guess(&pool, MOST_DRAFTED, |_| false);
            lengths.push(plan(&[chances], &[0], &costs, 0.0, 128).lengths[0]);
            drafter.said(&[Token(1000 + round)], &mut pool);
        }
        assert_eq!(lengths.iter().skip(20).max(), Some(&0), "{lengths:?}");
        for _ in 0..60 {
            drafter.said(&tokens("x"), &mut pool);
            drafter.guess(&pool, MOST_DRAFTED, |_| false);
        }
        let chances = drafter.guess(&pool, MOST_DRAFTED, |_| false);
        assert!(plan(&[chances], &[0], &costs, 0.0, 128).lengths[0] > 8);
    }

    #[test]
    fn earlier_answers_are_drafted_from_their_first_token_on() {
        let mut pool = Pool::new(false);
        let said = tokens("Q: how?\nA: like this, of course.");
        let answer = "Q: how?\nA: ".len();
        pool.learn("a", &said, answer);
        let mut drafter = Drafter::new("b", &said[..answer], 256);
        drafter.guess(&pool, 5, |_| false);
        assert_eq!(text(&drafter.draft(5)), "like ");
    }

    #[test]
    fn answers_are_kept_apart_where_they_must_be() {
        let mut pool = Pool::new(true);
        let said = tokens("Q: who?\nA: the secret name.");
        let answer = "Q: who?\nA: ".len();
        pool.learn("a", &said, answer);
        let mut stranger = Drafter::new("b", &said[..answer], 256);
        assert!(stranger.guess(&pool, 5, |_| false).is_empty());
        let mut same = Drafter::new("a", &said[..answer], 256);
        assert!(!same.guess(&pool, 5, |_| false).is_empty());
        for client in 0..100 {
            pool.learn(&client.to_string(), &said, answer);
        }
        assert_eq!(pool.corpora.len(), POOL_CLIENTS);
    }

    #[test]
    fn drafts_are_as_long_as_they_are_worth() {
        let sure = vec![0.99; 31];
        let unsure: Vec<f32> = (1..=31).map(|n| 0.5_f32.powi(n)).collect();
        let lengths = |chances: &Vec<f32>, costs: &Costs, most_rows| {
            plan(std::slice::from_ref(chances), &[0], costs, 0.0, most_rows).lengths
        };
        assert_eq!(lengths(&sure, &costs(0.1), 128), [31]);
        assert_eq!(lengths(&sure, &costs(0.1), 9), [7]);
        let short = plan(std::slice::from_ref(&unsure), &[0], &costs(1.0), 0.0, 128).lengths[0];
        assert!((1..=4).contains(&short), "{short}");
        // A row that costs as much as a pass is never worth a chance.
        assert_eq!(lengths(&sure, &costs(10.0), 128), [0]);
        assert_eq!(lengths(&sure, &Costs::default(), 128), [0]);
        // A prompt in the same step takes as long without them, and what is saved must be more than chance beside all of it.
        let beside = |chances, ms| plan(&[chances], &[0], &costs(1.0), ms, 128).lengths[0];
        assert!(beside(sure.clone(), 30.0) > 8);
        assert_eq!(beside(unsure.clone(), 300.0), 0);
        assert_eq!(plan(&[], &[], &costs(1.0), 0.0, 128), Planned::default());
    }

    const EIGHT: [u32; 8] = [0, 1, 2, 3, 4, 5, 6, 7];

    #[test]
    fn passes_are_those_of_llama_cpp() {
        let of = |rows: &[(u32, u32)]| passes(rows.iter().copied());
        assert_eq!(of(&[]), [0; 0]);
        assert_eq!(of(&[(3, 7)]), [7]);
        assert_eq!(of(&[(0, 2), (1, 2), (2, 2)]), [6]);
        assert_eq!(of(&[(0, 2), (2, 2), (3, 2)]), [2, 4], "a gap");
        // One row each, then what is left of neighbours.
        let longer = [
            (0, 1),
            (1, 1),
            (2, 5),
            (3, 1),
            (4, 5),
            (5, 5),
            (6, 5),
            (7, 1),
        ];
        assert_eq!(of(&longer), [8, 4, 12]);
        assert_eq!(of(&[(0, 8), (1, 3), (2, 3)]), [9, 5]);
    }

    #[test]
    fn one_of_many_drafts_only_if_all_together_gain() {
        let mut chances = vec![Vec::new(); 8];
        chances[3] = vec![0.99; 31];
        let lengths = plan(&chances, &EIGHT, &costs(0.2), 0.0, 128).lengths;
        assert_eq!(lengths.iter().filter(|length| **length > 0).count(), 1);
        assert!(lengths[3] > 8);
        chances[3] = vec![0.6];
        assert_eq!(
            plan(&chances, &EIGHT, &costs(0.2), 0.0, 128).lengths,
            [0; 8],
            "a second pass for one token is no gain"
        );
    }

    #[test]
    fn sequences_that_are_no_neighbours_make_more_passes() {
        let drafting = |who: [usize; 2]| {
            let mut chances = vec![Vec::new(); 8];
            for one in who {
                chances[one] = vec![0.99; 16];
            }
            let planned = plan(&chances, &EIGHT, &costs(0.2), 0.0, 128);
            planned.lengths.iter().filter(|length| **length > 0).count()
        };
        assert_eq!(drafting([3, 4]), 2);
        assert_eq!(drafting([2, 6]), 0);
    }

    /// What a draft model promises: a pass of the large one takes 10 ms, one of the small one `pass`.
    fn outlook(speaking: usize, chances: &[f32], row: f32, pass: f32) -> Option<(usize, f32)> {
        let (costs, mut model) = (costs(row), Costs::default());
        model.observe(1, pass);
        model.observe(8, pass * 1.5);
        let outlook = Outlook {
            speaking,
            chances,
            costs: &costs,
            model: &model,
            prefill_ms: 0.0,
            most_rows: 32,
        };
        let plain = plan(
            &vec![Vec::new(); speaking],
            &EIGHT[..speaking],
            &costs,
            0.0,
            32,
        );
        plan_model(&outlook, plain.rate)
    }

    #[test]
    fn a_draft_model_is_asked_where_it_pays() {
        let (length, rate) =
            outlook(1, &[0.9], 0.2, 1.0).expect("a tenth of the time, mostly right");
        assert!((4..=MOST_MODELLED).contains(&length), "{length}");
        // More than two tokens in the time of one.
        assert!(rate > 0.2, "{rate}");
        let (short, _) = outlook(1, &[0.6], 0.2, 1.0).expect("right more often than not");
        assert!(short < length);
        assert!(
            outlook(1, &[0.9], 0.2, 9.0).is_none(),
            "nearly as slow as the large one"
        );
        assert!(
            outlook(1, &[0.1], 0.2, 1.0).is_none(),
            "nearly always wrong"
        );
        assert!(
            outlook(1, &[0.9], 10.0, 1.0).is_none(),
            "a row costs a pass"
        );
        // Eight at once: what is expected grows, and 32 rows are the end.
        let (length, rate) = outlook(8, &[0.9; 8], 0.2, 1.0).expect("one pass for all eight");
        assert!(length <= 3 && rate > 8.0 / 12.0, "{length} {rate}");
        // One of eight does not pay for a second pass of the large one.
        assert!(outlook(8, &[0.9], 0.2, 1.0).is_none());
        assert!(outlook(1, &[], 0.2, 1.0).is_none());
    }

    #[test]
    fn what_a_model_offers_is_drafted_and_compared() {
        let mut pool = Pool::new(false);
        let mut drafter = Drafter::new("a", &tokens("abcabcabc"), 256);
        assert!(!drafter.guess(&pool, 4, |_| false).is_empty());
        assert_eq!(text(&drafter.draft(4)), "abca");
        let before = drafter.usual_chance(&pool);
        let offered = [(Token(b'x'.into()), 0.9), (Token(b'y'.into()), 0.6)];
        let chances = drafter.offer(&pool, &offered);
        assert!(chances[0] > 0.7 && chances[1] < chances[0], "{chances:?}");
        assert_eq!(text(&drafter.draft(9)), "xy");
        // Both sources learn from what is said.
        drafter.said(&tokens("xa"), &mut pool);
        assert!(drafter.usual_chance(&pool) < before, "one of two was right");
        assert!(drafter.chance_of(&pool, 0.6) < 0.55);
        drafter.guess(&pool, 4, |_| false);
        assert_ne!(text(&drafter.draft(4)), "xy", "an offer is for one step");
        for _ in 0..5000 {
            drafter.offered_nothing();
            pool.offered_nothing();
        }
        assert!((drafter.usual_chance(&pool) - before).abs() < 0.01);
    }
}
