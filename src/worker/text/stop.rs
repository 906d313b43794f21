//! Stop strings: text waits while it may be the beginning of one.
//!
//! The text ends as soon as any stop string is complete, judged byte by byte, and is cut where that one starts; of several
//! that complete with the same byte the one that starts first counts. A longer stop string that started earlier and is not
//! complete yet is not waited for: `ab` ends `xab`, whether or not `xabc` is a stop string too. So no stop string ever
//! shows up in what is released, and the answer does not wait for what may never come.
//!
//! Each stop string is followed by a Knuth–Morris–Pratt automaton: the cost for each byte is constant for each stop string,
//! and what must be held back is the longest beginning that any of them has matched. Both texts are UTF-8, so a match
//! always starts at a character.

/// Holds text back while a stop string may be in it.
#[derive(Clone, Debug)]
pub(super) struct StopMatcher {
    needles: Vec<Needle>,
    /// Text that was released by the last push, then text that is held back.
    buffer: String,
    released: usize,
}

impl StopMatcher {
    pub(super) fn new(stops: &[String]) -> Self {
        let needles = stops
            .iter()
            .filter(|stop| !stop.is_empty())
            .map(|stop| Needle::new(stop))
            .collect();
        Self {
            needles,
            buffer: String::new(),
            released: 0,
        }
    }

    /// Takes text in and returns what may go out, and whether a stop string was hit: then nothing may follow.
    pub(super) fn push<'a>(&'a mut self, text: &'a str) -> (&'a str, bool) {
        if self.needles.is_empty() {
            return (text, false);
        }
        let hit = self.first_hit(text.as_bytes());
        let holds = self.needles.iter().map(|needle| needle.matched).max();
        let holds = holds.unwrap_or_default();
        if self.released == self.buffer.len() && holds == 0 && hit.is_none() {
            return (text, false);
        }
        self.buffer.drain(..self.released);
        let start = match hit {
            Some(Hit { end, len }) => self.buffer.len() + end - len,
            None => self.buffer.len() + text.len() - holds,
        };
        self.buffer.push_str(text);
        self.released = start;
        (&self.buffer[..start], hit.is_some())
    }

    /// The text that was held back, once no more can come.
    pub(super) fn finish(&mut self) -> &str {
        let held = self.released;
        self.released = self.buffer.len();
        &self.buffer[held..]
    }

    /// The stop string that completes first in `text`; the longest one of those that complete together.
    fn first_hit(&mut self, text: &[u8]) -> Option<Hit> {
        let mut first: Option<Hit> = None;
        for needle in &mut self.needles {
            // Where a hit is known, only an end before it or at it is of interest.
            let within = first.map_or(text.len(), |hit| hit.end);
            if let Some(end) = needle.advance(&text[..within]) {
                let len = needle.bytes.len();
                if first.is_none_or(|hit| end < hit.end || len > hit.len) {
                    first = Some(Hit { end, len });
                }
            }
        }
        first
    }
}

/// A complete stop string: where it ends in the text just taken in, and its length.
#[derive(Clone, Copy)]
struct Hit {
    end: usize,
    len: usize,
}

/// One stop string and how much of it the text's tail has matched.
#[derive(Clone, Debug)]
struct Needle {
    bytes: Box<[u8]>,
    /// For each length that may have matched, the next shorter beginning that has matched then, too.
    shorter: Box<[usize]>,
    matched: usize,
}

impl Needle {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes();
        // `shorter[n]` belongs to n + 1 matched bytes.
        let mut shorter = vec![0; bytes.len()];
        let mut matched = 0;
        for at in 1..bytes.len() {
            while matched > 0 && bytes[at] != bytes[matched] {
                matched = shorter[matched - 1];
            }
            if bytes[at] == bytes[matched] {
                matched += 1;
            }
            shorter[at] = matched;
        }
        Self {
            bytes: bytes.into(),
            shorter: shorter.into(),
            matched: 0,
        }
    }

    /// Reads on, and returns the offset behind the byte that completed it. Not to be called after that.
    fn advance(&mut self, text: &[u8]) -> Option<usize> {
        let mut matched = self.matched;
        for (at, &byte) in text.iter().enumerate() {
            while matched > 0 && byte != self.bytes[matched] {
                matched = self.shorter[matched - 1];
            }
            if byte == self.bytes[matched] {
                matched += 1;
                if matched == self.bytes.len() {
                    return Some(at + 1);
                }
            }
        }
        self.matched = matched;
        None
    }
}
