//! One generation: what is left of its prompt, what it said, and when it ends. Knows no decoder and no channel; time
//! comes in.

use super::constraint::Constraint;
use super::decoder::{Position, Row, SeqId, Vocab};
use super::sampled::Sampled;
use super::sampling::{Likelihoods, Sampler};
use super::speculation::Drafter;
use super::text::{Piece, TextStream};
use super::tools::CallSplitter;
use crate::engine::wire::RequestId;
use crate::engine::{EngineError, Event, FinishReason, Likelihood, Logprob, Outcome, Token, Usage};
use crate::models::memory::SCORED_ROWS;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A request whose prompt is tokens already.
pub struct Arrival {
    /// Its number on the wire.
    pub id: RequestId,
    /// Who asked.
    pub client: String,
    /// The whole prompt; never empty.
    pub prompt: Vec<Token>,
    /// Tokens that may be sampled: with the prompt no more than a sequence has room for; none only where the prompt is echoed.
    pub max_tokens: u32,
    /// Chooses tokens.
    pub sampler: Sampler,
    /// Says which tokens may come, where the answer has a form.
    pub constraint: Option<Constraint>,
    /// Makes text of them.
    pub text: TextStream,
    /// Tells calls of tools from it, where there may be any.
    pub calls: Option<CallSplitter>,
    /// Finds log-probabilities, where they are wanted.
    pub likelihoods: Option<Likelihoods>,
    /// The prompt's text, if the answer begins with it.
    pub echo: Option<String>,
    /// Whether end-of-generation tokens are passed over; not where the answer has a form.
    pub ignore_eos: bool,
    /// Whether tokens that a sequence holds may be continued.
    pub reuse: bool,
    /// When it reached the worker.
    pub arrived: Instant,
    /// When its answer must end.
    pub deadline: Option<Instant>,
    /// Set when nobody reads the answer any more.
    pub cancelled: Arc<AtomicBool>,
}

impl Arrival {
    /// Whether nobody reads the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Whether the deadline has passed.
    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }
}

/// Another request's prompt, whose beginning is this one's too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lead {
    /// Who decodes it.
    pub id: RequestId,
    /// Where.
    pub seq: SeqId,
    /// Tokens that are wanted of it.
    pub length: Position,
}

/// A request that has a sequence.
pub struct Sequence {
    /// What was asked.
    pub arrival: Arrival,
    /// Where its tokens live.
    pub seq: SeqId,
    /// Whose tokens it waits for.
    pub lead: Option<Lead>,
    /// Guesses what it says next, once it speaks, where that is wanted.
    pub drafter: Option<Drafter>,
    /// Lengths at which its prompt is decoded no further in one step, because its state is wanted there.
    stops: Vec<Position>,
    cached: u32,
    /// Tokens that the sequence holds.
    held: Position,
    /// The token that was sampled last and is to be decoded next.
    next: Option<Token>,
    /// What was said in the last step, and not told yet.
    pieces: Vec<Piece>,
    sampled: u32,
    drafted: u32,
    drafts_kept: u32,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    done: Option<FinishReason>,
    /// Whether a stop string ended it, which may stand anywhere.
    stopped_short: bool,
    /// Why the answer can't go on.
    failed: Option<EngineError>,
    /// Tokens whose text has not gone out.
    waiting: Sampled,
    /// How likely the prompt's tokens were, where that is wanted, until it is echoed.
    prompt_scores: Vec<Logprob>,
    /// How likely the token was that is about to be accepted.
    score: Option<Logprob>,
}

impl Sequence {
    /// Starts in an empty sequence.
    pub fn new(arrival: Arrival, seq: SeqId) -> Self {
        Self {
            arrival,
            seq,
            lead: None,
            drafter: None,
            stops: Vec::new(),
            cached: 0,
            held: 0,
            next: None,
            pieces: Vec::new(),
            sampled: 0,
            drafted: 0,
            drafts_kept: 0,
            started: None,
            first_token: None,
            last_token: None,
            done: None,
            stopped_short: false,
            failed: None,
            waiting: Sampled::default(),
            prompt_scores: Vec::new(),
            score: None,
        }
    }

    /// Notes that the sequence has the first `cached` tokens of the prompt without having decoded them.
    pub fn begin_at(&mut self, cached: Position) {
        self.lead = None;
        self.cached = cached;
        self.held = cached;
    }

    /// Decodes the prompt up to `length` first.
    pub fn stop_at(&mut self, length: Position) {
        if length > self.held {
            self.stops.push(length);
        }
    }

    /// Whether the prompt stands where its state is wanted: there, or at its end.
    pub fn stands_at_a_stop(&self) -> bool {
        self.stops.contains(&self.held) || self.held as usize == self.arrival.prompt.len()
    }

    /// Tokens that its sequence holds.
    pub fn held(&self) -> Position {
        self.held
    }

    /// Whether the prompt's own tokens have log-probabilities.
    pub fn scores_prompt(&self) -> bool {
        self.arrival.echo.is_some() && self.arrival.likelihoods.is_some()
    }

    /// Prompt tokens that are still to be decoded; 0 once the answer has begun.
    pub fn prefill_left(&self) -> u32 {
        if self.lead.is_some() {
            return 0;
        }
        let prompt = u32::try_from(self.arrival.prompt.len()).unwrap_or(u32::MAX);
        let stop = self
            .stops
            .iter()
            .copied()
            .filter(|stop| *stop > self.held)
            .min();
        let left = stop.unwrap_or(prompt).min(prompt).saturating_sub(self.held);
        if self.scores_prompt() {
            left.min(SCORED_ROWS)
        } else {
            left
        }
    }

    /// Whether the next row is that of a sampled token.
    pub fn is_decoding(&self) -> bool {
        self.next.is_some()
    }

    /// Appends the row of the token that was sampled last, if the answer has begun, and behind it those of a draft.
    pub fn append_decode(&mut self, drafted: usize, rows: &mut Vec<Row>) {
        let Some(token) = self.next else { return };
        let draft = self
            .drafter
            .as_ref()
            .map_or_else(Vec::new, |drafter| drafter.draft(drafted));
        let said = std::iter::once(&token).chain(&draft);
        rows.extend((self.held..).zip(said).map(|(position, token)| Row {
            seq: self.seq,
            position,
            token: *token,
            logits: true,
        }));
        self.drafted += u32::try_from(draft.len()).unwrap_or(u32::MAX);
    }

    /// Tokens that may still be drafted behind the one that is due, in a sequence with room for `context` tokens.
    pub fn draftable(&self, context: Position) -> u32 {
        let tokens = self.arrival.max_tokens.saturating_sub(self.sampled);
        let room = context.saturating_sub(self.held);
        tokens.min(room).saturating_sub(1)
    }

    /// Appends the next `count` rows of the prompt; the prompt's last row asks for logits.
    pub fn append_prefill(&self, count: u32, rows: &mut Vec<Row>) {
        let prompt = &self.arrival.prompt;
        // Past the prompt once the answer has begun.
        let from = prompt.len().min(self.held as usize);
        let to = prompt.len().min(from + count as usize);
        for (position, token) in (self.held..).zip(&prompt[from..to]) {
            let logits = self.scores_prompt() || position as usize + 1 == prompt.len();
            rows.push(Row {
                seq: self.seq,
                position,
                token: *token,
                logits,
            });
        }
    }

    /// Notes the start of the first step that works for it.
    pub fn begin(&mut self, now: Instant) {
        self.started.get_or_insert(now);
    }

    /// Notes that `count` rows of the prompt were decoded.
    pub fn advance(&mut self, count: u32) {
        self.held += count;
    }

    /// Notes that the sampled token that was due was decoded, with `kept` more tokens of a draft.
    pub fn spoke(&mut self, kept: u32) {
        self.held += 1 + kept;
        self.drafts_kept += kept;
    }

    /// Looks at the logits before `position`: says the token for it, or how likely the prompt's was (`None`). The position
    /// decides the random number, whatever chunks and batches led there.
    pub fn speak(
        &mut self,
        logits: &[f32],
        position: Position,
        now: Instant,
        vocab: &dyn Vocab,
    ) -> Option<Token> {
        let token = self.sample(logits, position, vocab)?;
        let mut bytes = Vec::new();
        let said = if vocab.is_end(token) {
            None
        } else {
            vocab.append_bytes(token, &mut bytes);
            Some(bytes.as_slice())
        };
        self.accept(token, said, now);
        Some(token)
    }

    fn sample(&mut self, logits: &[f32], position: Position, vocab: &dyn Vocab) -> Option<Token> {
        let spell = |token: Token, bytes: &mut Vec<u8>| vocab.append_bytes(token, bytes);
        let said = self.arrival.prompt.get(position as usize).copied();
        let token = match said {
            Some(token) => token,
            None if self.arrival.max_tokens == 0 => {
                self.done = Some(FinishReason::Length);
                return None;
            }
            None => match self.choose(logits, position) {
                Ok(token) => token,
                Err(error) => {
                    self.fail(error);
                    return None;
                }
            },
        };
        let passes_over_ends = self.passes_over_ends();
        if let Some(likelihoods) = &mut self.arrival.likelihoods {
            // A token that ends the answer is none of it.
            if said.is_some() || passes_over_ends || !vocab.is_end(token) {
                let score = likelihoods.of(logits, token, spell);
                match said {
                    Some(_) => self.prompt_scores.push(score),
                    None => self.score = Some(score),
                }
            }
        }
        said.is_none().then_some(token)
    }

    /// A token that may come next.
    fn choose(&mut self, logits: &[f32], position: Position) -> Result<Token, EngineError> {
        let sampler = &mut self.arrival.sampler;
        let token = sampler.sample(logits, position);
        let Some(constraint) = &mut self.arrival.constraint else {
            return Ok(token);
        };
        if constraint.allows(token)? {
            return Ok(token);
        }
        Ok(sampler.sample_among(logits, position, constraint.mask()?))
    }

    /// An end token always ends an answer that has a form: it comes only where the form is complete.
    pub fn passes_over_ends(&self) -> bool {
        self.arrival.ignore_eos && self.arrival.constraint.is_none()
    }

    /// Ends it with an error.
    pub fn fail(&mut self, error: EngineError) {
        self.done.get_or_insert(FinishReason::Stop);
        self.failed.get_or_insert(error);
    }

    /// The prompt as the beginning of the answer, once, when all of it is decoded.
    pub fn take_echo(&mut self, vocab: &dyn Vocab) -> Option<Event> {
        let text = self.arrival.echo.take()?;
        let scored = self.arrival.likelihoods.is_some();
        let first = self.arrival.prompt.first().filter(|_| scored);
        let first = first.map(|token| {
            let mut bytes = Vec::new();
            vocab.append_bytes(*token, &mut bytes);
            let chosen = Likelihood {
                token: *token,
                bytes,
                logprob: 0.0,
            };
            Logprob {
                chosen,
                top: Vec::new(),
            }
        });
        let of_prompt = std::mem::take(&mut self.prompt_scores);
        Some(Event::Text {
            text,
            thinking: false,
            logprobs: first.into_iter().chain(of_prompt).collect(),
        })
    }

    /// The log-probabilities of tokens whose text is not whole, once the answer has ended.
    pub fn take_logprobs(&mut self) -> Vec<Logprob> {
        self.waiting.rest()
    }

    /// Takes the chosen token in with its text (`bytes`; `None` for a token that ends a generation). The sequence may be done after it.
    fn accept(&mut self, token: Token, bytes: Option<&[u8]>, now: Instant) {
        self.sampled += 1;
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        self.arrival.sampler.accept(token);
        self.next = Some(token);
        let before = self.arrival.text.length();
        let stopped = match bytes {
            Some(bytes) => {
                self.stopped_short = self.arrival.text.push(bytes, &mut self.pieces);
                self.stopped_short
            }
            None => !self.passes_over_ends(),
        };
        if bytes.is_some() || !stopped {
            let text = &self.arrival.text;
            let score = self.score.take();
            self.waiting
                .accept(before, text.length(), text.is_mid_character(), score);
        }
        let complete = match &mut self.arrival.constraint {
            Some(constraint) => constraint.accept(token).map(|()| constraint.is_complete()),
            None => Ok(false),
        };
        if let Err(error) = complete {
            self.fail(error);
        } else if stopped || complete == Ok(true) {
            self.done = Some(FinishReason::Stop);
        } else if self.sampled >= self.arrival.max_tokens {
            self.done = Some(FinishReason::Length);
        }
    }

    /// Ends it where it stands.
    pub fn stop(&mut self, reason: FinishReason) {
        self.done.get_or_insert(reason);
    }

    /// Whether it has ended.
    pub fn is_done(&self) -> bool {
        self.done.is_some()
    }

    /// The token that was sampled last and is to be decoded next.
    pub fn due(&self) -> Option<Token> {
        self.next
    }

    /// Tokens sampled so far.
    pub fn sampled(&self) -> u32 {
        self.sampled
    }

    /// Whether a token was sampled.
    pub fn has_spoken(&self) -> bool {
        self.sampled > 0
    }

    /// Tokens of the prompt that needed no decoding.
    pub fn cached(&self) -> u32 {
        self.cached
    }

    /// Appends the events of what was said: text, with the log-probabilities of its own tokens, and calls of tools.
    pub fn tell(&mut self, events: &mut Vec<Event>) {
        for piece in std::mem::take(&mut self.pieces) {
            let place = piece.from..piece.from + piece.text.len();
            let Piece { text, thinking, .. } = piece;
            let first = events.len();
            match &mut self.arrival.calls {
                Some(calls) if !thinking => {
                    let begins = calls.push(&text, place.start, events);
                    let sure = calls.unsure_from();
                    self.attach_logprobs(&mut events[first..], &begins);
                    self.waiting.forget(sure);
                }
                _ => {
                    events.push(Event::Text {
                        text,
                        thinking,
                        logprobs: Vec::new(),
                    });
                    if thinking {
                        self.waiting.thought(&place);
                    } else {
                        self.attach_logprobs(&mut events[first..], &[place.start]);
                    }
                }
            }
        }
    }

    /// Gives each text of the answer, which begins at the place of the same number, the log-probabilities of its tokens.
    fn attach_logprobs(&mut self, events: &mut [Event], begins: &[usize]) {
        let texts = events.iter_mut().filter_map(|event| match event {
            Event::Text { text, logprobs, .. } => Some((text.len(), logprobs)),
            _ => None,
        });
        for ((length, logprobs), begin) in texts.zip(begins) {
            *logprobs = self.waiting.told(&(*begin..begin + length));
        }
    }

    /// The last event of an ended sequence; those of what was held back are appended to `events`.
    pub fn finish(&mut self, events: &mut Vec<Event>) -> Event {
        let in_thought = self.arrival.text.is_thinking();
        self.arrival.text.finish(&mut self.pieces);
        self.tell(events);
        if let Some(error) = self.failed.take() {
            return Event::Failed(error);
        }
        let mut reason = self.done.unwrap_or(FinishReason::Stop);
        if let Some(calls) = &mut self.arrival.calls {
            let first = events.len();
            let in_call = calls.in_call();
            let cut = reason != FinishReason::Stop || self.stopped_short;
            let begins = calls.finish(cut, events);
            // A call that a stop string cut off can't be made.
            let whole = !(in_call && self.stopped_short);
            if reason == FinishReason::Stop && calls.calls() > 0 && whole {
                reason = FinishReason::ToolCalls;
            }
            self.attach_logprobs(&mut events[first..], &begins);
            if in_call {
                self.waiting.rest();
            }
        }
        // What is left is at most a part of a character. The answer's goes out without its text.
        self.waiting.forget(self.arrival.text.length());
        if in_thought {
            self.waiting.rest();
        }
        let arrived = self.arrival.arrived;
        let ms = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from).as_secs_f64() * 1000.0,
            _ => 0.0,
        };
        Event::Finished(Outcome {
            reason,
            usage: Usage {
                prompt_tokens: u32::try_from(self.arrival.prompt.len()).unwrap_or(u32::MAX),
                cached_tokens: self.cached,
                completion_tokens: self.sampled,
                drafted_tokens: self.drafted,
                draft_tokens_kept: self.drafts_kept,
                reasoning_tokens: self.waiting.thoughts(),
                queue_ms: ms(Some(arrived), self.started),
                prompt_ms: ms(self.started, self.first_token),
                ttft_ms: ms(Some(arrived), self.first_token),
                predicted_ms: ms(self.first_token, self.last_token),
            },
        })
    }
}
