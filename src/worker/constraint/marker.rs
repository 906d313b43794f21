//! Finds a text in a stream of bytes, however tokens cut it (Knuth, Morris and Pratt).

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
    /// So many bytes of the text may have begun.
    Part(usize),
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

    /// Follows the text, of which `matched` bytes have been seen, through more bytes. An empty text is found at once.
    pub(super) fn follow(&self, mut matched: usize, bytes: &[u8]) -> Found {
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
        Found::Part(matched)
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
                let found = match marker.follow(0, first) {
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
        assert_eq!(Marker::new("abab").follow(0, b"aba"), Found::Part(3));
        assert_eq!(Marker::new("abab").follow(3, b"c"), Found::Part(0));
    }
}
