//! Control texts, such as `<|im_end|>`: where they are, and how to break those up that a client wrote.
//!
//! A marker is a character that no message has. Put behind the first character of a control text it hides that text from
//! the search; it is taken out again before tokenising. A vocabulary may have thousands of control texts, and a prompt
//! megabytes: all searches are by one automaton, in one pass.

use aho_corasick::{AhoCorasick, Input, MatchKind};
use std::borrow::Cow;
use std::ops::Range;

/// The control texts of a vocabulary.
pub(super) struct ControlTexts {
    /// Finds the longest of the texts that begin earliest.
    finder: AhoCorasick,
    /// Characters that control texts begin with, sorted.
    first: Vec<char>,
    /// Characters that control texts end with, sorted.
    last: Vec<char>,
    longest: usize,
}

/// A part of a prompt that is tokenised by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Without markers.
    pub(super) text: Cow<'a, str>,
    /// Whether control texts in it are control tokens.
    pub(super) special: bool,
}

impl ControlTexts {
    pub(super) fn new(texts: &[String]) -> Self {
        let texts: Vec<&str> = texts
            .iter()
            .map(String::as_str)
            .filter(|text| !text.is_empty())
            .collect();
        let sorted = |mut chars: Vec<char>| {
            chars.sort_unstable();
            chars.dedup();
            chars
        };
        Self {
            finder: AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(&texts)
                .expect("the control texts of a vocabulary that fits in memory have fewer than 2³¹ bytes"),
            first: sorted(texts.iter().filter_map(|text| text.chars().next()).collect()),
            last: sorted(texts.iter().filter_map(|text| text.chars().next_back()).collect()),
            longest: texts.iter().map(|text| text.len()).max().unwrap_or(0),
        }
    }

    /// Bytes of the longest one.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// Whether a control text could begin or end in `text`.
    pub(super) fn touches(&self, text: &str) -> bool {
        text.chars()
            .any(|char| begins(&self.first, char) || begins(&self.last, char))
    }

    /// Puts the marker into all control texts of a message, and nowhere else.
    pub(super) fn break_up(&self, text: &str, marker: char) -> String {
        let mut out = String::with_capacity(text.len() + 16);
        let mut done = 0;
        for range in self.at_each_start(text) {
            let behind_first = range.start + first_char(&text[range]).len();
            out.push_str(&text[done..behind_first]);
            out.push(marker);
            done = behind_first;
        }
        out.push_str(&text[done..]);
        out
    }

    /// Puts the marker wherever a control text could begin or end in a message: behind each possible first character and
    /// before each possible last one.
    pub(super) fn lace(&self, text: &str, marker: char) -> String {
        let mut out = String::with_capacity(text.len() + text.len() / 8);
        for char in text.chars() {
            if begins(&self.last, char) {
                out.push(marker);
            }
            out.push(char);
            if begins(&self.first, char) {
                out.push(marker);
            }
        }
        out
    }

    /// The control texts of a rendered chat that no marker breaks, overlapping ones too.
    pub(super) fn found<'a>(
        &self,
        rendered: &'a str,
        marker: char,
    ) -> impl Iterator<Item = &'a str> {
        self.at_each_start(rendered)
            .filter(move |range| !is_marked(rendered, range, marker))
            .map(|range| &rendered[range])
    }

    /// Cuts a rendered chat for the tokeniser. What lies between two of the template's control texts and holds a marker
    /// is a piece of plain text; everything else stays together, control texts and all, so that the tokeniser's own rules
    /// about what is around a control token apply.
    pub(super) fn pieces<'a>(&self, rendered: &'a str, marker: Option<char>) -> Vec<Piece<'a>> {
        let Some(marker) = marker.filter(|&marker| rendered.contains(marker)) else {
            return vec![Piece {
                text: rendered.into(),
                special: true,
            }];
        };
        let own = self
            .finder
            .find_iter(rendered)
            .map(|found| found.range())
            .filter(|range| !is_marked(rendered, range, marker));
        let mut pieces = Vec::new();
        let (mut special_from, mut text_from) = (0, 0);
        for range in own.chain(std::iter::once(rendered.len()..rendered.len())) {
            let text = &rendered[text_from..range.start];
            if text.contains(marker) {
                push(&mut pieces, rendered[special_from..text_from].into(), true);
                push(&mut pieces, text.replace(marker, "").into(), false);
                special_from = range.start;
            }
            text_from = range.end;
        }
        push(&mut pieces, rendered[special_from..].into(), true);
        pieces
    }

    /// The longest control text at each place where one begins. An iterator over matches would leave out those that begin
    /// inside another.
    fn at_each_start(&self, text: &str) -> impl Iterator<Item = Range<usize>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let range = self.finder.find(Input::new(text).range(from..))?.range();
            from = range.start + first_char(&text[range.clone()]).len();
            Some(range)
        })
    }
}

fn push<'a>(pieces: &mut Vec<Piece<'a>>, text: Cow<'a, str>, special: bool) {
    if !text.is_empty() {
        pieces.push(Piece { text, special });
    }
}

/// A control text of one character can't be broken: the marker behind it says the same.
fn is_marked(text: &str, range: &Range<usize>, marker: char) -> bool {
    text[range.clone()].chars().nth(1).is_none() && text[range.end..].starts_with(marker)
}

fn first_char(text: &str) -> &str {
    let end = text.chars().next().map_or(0, char::len_utf8);
    &text[..end]
}

fn begins(sorted: &[char], char: char) -> bool {
    sorted.binary_search(&char).is_ok()
}
