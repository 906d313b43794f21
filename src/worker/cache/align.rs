//! How far a prompt goes on from tokens that are there already.

use crate::engine::Token;
use crate::worker::decoder::Vocab;
use std::ops::Range;

/// A common beginning of two token sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Common {
    /// Tokens of it that are held.
    pub held: usize,
    /// Tokens of the prompt that say the same. They are as many, but where what a model said comes back cut otherwise.
    pub prompt: usize,
}

/// The longest beginning that `held` and `prompt` share.
///
/// In `said`, the ranges of `held` that were sampled, text counts and not how it is cut: a model's tokens come back in the
/// next turn's history as text, and that is often tokenised otherwise. Everywhere else tokens must be equal, and so must control
/// tokens (which have no bytes) anywhere.
pub fn common(
    held: &[Token],
    said: &[Range<usize>],
    prompt: &[Token],
    vocab: &dyn Vocab,
) -> Common {
    let mut at = equal(held, prompt, Common::default());
    // Each turn brings it past another difference.
    while let Some(next) = resume(held, said, prompt, at, vocab) {
        at = equal(held, prompt, next);
    }
    at
}

fn equal(held: &[Token], prompt: &[Token], from: Common) -> Common {
    let pairs = held[from.held..].iter().zip(&prompt[from.prompt..]);
    let same = pairs.take_while(|(held, prompt)| held == prompt).count();
    Common {
        held: from.held + same,
        prompt: from.prompt + same,
    }
}

/// The next place at which both have said the same text in whole tokens, past tokens that differ.
fn resume(
    held: &[Token],
    said: &[Range<usize>],
    prompt: &[Token],
    from: Common,
    vocab: &dyn Vocab,
) -> Option<Common> {
    let end = said
        .iter()
        .find(|range| range.contains(&from.held))?
        .end
        .min(held.len());
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut at = from;
    // Whoever has said less says its next token.
    loop {
        let (spoken, token) = if ours.len() <= theirs.len() {
            let token = held[..end].get(at.held)?;
            at.held += 1;
            (&mut ours, token)
        } else {
            let token = prompt.get(at.prompt)?;
            at.prompt += 1;
            (&mut theirs, token)
        };
        let before = spoken.len();
        vocab.append_bytes(*token, spoken);
        if spoken.len() == before {
            return None;
        }
        let both = ours.len().min(theirs.len());
        if ours[..both] != theirs[..both] {
            return None;
        }
        if both > 0 && ours.len() == theirs.len() {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::cache::tests::Doubles;

    const CONTROL: u32 = 512;
    const AA: u32 = 256 + b'a' as u32;
    const A: u32 = b'a' as u32;
    const B: u32 = b'b' as u32;

    fn shared(
        held: &[u32],
        said: impl Into<Option<Range<usize>>>,
        prompt: &[u32],
    ) -> (usize, usize) {
        let said: Vec<_> = said.into().into_iter().collect();
        let tokens = |ids: &[u32]| ids.iter().copied().map(Token).collect::<Vec<_>>();
        let common = common(&tokens(held), &said, &tokens(prompt), &Doubles);
        (common.held, common.prompt)
    }

    #[test]
    fn what_was_said_may_be_cut_otherwise() {
        // Said: aa b a a, asked back: a a b aa, then a border and a new turn.
        let held = [CONTROL, AA, B, A, A];
        let prompt = [CONTROL, A, A, B, AA, CONTROL, B];
        assert_eq!(shared(&held, 1..5, &prompt), (5, 5));
        assert_eq!(
            shared(&held, None, &prompt),
            (1, 1),
            "in a prompt tokens count"
        );
        assert_eq!(shared(&held, 1..2, &prompt), (3, 4), "until the range ends");
    }

    #[test]
    fn only_the_same_text_counts() {
        assert_eq!(shared(&[AA, B], 0..2, &[A, B]), (0, 0));
        assert_eq!(shared(&[A, A], 0..2, &[AA]), (2, 1));
        assert_eq!(shared(&[AA], 0..1, &[A]), (0, 0), "half a token is none");
        assert_eq!(
            shared(&[AA, A], 0..2, &[A, CONTROL, A]),
            (0, 0),
            "a control token is no text"
        );
        assert_eq!(shared(&[CONTROL, A], 0..2, &[A]), (0, 0));
    }

    #[test]
    fn equal_tokens_need_no_text() {
        assert_eq!(
            shared(&[1, 2, CONTROL, 3], None, &[1, 2, CONTROL, 4]),
            (3, 3)
        );
        assert_eq!(shared(&[], None, &[1]), (0, 0));
    }
}
