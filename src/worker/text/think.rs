//! Thinking apart from the answer.
//!
//! Models that reason put it between `<think>` and `</think>`. Only a `<think>` that opens the output (white space before it
//! aside) counts, and only the first `</think>` after it: later ones are words of the answer. The marks go nowhere, nor does
//! the white space before the first or the line ends behind the second.

use super::{Outlet, Think};

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";
/// White space that may precede `<think>`, in bytes; more of it is an answer that begins with white space.
pub(super) const MARGIN: usize = 64;

/// Follows the marks, also across the borders of tokens.
#[derive(Clone, Debug)]
pub(super) struct ThinkSplitter {
    place: Place,
    /// Where in all that was said the text begins that is not put out or dropped yet.
    at: usize,
}

/// Where in the output we are. `matched` counts the bytes of the next mark that have been seen and are held back.
#[derive(Clone, Debug)]
enum Place {
    /// Before the first word: white space, then possibly the opening mark.
    Margin {
        space: String,
        matched: usize,
    },
    /// Between the marks.
    Thinking {
        matched: usize,
    },
    /// Behind the closing mark, before the answer's first character.
    Gap,
    Answer,
}

impl ThinkSplitter {
    pub(super) fn new(think: Think) -> Self {
        let place = match think {
            Think::Off => Place::Answer,
            Think::Watch => Place::Margin {
                space: String::new(),
                matched: 0,
            },
            Think::Inside => Place::Thinking { matched: 0 },
        };
        Self { place, at: 0 }
    }

    /// Whether it is behind the opening mark and not behind the closing one.
    pub(super) fn is_thinking(&self) -> bool {
        matches!(self.place, Place::Thinking { .. })
    }

    /// Takes text in and puts out what is sure to be thinking or answer.
    pub(super) fn push(&mut self, text: &str, outlet: &mut Outlet<'_>) {
        outlet.at = self.at;
        let mut rest = text;
        while !rest.is_empty() {
            let (taken, next) = match &mut self.place {
                Place::Margin { space, matched } => margin(space, matched, rest, outlet),
                Place::Thinking { matched } => thinking(matched, rest, outlet),
                Place::Gap => {
                    let answer = rest.trim_start_matches(['\n', '\r']);
                    let begins = !answer.is_empty();
                    let gap = rest.len() - answer.len();
                    outlet.at += gap;
                    (gap, begins.then_some(Place::Answer))
                }
                Place::Answer => {
                    outlet.put(rest, false);
                    (rest.len(), None)
                }
            };
            rest = &rest[taken..];
            if let Some(next) = next {
                self.place = next;
            }
        }
        self.at = outlet.at;
    }

    /// Puts out what was held back as the beginning of a mark, once no more can come.
    pub(super) fn finish(&mut self, outlet: &mut Outlet<'_>) {
        outlet.at = self.at;
        match &self.place {
            Place::Margin { space, matched } => {
                outlet.put(space, false);
                outlet.put(&OPEN[..*matched], false);
            }
            Place::Thinking { matched } => outlet.put(&CLOSE[..*matched], true),
            Place::Gap | Place::Answer => {}
        }
        self.place = Place::Answer;
        self.at = outlet.at;
    }
}

/// Reads on before the first word; returns the bytes read and the new place, if it changes.
fn margin(
    space: &mut String,
    matched: &mut usize,
    text: &str,
    outlet: &mut Outlet<'_>,
) -> (usize, Option<Place>) {
    for (at, character) in text.char_indices() {
        let end = at + character.len_utf8();
        if OPEN[*matched..].starts_with(character) {
            *matched += 1;
            if *matched == OPEN.len() {
                outlet.at += space.len() + OPEN.len();
                return (end, Some(Place::Thinking { matched: 0 }));
            }
        } else if *matched == 0
            && character.is_whitespace()
            && space.len() + character.len_utf8() <= MARGIN
        {
            space.push(character);
        } else {
            outlet.put(space, false);
            outlet.put(&OPEN[..*matched], false);
            return (at, Some(Place::Answer));
        }
    }
    (text.len(), None)
}

/// Reads on between the marks; returns the bytes read and the new place, if it changes.
fn thinking(matched: &mut usize, text: &str, outlet: &mut Outlet<'_>) -> (usize, Option<Place>) {
    let held = *matched;
    let mut taken = text.len();
    for (at, byte) in text.bytes().enumerate() {
        // The mark's first byte does not come again in it, so a mismatch can only begin anew.
        *matched = match byte {
            byte if byte == CLOSE.as_bytes()[*matched] => *matched + 1,
            b'<' => 1,
            _ => 0,
        };
        if *matched == CLOSE.len() {
            taken = at + 1;
            break;
        }
    }
    // All that was held, then all that was read, but not what is a mark or may become one.
    let release = held + taken - *matched;
    outlet.put(&CLOSE[..release.min(held)], true);
    outlet.put(&text[..release.saturating_sub(held)], true);
    let closed = *matched == CLOSE.len();
    if closed {
        outlet.at += CLOSE.len();
    }
    (taken, closed.then_some(Place::Gap))
}
