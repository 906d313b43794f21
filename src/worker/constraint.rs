//! Answers held to a form while they are sampled.
//!
//! [`Constraints`] is of a model: its vocabulary as a tree of bytes, and a compiler of formats. [`Constraint`] is of an answer: it
//! knows which tokens may come next, and when the answer is complete. The grammar engine is llguidance; what is ours is
//! - what a schema may contain (`schema`): what the engine would ignore or get wrong is refused, with its place;
//! - bounds that no grammar states (`guard`): numbers that every reader can read, nesting that ends;
//! - GBNF (`gbnf`), and texts of which only a part is held to a form ([`Start::After`]).
//!
//! Control tokens have no bytes, so no grammar reaches them; an end token may come where the form is complete. Once the engine
//! reports an error there is no token that may come next: text is never let through unchecked.
//!
//! JSON is written without white space between its tokens: small models otherwise fill their answers with it.

mod compiler;
mod gbnf;
mod guard;
mod marker;
mod model;
mod pattern;
mod schema;

#[cfg(test)]
mod tests;

use crate::engine::{EngineError, Format, Token};
use crate::worker::text::Think;
pub use compiler::{Compiler, Job};
use guard::Guard;
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;
use marker::{Found, Marker, Seen};
pub use model::{Constraints, MOST_FORMAT_BYTES};
use model::{NOTHING_FITS, plain};
use serde_json::Value;
use std::sync::Arc;

/// What an answer is held to.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// What the client asked for.
    Asked(Format),
    /// Calls of tools, by a grammar of ours: Lark, with the tools' schemas inside, which [`prepared_schema`] has passed.
    Calls {
        /// The grammar.
        grammar: String,
        /// Whether the answer may be text instead, which is no JSON.
        or_text: bool,
    },
}

/// The schema as grammars can contain it, or what is wrong with it and where.
pub fn prepared_schema(schema: &Value) -> Result<Value, String> {
    schema::prepare(schema)
}

/// The schema of any object, as grammars can contain it.
pub fn any_object() -> Value {
    schema::any_object()
}

/// Where in an answer the form begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first token.
    Now,
    /// Behind this text; what comes before it is free.
    After(String),
}

/// Which parts of an answer are held to a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the form begins.
    pub start: Start,
    /// Whether the answer may end without it. Means nothing with [`Start::Now`].
    pub optional: bool,
    /// Whether free text, and the form once more, may follow; else the answer ends with the form. Means nothing with [`Start::Now`].
    pub again: bool,
    /// Where the model may think first: there [`Start::After`]'s text counts for nothing.
    pub thinking: Think,
}

impl Plan {
    /// All of the answer has the form.
    pub const WHOLE: Self = Self {
        start: Start::Now,
        optional: false,
        again: false,
        thinking: Think::Off,
    };

    /// The answer has the form; reasoning comes first and is free, where the prompt has opened it or the model opens it itself.
    pub fn of_answer(thinking: Think) -> Self {
        match thinking {
            Think::Off => Self::WHOLE,
            Think::Watch => Self {
                start: Start::After(String::new()),
                thinking,
                ..Self::WHOLE
            },
            Think::Inside => Self {
                start: Start::After("</think>".into()),
                ..Self::WHOLE
            },
        }
    }
}

/// Holds one answer to its form.
pub struct Constraint {
    of: Arc<Constraints>,
    matcher: Matcher,
    /// The matcher as it was at first, where the form may come again.
    fresh: Option<Matcher>,
    /// Bounds for JSON.
    guard: Option<Guard>,
    marker: Option<Marker>,
    phase: Phase,
    optional: bool,
    /// The latest mask, kept for its memory.
    mask: SimpleVob,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Free text, up to here.
    Free(Seen),
    Held,
    Done,
}

impl Constraint {
    /// Whether the token may come next. Much cheaper than [`Constraint::mask`].
    pub fn allows(&mut self, token: Token) -> Result<bool, EngineError> {
        if !self.of.choosable.is_allowed(token.0) {
            return Ok(false);
        }
        match self.phase {
            Phase::Done => Ok(self.of.is_end(token)),
            Phase::Free(seen) => self.allows_freely(token, seen),
            Phase::Held => {
                let guarded = self
                    .guard
                    .is_none_or(|guard| guard.takes(self.of.bytes(token)));
                Ok(guarded && self.fits(&[self.of.known(token)])?)
            }
        }
    }

    /// One bit for each token of the vocabulary, lowest first: whether it may come next. At least one is set.
    pub fn mask(&mut self) -> Result<&[u32], EngineError> {
        self.mask = match self.phase {
            Phase::Done => self.of.env.tok_trie().eos_token_set(),
            Phase::Free(seen) => self.free_mask(seen)?,
            Phase::Held => self.held_mask()?,
        };
        if self.mask.is_zero() {
            return Err(dead_end());
        }
        Ok(self.mask.as_slice())
    }

    /// Takes in the token that was chosen, which must be allowed.
    pub fn accept(&mut self, token: Token) -> Result<(), EngineError> {
        if self.of.is_end(token) {
            self.phase = Phase::Done;
            return Ok(());
        }
        match self.phase {
            Phase::Done => Err(dead_end()),
            Phase::Held => self.consume(&[self.of.known(token)]),
            Phase::Free(seen) => match self.look(token, seen) {
                Found::Part(seen) => {
                    self.phase = Phase::Free(seen);
                    Ok(())
                }
                Found::Whole(rest) => {
                    let rest = self.of.cut(&rest).ok_or_else(dead_end)?;
                    self.phase = Phase::Held;
                    self.consume(&rest)
                }
            },
        }
    }

    /// Whether the answer is complete: nothing may follow but its end.
    pub fn is_complete(&self) -> bool {
        self.phase == Phase::Done
    }

    fn look(&self, token: Token, seen: Seen) -> Found {
        let bytes = self.of.bytes(token);
        match &self.marker {
            Some(marker) => marker.follow(seen, bytes),
            None => Found::Part(Seen::Told(0)),
        }
    }

    fn allows_freely(&mut self, token: Token, seen: Seen) -> Result<bool, EngineError> {
        if self.of.is_end(token) {
            let at_the_form = seen == Seen::Margin(0) && self.begins_at_once();
            return Ok(self.optional || at_the_form && self.fits(&[self.of.known(token)])?);
        }
        match self.look(token, seen) {
            Found::Part(_) => Ok(true),
            Found::Whole(rest) if rest.is_empty() => Ok(true),
            // A token that reaches over the marker's end: what is behind it must fit the form.
            Found::Whole(rest) => match self.of.cut(&rest) {
                Some(tokens) if self.guard.is_none_or(|guard| guard.takes(&rest)) => {
                    self.fits(&tokens)
                }
                _ => Ok(false),
            },
        }
    }

    fn fits(&mut self, tokens: &[u32]) -> Result<bool, EngineError> {
        let fitting = self.matcher.validate_tokens(tokens);
        let fitting = fitting.map_err(|_| self.failure())?;
        Ok(fitting == tokens.len())
    }

    fn consume(&mut self, tokens: &[u32]) -> Result<(), EngineError> {
        let consumed = self.matcher.consume_tokens(tokens);
        consumed.map_err(|_| self.failure())?;
        if let Some(guard) = &mut self.guard {
            for token in tokens {
                guard.push(self.of.env.tok_trie().token(*token));
            }
        }
        if !self.matcher.is_stopped() {
            return Ok(());
        }
        if !self.matcher.stop_reason().is_ok() {
            return Err(self.failure());
        }
        match &self.fresh {
            None => self.phase = Phase::Done,
            Some(fresh) => {
                self.matcher = fresh.deep_clone();
                self.guard = self.guard.map(|_| Guard::default());
                self.phase = Phase::Free(Seen::Told(0));
                self.optional = true;
            }
        }
        Ok(())
    }

    fn held_mask(&mut self) -> Result<SimpleVob, EngineError> {
        let mask = self.matcher.compute_mask_or_eos();
        let mut mask = mask.map_err(|_| self.failure())?;
        for (twin, kept) in &self.of.twins {
            if mask.is_allowed(*kept) {
                mask.allow_token(*twin);
            }
        }
        mask.and(&self.of.choosable);
        if let Some(guard) = self.guard.filter(|guard| guard.is_near_a_bound()) {
            let mut bounded = mask.clone();
            mask.iter_set_entries(|id| {
                let token = Token(u32::try_from(id).unwrap_or(u32::MAX));
                if !guard.takes(self.of.bytes(token)) {
                    bounded.disallow_token(token.0);
                }
            });
            // A form that asks for more than the bounds give goes before them, while readers can follow.
            if !bounded.is_zero() || guard.is_at_the_end() {
                mask = bounded;
            }
        }
        Ok(mask)
    }

    /// All tokens but those that reach into the form with something that does not fit it.
    fn free_mask(&mut self, seen: Seen) -> Result<SimpleVob, EngineError> {
        if let Seen::Margin(matched) = seen
            && self.begins_at_once()
            && let Some(mask) = self.margin_mask(matched)?
        {
            return Ok(mask);
        }
        let mut mask = self.of.choosable.clone();
        for id in (0..).take(mask.len()) {
            if mask.is_allowed(id) && !self.allows_freely(Token(id), seen)? {
                mask.disallow_token(id);
            }
        }
        Ok(mask)
    }

    /// Whether the form begins with the answer, or right behind the reasoning.
    fn begins_at_once(&self) -> bool {
        self.marker.as_ref().is_some_and(Marker::is_empty)
    }

    /// What comes next where reasoning may come first. It comes where the model itself says so: at the start, the set is the form's,
    /// and one that wanted neither is not made to think; behind a part of the mark, what goes on with it. `None` where the form may
    /// have begun like the mark: only each token by itself can tell.
    fn margin_mask(&mut self, matched: usize) -> Result<Option<SimpleVob>, EngineError> {
        let (begun, next) = marker::OPEN.split_at(matched);
        if begun.is_empty() {
            return self.held_mask().map(Some);
        }
        if let Some(tokens) = self.of.cut(begun)
            && self.fits(&tokens)?
        {
            return Ok(None);
        }
        let mut mask = self.of.env.tok_trie().alloc_token_set();
        for id in (0..).take(self.of.choosable.len()) {
            let token = Token(id);
            let goes_on = self.of.bytes(token).first() == next.first();
            if goes_on
                && self.of.choosable.is_allowed(id)
                && self.allows_freely(token, Seen::Margin(matched))?
            {
                mask.allow_token(id);
            }
        }
        Ok(Some(mask))
    }

    fn failure(&self) -> EngineError {
        let error = plain(&self.matcher.get_error().unwrap_or_default());
        if error == NOTHING_FITS {
            return dead_end();
        }
        EngineError::BadRequest(format!(
            "the format can't be followed any further, simplify it: {error}"
        ))
    }
}

fn dead_end() -> EngineError {
    EngineError::BadRequest(
        "the format allows nothing more at this place of the answer: check that it can be completed"
            .into(),
    )
}
