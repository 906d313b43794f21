//! Finds a text in an answer's bytes, however tokens cut it (Knuth, Morris and Pratt). What a model says while it thinks is passed over.

use crate::worker::text::Think;

pub(super) const OPEN: &[u8] = b"<think>";
const CLOSE: &str = "</think>";

/// Where in an answer we are. Numbers are bytes of what may have begun there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// At its beginning, where it may open the model's reasoning.
    Margin(usize),
    /// In the reasoning.
    Thinking(usize),
    /// In what is told.
    Told(usize),
}

impl Seen {
    /// At the beginning of an answer.
    pub(super) fn of(thinking: Think) -> Self {
        match thinking {
            Think::Off => Self::Told(0),
            Think::Watch => Self::Margin(0),
            Think::Inside => Self::Thinking(0),
        }
    }
}

/// The text that is looked for.
#[derive(Clone, Debug)]
pub(super) struct Marker {
    text: Vec<u8>,
    /// For each length of a beginning: the longest shorter beginning that it ends with.
    borders: Vec<usize>,
}

/// What is known after more bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It was not found so far.
    Part(Seen),
    /// It was found; these bytes are behind it.
    Whole(Vec<u8>),
}

impl Marker {
    pub(super) fn new(text: &str) -> Self {
        let text = text.as_bytes().to_vec();
        let mut borders = vec![0; text.len() + 1];
        let mut border = 0;
        for at in 1..text.len() {
            while border > 0 && text[at] != text[border] {
                border = borders[border];
            }
            if text[at] == text[border] {
                border += 1;
            }
            borders[at + 1] = border;
        }
        Self { text, borders }
    }

    /// Whether nothing is looked for: what follows the reasoning, if there is some, is found at once.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Follows the answer through more bytes. An empty text is found at once.
    pub(super) fn follow(&self, seen: Seen, bytes: &[u8]) -> Found {
        match seen {
            Seen::Told(matched) => self.follow_told(matched, bytes),
            Seen::Margin(matched) => self.follow_margin(matched, bytes),
            Seen::Thinking(matched) => match Self::new(CLOSE).follow_told(matched, bytes) {
                Found::Part(Seen::Told(matched)) => Found::Part(Seen::Thinking(matched)),
                Found::Whole(rest) => self.follow_told(0, &rest),
                other @ Found::Part(_) => other,
            },
        }
    }

    fn follow_margin(&self, mut matched: usize, bytes: &[u8]) -> Found {
        for (at, byte) in bytes.iter().enumerate() {
            if *byte == OPEN[matched] {
                matched += 1;
                if matched == OPEN.len() {
                    return self.follow(Seen::Thinking(0), &bytes[at + 1..]);
                }
            } else if matched > 0 || !byte.is_ascii_whitespace() || self.text.is_empty() {
                // Where nothing else is looked for, the white space is part of what follows.

                let told = [&OPEN[..matched], &bytes[at..]].concat();
                return self.follow_told(0, &told);
            }
        }
        Found::Part(Seen::Margin(matched))
    }

    fn follow_told(&self, mut matched: usize, bytes: &[u8]) -> Found {
        if self.text.is_empty() {
            return Found::Whole(bytes.to_vec());
        }
        for (at, byte) in bytes.iter().enumerate() {
            while matched > 0 && self.text[matched] != *byte {
                matched = self.borders[matched];
            }
            if self.text[matched] == *byte {
                matched += 1;
            }
            if matched == self.text.len() {
                return Found::Whole(bytes[at + 1..].to_vec());
            }
        }
        Found::Part(Seen::Told(matched))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_however_it_is_cut() {
        for (marker, text, rest) in [
            ("<tool_call>", "a <tool_<tool_call>{", "{"),
            ("aab", "aaab", ""),
            ("abcabd", "abcabcabd!", "!"),
            ("x", "x", ""),
        ] {
            let marker = Marker::new(marker);
            for cut in 0..=text.len() {
                let (first, second) = text.as_bytes().split_at(cut);
                let found = match marker.follow(Seen::Told(0), first) {
                    Found::Part(matched) => marker.follow(matched, second),
                    Found::Whole(more) => Found::Whole([&more, second].concat()),
                };
                assert_eq!(
                    found,
                    Found::Whole(rest.as_bytes().into()),
                    "{text} at {cut}"
                );
            }
        }
        let told = |matched, bytes| Marker::new("abab").follow(Seen::Told(matched), bytes);
        assert_eq!(told(0, b"aba"), Found::Part(Seen::Told(3)));
        assert_eq!(told(3, b"c"), Found::Part(Seen::Told(0)));
    }

    #[test]
    fn reasoning_may_come_before_what_is_found_at_once() {
        let marker = Marker::new("");
        let follow = |bytes: &[u8]| marker.follow(Seen::Margin(0), bytes);
        assert_eq!(follow(b""), Found::Part(Seen::Margin(0)));
        assert_eq!(follow(b"<th"), Found::Part(Seen::Margin(3)));
        assert_eq!(follow(b"<think>a </th"), Found::Part(Seen::Thinking(4)));
        for (bytes, rest) in [
            (&b"<think>a</think>{"[..], &b"{"[..]),
            (b"<think></think>", b""),
            (b"{", b"{"),
            (b"<the", b"<the"),
            // White space before the reasoning would be white space before the form where none follows.
            (b" <think>", b" <think>"),
        ] {
            assert_eq!(follow(bytes), Found::Whole(rest.into()));
        }
    }

    #[test]
    fn what_is_thought_is_passed_over() {
        let marker = Marker::new("<tool_call>");
        for (thinking, text) in [
            (Think::Inside, "a <tool_call> b</think>c <tool_call>!"),
            (
                Think::Watch,
                " \n<think>a <tool_call> b</thi</think>c <tool_call>!",
            ),
            (Think::Watch, "<t<tool_call>!"),
            (Think::Watch, "c <think><tool_call>!"),
            (Think::Off, "<think><tool_call>!"),
        ] {
            for cut in 0..=text.len() {
                let (first, second) = text.as_bytes().split_at(cut);
                let found = match marker.follow(Seen::of(thinking), first) {
                    Found::Part(seen) => marker.follow(seen, second),
                    Found::Whole(more) => Found::Whole([&more, second].concat()),
                };
                assert_eq!(found, Found::Whole(b"!".into()), "{text} at {cut}");
            }
        }
    }
}
