//! Bytes to whole characters.
//!
//! A token may end in the middle of a character, and may hold bytes that are no UTF-8 at all. The characters that come out
//! are those of `String::from_utf8_lossy` over the whole output, except that an unfinished character at its end is dropped:
//! it is our cut that broke it, not the model.

/// Collects bytes until they are characters.
#[derive(Clone, Debug, Default)]
pub(super) struct Utf8Assembler {
    /// The beginning of a character: bytes that some further byte can complete.
    begun: [u8; 4],
    len: usize,
}

impl Utf8Assembler {
    /// Whether no character is begun.
    pub(super) fn is_idle(&self) -> bool {
        self.len == 0
    }

    /// Appends the characters that are whole now; bytes that can never become one turn into U+FFFD, one for each maximal
    /// run that began like a character.
    pub(super) fn push(&mut self, bytes: &[u8], characters: &mut String) {
        let rest = self.complete(bytes, characters);
        let mut chunks = rest.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            characters.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if chunks.peek().is_none() && is_unfinished(invalid) {
                self.begun[..invalid.len()].copy_from_slice(invalid);
                self.len = invalid.len();
            } else {
                characters.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }

    /// Goes on with the character that is begun, byte by byte, and returns the bytes that are not part of it.
    fn complete<'a>(&mut self, bytes: &'a [u8], characters: &mut String) -> &'a [u8] {
        let mut rest = bytes;
        while self.len > 0 {
            let Some((&byte, after)) = rest.split_first() else {
                break;
            };
            self.begun[self.len] = byte;
            let candidate = &self.begun[..=self.len];
            if let Ok(character) = str::from_utf8(candidate) {
                characters.push_str(character);
                self.len = 0;
            } else if is_unfinished(candidate) {
                self.len += 1;
            } else {
                // What was begun ends here for good; the byte itself may begin something new, so it stays.
                characters.push(char::REPLACEMENT_CHARACTER);
                self.len = 0;
                break;
            }
            rest = after;
        }
        rest
    }
}

/// Whether further bytes can make these a character.
fn is_unfinished(bytes: &[u8]) -> bool {
    matches!(str::from_utf8(bytes), Err(error) if error.valid_up_to() == 0 && error.error_len().is_none())
}
