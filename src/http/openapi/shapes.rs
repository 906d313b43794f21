//! Words for schemas of answers.

use serde_json::{Map, Value, json};

pub(super) fn text() -> Value {
    json!({"type": "string"})
}

pub(super) fn whole() -> Value {
    json!({"type": "integer", "minimum": 0})
}

pub(super) fn number() -> Value {
    json!({"type": "number"})
}

pub(super) fn flag() -> Value {
    json!({"type": "boolean"})
}

pub(super) fn anything() -> Value {
    json!({"type": "object"})
}

/// Always this.
pub(super) fn is(value: &str) -> Value {
    json!({"const": value})
}

pub(super) fn one_of(values: &[&str]) -> Value {
    json!({"enum": values})
}

#[expect(clippy::needless_pass_by_value, reason = "schemas are put together")]
pub(super) fn list(of: Value) -> Value {
    json!({"type": "array", "items": of})
}

#[expect(clippy::needless_pass_by_value, reason = "schemas are put together")]
pub(super) fn or_null(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

/// An object that has all of these, and the optional ones perhaps.
pub(super) fn record<const N: usize, const M: usize>(
    always: [(&str, Value); N],
    perhaps: [(&str, Value); M],
) -> Value {
    let required: Vec<String> = always.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut properties = Map::new();
    for (name, schema) in always.into_iter().chain(perhaps) {
        properties.insert(name.into(), schema);
    }
    json!({"type": "object", "properties": properties, "required": required})
}
