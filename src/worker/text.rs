//! From token bytes to text that may go out.
//!
//! Three stages in a row, each holding back what it cannot judge yet: whole characters (`utf8`), nothing of a stop string
//! (`stop`), thinking apart from the answer (`think`). Stop strings are matched on the text as the model said it, marks
//! included, so they end thinking and answer alike. What comes out does not depend on where the tokens cut the text.
//!
//! Pure: no clock, no channel, no panic on any input.

mod stop;
mod think;
mod utf8;

#[cfg(test)]
mod tests;

use stop::StopMatcher;
use think::ThinkSplitter;
use utf8::Utf8Assembler;

/// A piece of what the model said: whole characters, never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// What was said.
    pub text: String,
    /// Whether it belongs to the model's reasoning, not to its answer.
    pub thinking: bool,
    /// Where it begins in all that the model said, in bytes of whole characters ([`TextStream::length`]).
    pub from: usize,
}

/// Where to expect the model's reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Think {
    /// Nowhere: all text is answer, marks are text like any other.
    Off,
    /// After a `<think>` that opens the output, up to `</think>`.
    Watch,
    /// From the start, up to `</think>`, because the prompt itself ended with `<think>`.
    Inside,
}

/// Turns one generation's tokens into text.
#[derive(Clone, Debug)]
pub struct TextStream {
    utf8: Utf8Assembler,
    stop: StopMatcher,
    think: ThinkSplitter,
    /// Reused for the characters that did not lie whole in one token.
    characters: String,
    /// Bytes of all characters so far.
    length: usize,
    over: bool,
}

impl TextStream {
    /// A stream that ends before the first of the `stop` strings; empty ones are ignored.
    pub fn new(stop: &[String], think: Think) -> Self {
        Self {
            utf8: Utf8Assembler::default(),
            stop: StopMatcher::new(stop),
            think: ThinkSplitter::new(think),
            characters: String::new(),
            length: 0,
            over: false,
        }
    }

    /// Bytes of all whole characters that were said so far, marks and what is held back included.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether the last token ended in the middle of a character.
    pub fn is_mid_character(&self) -> bool {
        !self.utf8.is_idle()
    }

    /// Whether what comes next is reasoning, as far as can be told.
    pub fn is_thinking(&self) -> bool {
        self.think.is_thinking()
    }

    /// Takes a token's bytes and appends the text that may go out: at most one piece of thinking and one of answer.
    /// Returns whether a stop string was hit; what comes after it is ignored.
    pub fn push(&mut self, bytes: &[u8], pieces: &mut Vec<Piece>) -> bool {
        if self.over {
            return true;
        }
        let characters = match str::from_utf8(bytes) {
            // Most tokens are whole characters and need no copy on the way.
            Ok(text) if self.utf8.is_idle() => text,
            _ => {
                self.characters.clear();
                self.utf8.push(bytes, &mut self.characters);
                &self.characters
            }
        };
        self.length += characters.len();
        let (released, hit) = self.stop.push(characters);
        self.over = hit;
        self.think.push(released, &mut Outlet::new(pieces));
        hit
    }

    /// Appends what is still held back, once generation has ended. An unfinished character is dropped, and after a stop
    /// string nothing is left but the possible beginning of a mark before it.
    pub fn finish(&mut self, pieces: &mut Vec<Piece>) {
        let mut outlet = Outlet::new(pieces);
        if !self.over {
            self.think.push(self.stop.finish(), &mut outlet);
        }
        self.think.finish(&mut outlet);
        self.over = true;
    }
}

/// Appends to the caller's pieces, joining what is of one kind, but never to pieces that were there before.
struct Outlet<'a> {
    pieces: &'a mut Vec<Piece>,
    first: usize,
    /// Where what comes next begins in all that was said.
    at: usize,
}

impl<'a> Outlet<'a> {
    fn new(pieces: &'a mut Vec<Piece>) -> Self {
        let first = pieces.len();
        Self {
            pieces,
            first,
            at: 0,
        }
    }

    /// Text that is sure. What is of one kind has no gap.
    fn put(&mut self, text: &str, thinking: bool) {
        if text.is_empty() {
            return;
        }
        let from = self.at;
        self.at += text.len();
        match self.pieces[self.first..].last_mut() {
            Some(last) if last.thinking == thinking => last.text.push_str(text),
            _ => self.pieces.push(Piece {
                text: text.to_owned(),
                thinking,
                from,
            }),
        }
    }
}
