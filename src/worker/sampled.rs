//! Tokens that were sampled, until it is known what became of their text: part of the answer, of the reasoning, or of nothing.
//!
//! Places are those of [`super::text::TextStream`]: bytes of whole characters from the first thing said on, marks included. So a
//! log-probability goes out with the text of its own token, whatever is held back or left out around it. Pure.

use crate::engine::Logprob;
use std::collections::VecDeque;
use std::ops::Range;

/// See the module.
#[derive(Debug, Default)]
pub struct Sampled {
    tokens: VecDeque<Waiting>,
    thoughts: u32,
}

#[derive(Debug)]
struct Waiting {
    place: Range<usize>,
    score: Option<Logprob>,
    is_thought: bool,
}

impl Sampled {
    /// Takes in a token that was accepted: the characters whole before it and behind it, whether it ends within one, and how likely it
    /// was, where that is wanted.
    pub fn accept(
        &mut self,
        before: usize,
        behind: usize,
        mid_character: bool,
        score: Option<Logprob>,
    ) {
        // A part of a character is where that character will be; a token without text is where the next one is.
        let end = (behind + usize::from(mid_character)).max(before + 1);
        self.tokens.push_back(Waiting {
            place: before..end,
            score,
            is_thought: false,
        });
    }

    /// Reasoning went out that lies here: its tokens are counted.
    pub fn thought(&mut self, place: &Range<usize>) {
        self.forget(place.start);
        for token in &mut self.tokens {
            if token.place.start >= place.end {
                break;
            }
            self.thoughts += u32::from(!token.is_thought);
            token.is_thought = true;
        }
    }

    /// Text of the answer went out that lies here: the log-probabilities of its tokens. Each is given once, with the first text
    /// that its token has a part in.
    pub fn told(&mut self, place: &Range<usize>) -> Vec<Logprob> {
        self.forget(place.start);
        let count = self
            .tokens
            .partition_point(|token| token.place.start < place.end);
        let told = self.tokens.drain(..count);
        told.filter_map(|token| token.score).collect()
    }

    /// All before this place has gone out or will not: whatever is left of it is part of nothing.
    pub fn forget(&mut self, to: usize) {
        while self
            .tokens
            .front()
            .is_some_and(|token| token.place.end <= to)
        {
            self.tokens.pop_front();
        }
    }

    /// The log-probabilities of what is left.
    pub fn rest(&mut self) -> Vec<Logprob> {
        let rest = self.tokens.drain(..);
        rest.filter_map(|token| token.score).collect()
    }

    /// Tokens of the reasoning that has gone out.
    pub fn thoughts(&self) -> u32 {
        self.thoughts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Likelihood, Token};
    use crate::worker::text::{TextStream, Think};

    /// What goes out with the answer when the tokens are these, and how many of them are thoughts.
    fn answer(thinking: Think, stop: &[&str], tokens: &[&[u8]]) -> (String, Vec<Vec<u8>>, u32) {
        let stop: Vec<String> = stop.iter().map(ToString::to_string).collect();
        let mut stream = TextStream::new(&stop, thinking);
        let mut sampled = Sampled::default();
        let (mut text, mut scores, mut pieces) = (String::new(), Vec::new(), Vec::new());
        let mut tell = |pieces: &mut Vec<crate::worker::text::Piece>, sampled: &mut Sampled| {
            for piece in pieces.drain(..) {
                let place = piece.from..piece.from + piece.text.len();
                if piece.thinking {
                    sampled.thought(&place);
                } else {
                    text.push_str(&piece.text);
                    scores.extend(sampled.told(&place));
                }
            }
        };
        for bytes in tokens {
            let bytes = bytes.to_vec();
            let before = stream.length();
            stream.push(&bytes, &mut pieces);
            let token = Token(0);
            let score = Logprob {
                chosen: Likelihood {
                    token,
                    bytes,
                    logprob: 0.0,
                },
                top: Vec::new(),
            };
            sampled.accept(
                before,
                stream.length(),
                stream.is_mid_character(),
                Some(score),
            );
            tell(&mut pieces, &mut sampled);
        }
        stream.finish(&mut pieces);
        tell(&mut pieces, &mut sampled);
        let scores = scores.into_iter().map(|score| score.chosen.bytes);
        (text, scores.collect(), sampled.thoughts())
    }

    #[test]
    fn a_token_goes_with_the_text_that_it_has_a_part_in() {
        type Tokens = &'static [&'static [u8]];
        let table: &[(Think, Tokens, &str, Tokens, u32)] = &[
            (
                Think::Inside,
                &[b"hm", b"</think>", b"\n", b"a", b"b"],
                "ab",
                &[b"a", b"b"],
                1,
            ),
            // A token over the border has a part in both.
            (
                Think::Inside,
                &[b"hm", b"m</think>a", b"b"],
                "ab",
                &[b"m</think>a", b"b"],
                2,
            ),
            (
                Think::Watch,
                &[b"<think>h", b"m</thi", b"nk>\n\na"],
                "a",
                &[b"nk>\n\na"],
                2,
            ),
            // Parts of characters, alone and over borders.
            (
                Think::Off,
                &[b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80!"],
                "é😀!",
                &[b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80!"],
                0,
            ),
            (
                Think::Inside,
                &[b"\xc3", b"\xa9</think>\xc3", b"\xa9"],
                "é",
                &[b"\xa9</think>\xc3", b"\xa9"],
                2,
            ),
            // Broken for good, and a token without text.
            (
                Think::Off,
                &[b"\xc3", b"", b"a"],
                "\u{fffd}a",
                &[b"\xc3", b"", b"a"],
                0,
            ),
            (
                Think::Inside,
                &[b"", b"a</think>", b"", b"b"],
                "b",
                &[b"", b"b"],
                2,
            ),
        ];
        for (thinking, tokens, text, scores, thoughts) in table {
            let scores: Vec<Vec<u8>> = scores.iter().map(|bytes| bytes.to_vec()).collect();
            let expected = (text.to_string(), scores, *thoughts);
            assert_eq!(answer(*thinking, &[], tokens), expected);
            // A stop string that holds back as much as it can changes nothing.
            let stops = ["</think>\n\nab\u{1}", "\n\n\n\n\n", "a!", "hh"];
            assert_eq!(answer(*thinking, &stops, tokens), expected);
        }
    }
}
