//! Where in a schema the reason lies for which the grammar engine refuses it.

use super::{escaped, with_options};
use serde_json::{Value, json};

/// Schemas that are compiled alone to find the place of an error.
const MOST_TRIES: usize = 24;
/// A keyword that JSON Schema does not know.
const APART: &str = "x-apart";
/// Schemas with these are those in which engines find reasons.
const TELLING: [&str; 9] = [
    "pattern",
    "format",
    "multipleOf",
    "oneOf",
    "allOf",
    "minimum",
    "maximum",
    "minLength",
    "maxProperties",
];

/// The deepest schema inside `prepared` that the engine refuses for the same reason when it stands alone: where the reason lies.
/// At most [`MOST_TRIES`] are tried.
pub(in super::super) fn locate(
    prepared: &Value,
    reason: &str,
    refusal: impl Fn(Value) -> Option<String>,
) -> Option<String> {
    let mut places = Vec::new();
    collect_places(prepared, String::new(), &mut places);
    // Deepest first; the sort is stable.
    places.sort_by_key(|at| std::cmp::Reverse(at.matches('/').count()));
    let mut whole = prepared.clone();
    move_references(&mut whole);
    let alone = |at: &String| with_options(json!({"$ref": format!("#/{APART}{at}"), APART: whole}));
    places
        .into_iter()
        .filter(|at| !at.is_empty() && !at.contains('~'))
        .take(MOST_TRIES)
        .find(|at| refusal(alone(at)).is_some_and(|found| found == reason))
}

fn collect_places(schema: &Value, at: String, places: &mut Vec<String>) {
    let Value::Object(keywords) = schema else {
        return;
    };
    for (keyword, value) in keywords {
        let at = format!("{at}/{}", escaped(keyword));
        match (keyword.as_str(), value) {
            (
                "properties" | "patternProperties" | "$defs" | "definitions",
                Value::Object(inner),
            ) => {
                for (name, schema) in inner {
                    collect_places(schema, format!("{at}/{}", escaped(name)), places);
                }
            }
            ("allOf" | "anyOf" | "oneOf" | "prefixItems" | "items", Value::Array(inner)) => {
                for (index, schema) in inner.iter().enumerate() {
                    collect_places(schema, format!("{at}/{index}"), places);
                }
            }
            ("items" | "additionalItems" | "additionalProperties", schema) => {
                collect_places(schema, at, places);
            }
            _ => {}
        }
    }
    if TELLING
        .iter()
        .any(|keyword| keywords.contains_key(*keyword))
    {
        places.push(at);
    }
}

fn move_references(value: &mut Value) {
    match value {
        Value::Object(values) => {
            for (name, value) in values {
                match value {
                    Value::String(target) if name == "$ref" => {
                        *target = format!(
                            "#/{APART}{}",
                            target.trim_start_matches('#').trim_end_matches('/')
                        );
                    }
                    other => move_references(other),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(move_references),
        _ => {}
    }
}
