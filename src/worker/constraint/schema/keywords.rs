//! What single keywords may say.

use super::super::pattern::of_ecmascript;
use super::{MOST_PROPERTIES, MOST_VALUES, Prepared, refused};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

const TYPES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];
/// Versions of JSON Schema that a schema may name.
const VERSIONS: [&str; 4] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
];
/// Numbers up to here are whole in a double.
const LARGEST_NUMBER: f64 = 9_007_199_254_740_992.0;
/// Smaller ones, but 0, have more digits than we let through.
const SMALLEST_NUMBER: f64 = 1e-9;
/// Whole numbers of a schema that says nothing else are within this: exact in every reader, and few digits.
const LARGEST_INTEGER: u64 = 999_999_999_999_999;
/// `minLength` and `minItems` and the like.
const MOST_COUNT: u64 = 10_000;
/// Bytes of a `pattern`.
const MOST_PATTERN_BYTES: usize = 1024;
/// Formats as the engine knows them.
const FORMATS: [&str; 5] = ["duration", "ipv4", "ipv6", "uuid", "uri"];
/// Formats that become patterns. The engine's own allow the 29th of February in every year, seconds that are none, and names
/// that are too long.
const PATTERNS: [(&str, &str); 5] = [
    ("date", DATE),
    ("time", TIME),
    ("date-time", DATE_TIME),
    ("email", EMAIL),
    ("hostname", HOSTNAME),
];
const DATE: &str = "^[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))$";
const TIME: &str = "^([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";
const DATE_TIME: &str = "^[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";
const EMAIL: &str = "^[A-Za-z0-9_+-]{1,30}(\\.[A-Za-z0-9_+-]{1,30})?@[A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20})?(\\.[A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20})?){0,2}\\.[A-Za-z]{2,10}$";
const HOSTNAME: &str =
    "^[A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20})?(\\.[A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20})?){0,3}$";

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

pub(super) fn not_a(at: &str, wanted: &str, value: &Value) -> String {
    refused(at, &format!("expected {wanted}, not {}", kind(value)))
}

pub(super) fn bounded(length: usize, most: usize, at: &str) -> Result<(), String> {
    if length <= most {
        return Ok(());
    }
    Err(refused(at, &format!("there are more than {most}")))
}

pub(super) fn types(value: &Value, at: &str) -> Prepared {
    let known = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    let right = match value {
        Value::Array(names) => {
            !names.is_empty() && names.len() <= TYPES.len() && names.iter().all(known)
        }
        one => known(one),
    };
    if right {
        return Ok(value.clone());
    }
    Err(refused(
        at,
        &format!("a type is one of {}", TYPES.join(", ")),
    ))
}

pub(super) fn values(value: &Value, at: &str) -> Prepared {
    let values = value.as_array().ok_or_else(|| not_a(at, "array", value))?;
    bounded(values.len(), MOST_VALUES, at)?;
    for value in values {
        constant(value, at)?;
    }
    Ok(value.clone())
}

pub(super) fn constant(value: &Value, at: &str) -> Prepared {
    match value {
        Value::Number(_) => number(value, at),
        Value::Array(values) => {
            values
                .iter()
                .try_for_each(|value| constant(value, at).map(drop))?;
            Ok(value.clone())
        }
        Value::Object(values) => {
            values
                .values()
                .try_for_each(|value| constant(value, at).map(drop))?;
            Ok(value.clone())
        }
        _ => Ok(value.clone()),
    }
}

pub(super) fn names(value: &Value, at: &str) -> Prepared {
    let names = value.as_array().ok_or_else(|| not_a(at, "array", value))?;
    bounded(names.len(), MOST_PROPERTIES, at)?;
    match names.iter().find(|name| !name.is_string()) {
        None => Ok(value.clone()),
        Some(other) => Err(not_a(at, "strings", other)),
    }
}

pub(super) fn number(value: &Value, at: &str) -> Prepared {
    let number = value.as_f64().ok_or_else(|| not_a(at, "number", value))?;
    let size = number.abs();
    if number == 0.0 || (SMALLEST_NUMBER..=LARGEST_NUMBER).contains(&size) {
        return Ok(value.clone());
    }
    Err(refused(
        at,
        "numbers are 0, or between 1e-9 and 9007199254740992 in size",
    ))
}

pub(super) fn step(value: &Value, at: &str) -> Prepared {
    match value.as_f64() {
        Some(step) if step > 0.0 => number(value, at),
        _ => Err(refused(at, "expected a number above 0")),
    }
}

pub(super) fn count(value: &Value, at: &str) -> Prepared {
    match value.as_u64() {
        Some(count) if count <= MOST_COUNT => Ok(value.clone()),
        _ => Err(refused(
            at,
            &format!("expected a whole number from 0 to {MOST_COUNT}"),
        )),
    }
}

pub(super) fn pattern(expression: &str, at: &str) -> Prepared {
    if expression.len() <= MOST_PATTERN_BYTES {
        return Ok(Value::String(of_ecmascript(expression)));
    }
    Err(refused(
        at,
        &format!("a pattern has at most {MOST_PATTERN_BYTES} bytes"),
    ))
}

pub(super) fn format(
    value: &Value,
    at: &str,
    prepared: &mut Map<String, Value>,
) -> Result<(), String> {
    let name = value.as_str().ok_or_else(|| not_a(at, "string", value))?;
    if FORMATS.contains(&name) {
        prepared.insert("format".into(), value.clone());
        return Ok(());
    }
    let Some((_, pattern)) = PATTERNS.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = PATTERNS
            .iter()
            .map(|(name, _)| *name)
            .chain(FORMATS)
            .collect();
        return Err(refused(
            at,
            &format!(
                "this format can't be kept while sampling, but {} can",
                known.join(", ")
            ),
        ));
    };
    // Beside a pattern of the schema's own.
    let branch = json!({"pattern": pattern});
    match prepared.get_mut("allOf") {
        Some(Value::Array(branches)) => branches.push(branch),
        _ => {
            prepared.insert("allOf".into(), json!([branch]));
        }
    }
    Ok(())
}

/// Gives whole numbers the bounds that their schema leaves open: multiples are found by sums over all digits, and beyond a double's
/// precision readers see other numbers than were written.
pub(super) fn bound_integers(keywords: &mut Map<String, Value>) {
    let is_integer = match keywords.get("type") {
        Some(Value::Array(names)) => names.iter().any(|name| name == "integer"),
        one => one.is_some_and(|name| name == "integer"),
    };
    if !is_integer && !keywords.contains_key("multipleOf") {
        return;
    }
    let bound = |keywords: &Map<String, Value>, names: [&str; 2]| {
        let mut bounds = names.iter().filter_map(|name| keywords.get(*name));
        bounds.find_map(Value::as_f64)
    };
    let least = bound(keywords, ["minimum", "exclusiveMinimum"]);
    let most = bound(keywords, ["maximum", "exclusiveMaximum"]);
    #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
    let usual = LARGEST_INTEGER as f64;
    if most.is_none() {
        let beyond = least.is_some_and(|least| least >= usual);
        let most = if beyond { LARGEST_NUMBER } else { usual };
        keywords.insert("maximum".into(), json!(most));
    }
    if least.is_none() {
        let beyond = most.is_some_and(|most| most <= -usual);
        let least = if beyond { -LARGEST_NUMBER } else { -usual };
        keywords.insert("minimum".into(), json!(least));
    }
}

pub(super) fn version(value: &Value, at: &str) -> Prepared {
    let name = value.as_str().map(|name| name.trim_end_matches('#'));
    if at == "/$schema" && name.is_some_and(|name| VERSIONS.contains(&name)) {
        return Ok(value.clone());
    }
    Err(refused(
        at,
        "`$schema` is the address of draft 2020-12, 2019-09, 07 or 06, and stands at the top",
    ))
}

/// Names that nobody listed can come twice, so the engine can't count more than one of them.
pub(super) fn enough_properties(keywords: &Map<String, Value>, at: &str) -> Result<(), String> {
    let least = keywords.get("minProperties").and_then(Value::as_u64);
    let required: HashSet<&str> = keywords
        .get("required")
        .and_then(Value::as_array)
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    if least.unwrap_or(0) <= required.len() as u64 + 1 {
        return Ok(());
    }
    Err(refused(
        at,
        "`minProperties` can't be kept beyond one more than are `required`: name those that must be there",
    ))
}
