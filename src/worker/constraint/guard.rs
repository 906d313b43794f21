//! Bounds for JSON that grammars do not state: numbers that every reader can hold, and nesting that ends.
//!
//! It follows the text by byte. What it is shown is JSON without white space, because the grammar sees to that.

/// Digits of a number before its point, and behind it.
const MOST_DIGITS: u8 = 20;
/// Digits of an exponent: together with the others within a double's range.
const MOST_EXPONENT_DIGITS: u8 = 2;
/// Arrays and objects inside each other.
const MOST_DEPTH: u16 = 64;
/// Where a form asks for deeper ones, up to here; common readers end at 128.
const LAST_DEPTH: u16 = 120;
/// More brackets than a token opens.
const DEPTH_MARGIN: u16 = 16;

/// Where in a JSON text we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Guard {
    depth: u16,
    place: Place,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Between,
    String,
    /// Behind a backslash.
    Escape,
    /// In a number's part that has so many digits and may have so many.
    Number {
        digits: u8,
        most: u8,
    },
}

impl Guard {
    /// Takes text in; `false` if it goes over a bound.
    pub(super) fn push(&mut self, bytes: &[u8]) -> bool {
        let mut within = true;
        for byte in bytes {
            within &= self.push_byte(*byte);
        }
        within
    }

    /// Whether the text may come next.
    pub(super) fn takes(mut self, bytes: &[u8]) -> bool {
        self.push(bytes)
    }

    /// Whether a token could go over a bound here.
    pub(super) fn is_near_a_bound(self) -> bool {
        matches!(self.place, Place::Number { .. }) || self.depth + DEPTH_MARGIN > MOST_DEPTH
    }

    /// Whether the bounds can't be widened any more.
    pub(super) fn is_at_the_end(self) -> bool {
        self.depth >= LAST_DEPTH
    }

    fn push_byte(&mut self, byte: u8) -> bool {
        match (self.place, byte) {
            (Place::String, b'\\') => self.place = Place::Escape,
            (Place::Escape, _) => self.place = Place::String,
            (Place::String, b'"') => self.place = Place::Between,
            (Place::String, _) | (Place::Number { .. }, b'+' | b'-') => {}
            (Place::Number { digits, most }, b'0'..=b'9') => {
                let digits = digits.saturating_add(1);
                self.place = Place::Number { digits, most };
                return digits <= most;
            }
            (Place::Number { .. }, b'e' | b'E') => self.begin_number(0, MOST_EXPONENT_DIGITS),
            (Place::Number { .. }, b'.') | (_, b'-') => self.begin_number(0, MOST_DIGITS),
            (_, b'0'..=b'9') => self.begin_number(1, MOST_DIGITS),
            (_, b'"') => self.place = Place::String,
            (_, b'{' | b'[') => {
                self.place = Place::Between;
                self.depth = self.depth.saturating_add(1);
                return self.depth <= MOST_DEPTH;
            }
            (_, b'}' | b']') => {
                self.place = Place::Between;
                self.depth = self.depth.saturating_sub(1);
            }
            _ => self.place = Place::Between,
        }
        true
    }

    fn begin_number(&mut self, digits: u8, most: u8) {
        self.place = Place::Number { digits, most };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(text: &str) -> bool {
        Guard::default().takes(text.as_bytes())
    }

    #[test]
    fn numbers_are_those_that_a_double_holds() {
        assert!(takes("[12345678901234567890.12345678901234567890e-99,1e5]"));
        assert!(!takes("123456789012345678901"));
        assert!(!takes("-1.123456789012345678901"));
        assert!(!takes("1e100"));
        // Digits in strings are text.
        assert!(takes(&format!(
            "\"{}\\\"{}\"",
            "1".repeat(50),
            "2".repeat(50)
        )));
    }

    #[test]
    fn nesting_ends() {
        assert!(takes(&"[".repeat(64)));
        assert!(!takes(&"[{\"a\":".repeat(33)));
        assert!(takes(&"[]".repeat(100)));
        assert!(takes(&format!("\"{}\"", "[".repeat(100))));
    }

    #[test]
    fn near_a_bound_tokens_are_looked_at() {
        let mut guard = Guard::default();
        assert!(!guard.is_near_a_bound());
        guard.push(b"{\"a\":1");
        assert!(guard.is_near_a_bound());
        guard.push(b",\"b\":\"");
        assert!(!guard.is_near_a_bound());
        let mut deep = Guard::default();
        deep.push("[".repeat(50).as_bytes());
        assert!(deep.is_near_a_bound() && !deep.is_at_the_end());
        deep.push("[".repeat(70).as_bytes());
        assert!(deep.is_at_the_end());
    }
}
