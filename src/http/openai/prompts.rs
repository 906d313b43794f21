//! Texts and tokens as inputs: one or several of either.

use crate::engine::{Prompt, Question};
use crate::http::group::MOST_CHOICES;
use crate::http::schema::{Body, Shape, token_ids};
use serde_json::Value;

const TEXT: Shape = Shape::Text {
    least: 1,
    most: usize::MAX,
};

/// As many prompts as answers may be asked for.
const MOST_PROMPTS: usize = MOST_CHOICES as usize;

const fn several(of: &'static Shape, most: usize) -> Shape {
    Shape::List { of, least: 1, most }
}

/// A text, a list of texts, token ids, or a list of those. An empty text begins a text: the engine puts a token there.
pub(super) const PROMPTS: Shape = Shape::Either(&[
    Shape::TEXT,
    several(&Shape::TEXT, MOST_PROMPTS),
    Shape::TOKENS,
    several(&Shape::TOKENS, MOST_PROMPTS),
]);

/// The same, more of them.
pub(super) const INPUTS: Shape = Shape::Either(&[
    TEXT,
    several(&TEXT, Question::MOST_INPUTS),
    Shape::TOKENS,
    several(&Shape::TOKENS, Question::MOST_INPUTS),
]);

/// Takes either from a checked body.
pub(super) fn take(body: &mut Body, name: &str) -> Vec<Prompt> {
    match body.any(name) {
        Some(Value::String(text)) => vec![Prompt::Text(text)],
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => {
            vec![Prompt::Tokens(token_ids(&list))]
        }
        Some(Value::Array(list)) => list.into_iter().filter_map(one).collect(),
        _ => Vec::new(),
    }
}

fn one(value: Value) -> Option<Prompt> {
    match value {
        Value::String(text) => Some(Prompt::Text(text)),
        Value::Array(tokens) => Some(Prompt::Tokens(token_ids(&tokens))),
        _ => None,
    }
}
