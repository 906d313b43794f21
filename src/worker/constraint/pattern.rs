//! Patterns of JSON Schema, which are ECMAScript's, in the words of the grammar engine, which are Rust's.
//!
//! Where both read a pattern but mean different characters by it, it is written out. Where the engine can't read it, the engine says so.

/// What `.` does not match.
const LINE_ENDS: &str = r"\n\r\x{2028}\x{2029}";
/// What `\s` matches.
const SPACES: &str = r"\t\n\x0B\x0C\r \x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}\x{FEFF}";

/// The pattern for the engine.
pub(super) fn of_ecmascript(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut in_class = false;
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('s') => out.extend(["[", SPACES, "]"]),
                Some('S') => out.extend(["[^", SPACES, "]"]),
                Some('/') => out.push('/'),
                Some(escaped) => out.extend(['\\', escaped]),
                None => out.push('\\'),
            },
            '.' if !in_class => out.extend(["[^", LINE_ENDS, "]"]),
            '[' if !in_class => {
                in_class = true;
                out.push('[');
            }
            // Rust has classes in classes, and operators on them.
            '[' | '&' | '~' if in_class => out.extend(['\\', character]),
            ']' => {
                in_class = false;
                out.push(']');
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::of_ecmascript;

    #[test]
    fn characters_that_mean_something_else_are_written_out() {
        assert_eq!(of_ecmascript("^a.c$"), r"^a[^\n\r\x{2028}\x{2029}]c$");
        assert_eq!(of_ecmascript(r"\.[.]\d\/"), r"\.[.]\d/");
        assert_eq!(of_ecmascript("[[a]b]&"), r"[\[a]b]&");
        assert_eq!(of_ecmascript(r"[a&&b~\]]"), r"[a\&\&b\~\]]");
        assert!(of_ecmascript(r"\S").starts_with("[^"));
        assert_eq!(of_ecmascript("a\\"), "a\\");
    }
}
