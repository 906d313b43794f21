//! The draft model: a smaller model that guesses what comes next, on the engine thread beside the one that answers.
//!
//! It keeps sequences of its own, which follow the texts as far as that pays: it decodes no prompt before it is asked, and is asked only
//! where more tokens are expected for the time (`speculation`). What it takes counts as time of the step.

use super::{Engine, micros};
use crate::engine::{CacheScope, Token};
use crate::worker::decoder::{Decoder, Draft, Position, Row, SeqId, StepError};
use crate::worker::speculation::{Costs, MOST_MODELLED, Outlook, Planned, plan_model};
use std::time::{Duration, Instant};

/// Tokens of a text that are decoded beside the first guess; those of one that is further behind are decoded before.
const NEAR: usize = MOST_MODELLED + 1;
/// An answer is expected to go on for as many tokens as it has, but for this many at least.
const AHEAD: u32 = 32;
/// Of a step's time, what catching up with a text may take: a half.
const CATCHING_UP: f32 = 0.5;

/// What its passes are taken to cost where that is not measured, of those of the large model.
const LITTLE: f32 = 0.1;

/// A draft model and what it holds.
pub(super) struct Model<'a> {
    decoder: &'a mut dyn Decoder,
    batch_size: usize,
    weight: f32,
    costs: Costs,
    /// Whether costs stay what they are.
    fixed: bool,
    held: Vec<Held>,
}

#[derive(Clone, Debug, Default)]
struct Held {
    client: String,
    tokens: Vec<Token>,
}

/// A step as it was planned without the draft model.
pub(super) struct Undrafted<'a> {
    /// The places of the sequences that speak.
    pub(super) who: &'a [usize],
    /// What each of them drafts from text.
    pub(super) planned: &'a Planned,
    /// What prompts take in it.
    pub(super) prefill_ms: f32,
    /// Rows that it has room for.
    pub(super) room: usize,
}

/// A sequence that may be guessed for.
struct Candidate {
    /// Among those that speak.
    index: usize,
    /// Among those that run.
    place: usize,
    seq: SeqId,
    /// All that was said, with the token that is due.
    text: Vec<Token>,
    /// Tokens of it that the draft model has not decoded.
    behind: usize,
    /// How many more it is expected to say.
    ahead: u32,
    /// Tokens that may be guessed.
    most: usize,
    /// How likely a guess is right.
    usual: f32,
}

impl<'a> Model<'a> {
    /// `costs` are fixed ones of the large model, where drafts are not to depend on what is measured.
    pub(super) fn new(draft: Draft<'a>, sequences: u32, costs: Option<Costs>) -> Self {
        let Draft {
            decoder,
            batch_size,
            weight,
        } = draft;
        let mut model = Self {
            decoder,
            batch_size: batch_size as usize,
            weight,
            costs: Costs::default(),
            fixed: costs.is_some(),
            held: vec![Held::default(); sequences as usize],
        };
        for rows in [1, 128] {
            if let Some(ms) = costs.and_then(|costs| costs.ms(rows)) {
                model.costs.observe(rows, ms * LITTLE);
            }
        }
        model
    }

    /// What its passes should take, if bytes of weights are what counts.
    fn expect(&mut self, costs: &Costs) {
        if let Some(ms) = costs.ms(1) {
            self.costs.expect(ms * self.weight);
        }
    }

    /// Makes its sequence a beginning of the text, and returns how many tokens are missing: one at least, whose logits are wanted. With
    /// `apart`, what it decoded for another client is of no use.
    fn align(&mut self, seq: SeqId, client: &str, text: &[Token], apart: bool) -> usize {
        let held = &mut self.held[seq.0 as usize];
        let same = held
            .tokens
            .iter()
            .zip(text)
            .take_while(|(held, text)| held == text);
        let mut kept = same.count().min(text.len().saturating_sub(1));
        if held.client != client {
            client.clone_into(&mut held.client);
            kept = if apart { 0 } else { kept };
        }
        if kept < held.tokens.len() {
            let to = Position::try_from(kept).unwrap_or(Position::MAX);
            if kept > 0 && self.decoder.cuttable(seq).contains(&to) {
                self.decoder.truncate(seq, to);
            } else {
                self.decoder.clear(seq);
                kept = 0;
            }
            held.tokens.truncate(kept);
        }
        text.len() - kept
    }

    /// Decodes tokens behind what the sequences hold. For each sequence that wants a guess, the likeliest next token and how likely it
    /// is.
    fn pass(&mut self, wanted: &[(SeqId, &[Token], bool)]) -> Result<Vec<(Token, f32)>, StepError> {
        let mut rows = Vec::new();
        for (seq, tokens, guess) in wanted {
            let held = &mut self.held[seq.0 as usize].tokens;
            for (index, token) in tokens.iter().enumerate() {
                rows.push(Row {
                    seq: *seq,
                    position: Position::try_from(held.len()).unwrap_or(Position::MAX),
                    token: *token,
                    logits: *guess && index + 1 == tokens.len(),
                });
                held.push(*token);
            }
        }
        let mut guesses = Vec::with_capacity(wanted.len());
        let began = Instant::now();
        self.decoder
            .step(&rows, &mut |_, logits| guesses.push(likeliest(logits)))?;
        if !self.fixed {
            let rows = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            self.costs.observe(rows, milliseconds(began.elapsed()));
        }
        Ok(guesses)
    }

    /// Rows of a text that it may decode within `ms`.
    fn chunk(&self, ms: f32) -> usize {
        let mut rows = 8;
        while rows * 2 <= self.batch_size
            && self
                .costs
                .ms(u32::try_from(rows * 2).unwrap_or(u32::MAX))
                .is_some_and(|expected| expected <= ms)
        {
            rows *= 2;
        }
        rows.min(self.batch_size)
    }
}

impl Engine<'_> {
    /// Lets the draft model guess where that is expected to pay; `chances` are then those of its guesses. Returns whether it did.
    pub(super) fn ask_model(&mut self, step: &Undrafted<'_>, chances: &mut [Vec<f32>]) -> bool {
        // Out of the engine while it works, and for good after an error.
        let Some(mut model) = self.model.take() else {
            return false;
        };
        let began = Instant::now();
        let asked = self.ask(&mut model, step, chances);
        self.stats.decode_us += micros(began.elapsed());
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => {
                tracing::error!(%error, "the draft model failed; it is not asked any more");
                return false;
            }
        };
        self.model = Some(model);
        if !asked {
            self.pool.offered_nothing();
            for place in step.who {
                if let Some(drafter) = &mut self.running[*place].drafter {
                    drafter.offered_nothing();
                }
            }
        }
        asked
    }

    fn ask(
        &mut self,
        model: &mut Model<'_>,
        step: &Undrafted<'_>,
        chances: &mut [Vec<f32>],
    ) -> Result<bool, StepError> {
        if !model.fixed {
            model.expect(&self.costs);
        }
        let mut candidates = self.candidates(model, step);
        let costs = self.costs;
        let planned = step.planned;
        let look = |model: &Costs, candidates: &[Candidate]| {
            let chances: Vec<f32> = candidates.iter().map(|one| one.usual).collect();
            let outlook = Outlook {
                speaking: step.who.len(),
                chances: &chances,
                costs: &costs,
                model,
                prefill_ms: step.prefill_ms,
                most_rows: step.room,
            };
            plan_model(&outlook, planned.rate)
        };
        let Some((_, rate)) = look(&model.costs, &candidates) else {
            return Ok(false);
        };
        let saved = 1.0 / planned.rate - 1.0 / rate;
        self.catch_up(model, &mut candidates, saved)?;
        // A pass has room for so many rows.
        let mut rows = 0;
        candidates.retain(|one| {
            rows += one.behind;
            one.behind <= NEAR && rows <= model.batch_size
        });
        let Some((length, rate)) = look(&model.costs, &candidates) else {
            return Ok(false);
        };
        let ends = |one: &Candidate, token: Token| {
            !self.running[one.place].passes_over_ends() && self.vocab.is_end(token)
        };
        let chance = |one: &Candidate, token: Token, confidence: f32| {
            let drafter = self.running[one.place].drafter.as_ref();
            let drafter = drafter.filter(|_| !ends(one, token));
            drafter.map_or(0.0, |drafter| drafter.chance_of(&self.pool, confidence))
        };
        let mut guesses = guess(model, &candidates, (length, rate), chance)?;
        for (one, guessed) in candidates.iter().zip(&mut guesses) {
            let end = guessed.iter().position(|(token, _)| ends(one, *token));
            guessed.truncate(end.unwrap_or(guessed.len()));
        }
        for (one, guessed) in candidates.iter().zip(guesses) {
            if let Some(drafter) = &mut self.running[one.place].drafter {
                chances[one.index] = drafter.offer(&self.pool, &guessed);
            }
        }
        Ok(true)
    }

    /// The sequences that speak and have no draft that pays, with how far the draft model is behind them.
    fn candidates(&self, model: &mut Model<'_>, step: &Undrafted<'_>) -> Vec<Candidate> {
        let apart = self.sizes.cache_scope == CacheScope::Client;
        let undrafted = step.who.iter().zip(&step.planned.lengths).enumerate();
        let undrafted = undrafted.filter(|(_, (_, length))| **length == 0);
        let candidate = |(index, (place, _)): (usize, (&usize, &usize))| {
            let sequence = &self.running[*place];
            let most = sequence.draftable(self.sizes.context_per_sequence);
            let drafter = sequence.drafter.as_ref().filter(|_| most > 0)?;
            let mut text = self.cache.tokens(sequence.seq).to_vec();
            text.extend(sequence.due());
            let behind = model.align(sequence.seq, &sequence.arrival.client, &text, apart);
            Some(Candidate {
                index,
                place: *place,
                seq: sequence.seq,
                text,
                behind,
                ahead: most.min(sequence.sampled().max(AHEAD)),
                most: most as usize,
                usual: drafter.usual_chance(&self.pool),
            })
        };
        undrafted.filter_map(candidate).collect()
    }

    /// Lets the draft model decode a part of the first text that it is far behind of, if the time that it saves is worth that.
    fn catch_up(
        &self,
        model: &mut Model<'_>,
        candidates: &mut [Candidate],
        saved: f32,
    ) -> Result<(), StepError> {
        let step_ms = f32::from(u16::try_from(self.sizes.step_ms).unwrap_or(u16::MAX));
        let chunk = model.chunk(CATCHING_UP * step_ms);
        let far = |one: &&mut Candidate| {
            let passes = number(one.behind) / number(chunk);
            let ms = model.costs.ms(u32::try_from(chunk).unwrap_or(u32::MAX));
            let gain = saved * f32::from(u16::try_from(one.ahead).unwrap_or(u16::MAX));
            one.behind > NEAR && ms.is_some_and(|ms| ms * passes < gain)
        };
        let Some(one) = candidates.iter_mut().find(far) else {
            return Ok(());
        };
        let held = one.text.len() - one.behind;
        let rows = chunk.min(one.behind - 1);
        model.pass(&[(one.seq, &one.text[held..held + rows], false)])?;
        one.behind -= rows;
        Ok(())
    }
}

/// Guesses up to `length` tokens for each candidate, in as many passes. `chance` says how likely this token comes true of which the
/// model is so sure; a guess that promises less than `rate` tokens in a millisecond is not continued.
fn guess(
    model: &mut Model<'_>,
    candidates: &[Candidate],
    (length, rate): (usize, f32),
    chance: impl Fn(&Candidate, Token, f32) -> f32,
) -> Result<Vec<Vec<(Token, f32)>>, StepError> {
    let mut guesses: Vec<Vec<(Token, f32)>> = vec![Vec::new(); candidates.len()];
    let mut reach = vec![1.0; candidates.len()];
    let mut going: Vec<usize> = (0..candidates.len()).collect();
    for pass in 0..length {
        let wanted: Vec<(SeqId, Vec<Token>)> = going
            .iter()
            .map(|index| {
                let one = &candidates[*index];
                let tokens = match guesses[*index].last() {
                    None => one.text[one.text.len() - one.behind..].to_vec(),
                    Some((token, _)) => vec![*token],
                };
                (one.seq, tokens)
            })
            .collect();
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(seq, tokens)| (*seq, tokens.as_slice(), true))
            .collect();
        let said = model.pass(&wanted)?;
        let next = model
            .costs
            .ms(u32::try_from(going.len()).unwrap_or(u32::MAX));
        let share = next.unwrap_or(f32::INFINITY) / number(going.len());
        let mut index = 0;
        for (one, (token, confidence)) in going.clone().into_iter().zip(said) {
            let candidate = &candidates[one];
            guesses[one].push((token, confidence));
            reach[one] *= chance(candidate, token, confidence);
            // What the next guess is expected to bring, and what its share of a pass costs.
            let pays = reach[one] * candidate.usual > rate * share;
            if pays && pass + 1 < candidate.most {
                index += 1;
            } else {
                going.remove(index);
            }
        }
        if going.is_empty() {
            break;
        }
    }
    Ok(guesses)
}

/// The likeliest token and its probability.
fn likeliest(logits: &[f32]) -> (Token, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, logit) in (0..).zip(logits) {
        if *logit > best.1 {
            best = (token, *logit);
        }
    }
    let sum: f32 = logits.iter().map(|logit| (logit - best.1).exp()).sum();
    (Token(best.0), 1.0 / sum)
}

fn milliseconds(time: Duration) -> f32 {
    time.as_secs_f32() * 1000.0
}

fn number(n: usize) -> f32 {
    f32::from(u16::try_from(n).unwrap_or(u16::MAX))
}
