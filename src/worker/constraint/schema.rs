//! What a JSON Schema may contain, and how it is handed to the grammar engine.
//!
//! The engine ignores what it does not know, and a few of its answers would not validate. So every keyword is looked at here first:
//! what can't be kept while sampling is refused with its place (a JSON Pointer), sizes are bounded, and what is handed on contains
//! nothing else. Keywords that JSON Schema itself does not know are annotations, and dropped.

use super::pattern::of_ecmascript;
use serde_json::{Map, Value, json};
use std::collections::{HashMap, HashSet};

/// Levels of JSON in a schema.
const MOST_DEPTH: usize = 64;
/// Schemas in a schema, itself included.
const MOST_SCHEMAS: usize = 1000;
/// References in a schema: the engine follows chains of them on its stack.
const MOST_REFERENCES: usize = 256;
/// Properties that one object names.
const MOST_PROPERTIES: usize = 256;
/// Values of one `enum`.
const MOST_VALUES: usize = 1000;
/// Branches of one `anyOf` or `allOf`.
const MOST_BRANCHES: usize = 128;
/// Branches of one `oneOf`, each of which is compared with each.
const MOST_ONE_OF: usize = 32;
/// Patterns of one `patternProperties`, each of which is compared with each.
const MOST_PATTERNS: usize = 8;
/// Patterns that one string may have to match at once: the engine's work doubles with each.
const MOST_PATTERNS_AT_ONCE: usize = 6;
/// Schemas that are compiled alone to find the place of an error.
const MOST_TRIES: usize = 24;
/// Bytes of a `pattern`.
const MOST_PATTERN_BYTES: usize = 1024;
/// `minLength` and `minItems` and the like.
const MOST_COUNT: u64 = 10_000;
/// Numbers up to here are whole in a double.
const LARGEST_NUMBER: f64 = 9_007_199_254_740_992.0;
/// Smaller ones, but 0, have more digits than we let through.
const SMALLEST_NUMBER: f64 = 1e-9;

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
/// Whole numbers of a schema that says nothing else are within this: exact in every reader, and few digits.
const LARGEST_INTEGER: u64 = 999_999_999_999_999;
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
/// Keywords that say what is valid, and that no grammar of ours keeps.
const UNSUPPORTED: [&str; 20] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$dynamicAnchor",
    "$recursiveRef",
    "$recursiveAnchor",
    "extends",
    "disallow",
    "divisibleBy",
];

/// The schema of any JSON object.
pub(super) fn any_object() -> Value {
    with_options(json!({"type": "object"}))
}

/// The schema as the grammar engine gets it, or what is wrong with it and where.
pub(super) fn prepare(schema: &Value) -> Result<Value, String> {
    if depth(schema) > MOST_DEPTH {
        return Err(format!(
            "the schema has more than {MOST_DEPTH} levels: make it flatter"
        ));
    }
    let mut walk = Walk::default();
    let prepared = walk.schema(schema, "")?;
    let mut meeting = Meeting {
        root: &prepared,
        known: HashMap::new(),
    };
    if meeting.of(&prepared) > MOST_PATTERNS_AT_ONCE {
        return Err(format!(
            "the schema can't be enforced: a string might have to match more than {MOST_PATTERNS_AT_ONCE} patterns at once"
        ));
    }
    for (at, target) in &walk.references {
        if !walk.places.contains(target) {
            return Err(refused(
                at,
                &format!("`$ref` leads to `#{target}`, where there is no schema"),
            ));
        }
    }
    Ok(with_options(match prepared {
        Value::Object(_) => prepared,
        // `true` and `false` have no place for options.
        other => json!({"allOf": [other]}),
    }))
}

/// How the engine is to write JSON. A client's own options were dropped with all other unknown keywords.
fn with_options(mut schema: Value) -> Value {
    if let Value::Object(keywords) = &mut schema {
        let options = json!({
            "whitespace_flexible": false,
            // Without \u there is one way to write each name, and so no second one of the same name.
            "json_allowed_escapes": "nrbtf\\\"",
        });
        keywords.insert("x-guidance".into(), options);
    }
    schema
}

fn depth(value: &Value) -> usize {
    let inner = match value {
        Value::Array(values) => values.iter().map(depth).max(),
        Value::Object(values) => values.values().map(depth).max(),
        _ => return 0,
    };
    1 + inner.unwrap_or(0)
}

pub(super) fn refused(at: &str, why: &str) -> String {
    let at = if at.is_empty() { "/" } else { at };
    let at: String = at.chars().take(200).collect();
    format!("the schema can't be enforced: at {at}: {why}")
}

/// Goes through all schemas of a schema.
#[derive(Default)]
struct Walk {
    schemas: usize,
    /// Where there are schemas.
    places: HashSet<String>,
    /// Where there are references, and where they lead.
    references: Vec<(String, String)>,
}

type Prepared = Result<Value, String>;

impl Walk {
    fn schema(&mut self, schema: &Value, at: &str) -> Prepared {
        self.schemas += 1;
        if self.schemas > MOST_SCHEMAS {
            return Err(format!(
                "the schema consists of more than {MOST_SCHEMAS} schemas: make it smaller"
            ));
        }
        self.places.insert(at.to_owned());
        let keywords = match schema {
            Value::Bool(_) => return Ok(schema.clone()),
            Value::Object(keywords) => keywords,
            other => {
                return Err(refused(
                    at,
                    &format!("a schema is an object, not {}", kind(other)),
                ));
            }
        };
        let mut prepared = Map::new();
        for (keyword, value) in keywords {
            let inside = format!("{at}/{}", escaped(keyword));
            self.keyword(keyword, value, &inside, &mut prepared)?;
        }
        if let Some(name) = keywords.get("format") {
            format(name, &format!("{at}/format"), &mut prepared)?;
        }
        bound_integers(&mut prepared);
        enough_properties(keywords, at)?;
        Ok(Value::Object(prepared))
    }

    fn keyword(
        &mut self,
        keyword: &str,
        value: &Value,
        at: &str,
        prepared: &mut Map<String, Value>,
    ) -> Result<(), String> {
        let checked = match keyword {
            "properties" => self.named(value, at, MOST_PROPERTIES)?,
            "patternProperties" => {
                let patterns = value.as_object().into_iter().flat_map(Map::keys);
                patterns
                    .into_iter()
                    .try_for_each(|rx| pattern(rx, at).map(drop))?;
                match self.named(value, at, MOST_PATTERNS)? {
                    Value::Object(named) => {
                        let named = named.into_iter();
                        named
                            .map(|(rx, schema)| (of_ecmascript(&rx), schema))
                            .collect()
                    }
                    other => other,
                }
            }
            "$defs" | "definitions" => self.named(value, at, MOST_SCHEMAS)?,
            "allOf" | "anyOf" => self.list(value, at, MOST_BRANCHES)?,
            "oneOf" => self.list(value, at, MOST_ONE_OF)?,
            "prefixItems" => self.list(value, at, MOST_BRANCHES)?,
            "items" if value.is_array() => self.list(value, at, MOST_BRANCHES)?,
            "items" | "additionalItems" | "additionalProperties" => self.schema(value, at)?,
            "$ref" => self.reference(value, at)?,
            "type" => types(value, at)?,
            "enum" => values(value, at)?,
            "const" => constant(value, at)?,
            "required" => names(value, at)?,
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => number(value, at)?,
            "multipleOf" => step(value, at)?,
            "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties"
            | "maxProperties" => count(value, at)?,
            "pattern" => {
                let expression = value.as_str();
                pattern(expression.ok_or_else(|| not_a(at, "string", value))?, at)?
            }
            // When all others are known: it may add to them.
            "format" => return Ok(()),
            "uniqueItems" if *value == Value::Bool(false) => return Ok(()),
            "$schema" => version(value, at)?,
            "$id" if at != "/$id" => {
                return Err(refused(
                    at,
                    "`$id` can't be had but at the top: refer to `#/$defs/…`",
                ));
            }
            _ if UNSUPPORTED.contains(&keyword) || keyword == "uniqueItems" => {
                return Err(refused(
                    at,
                    &format!("the keyword `{keyword}` can't be kept while sampling: leave it out"),
                ));
            }
            // An annotation.
            _ => return Ok(()),
        };
        prepared.insert(keyword.to_owned(), checked);
        Ok(())
    }

    fn named(&mut self, value: &Value, at: &str, most: usize) -> Prepared {
        let schemas = value
            .as_object()
            .ok_or_else(|| not_a(at, "object", value))?;
        bounded(schemas.len(), most, at)?;
        let mut prepared = Map::new();
        for (name, schema) in schemas {
            let inside = format!("{at}/{}", escaped(name));
            prepared.insert(name.clone(), self.schema(schema, &inside)?);
        }
        Ok(Value::Object(prepared))
    }

    fn list(&mut self, value: &Value, at: &str, most: usize) -> Prepared {
        let schemas = value.as_array().ok_or_else(|| not_a(at, "array", value))?;
        bounded(schemas.len(), most, at)?;
        let prepared = schemas
            .iter()
            .enumerate()
            .map(|(index, schema)| self.schema(schema, &format!("{at}/{index}")));
        prepared.collect()
    }

    fn reference(&mut self, value: &Value, at: &str) -> Prepared {
        let target = value.as_str().ok_or_else(|| not_a(at, "string", value))?;
        let pointer = target.strip_prefix('#');
        let pointer = pointer.filter(|pointer| pointer.is_empty() || pointer.starts_with('/'));
        let pointer = pointer
            .ok_or_else(|| refused(at, "`$ref` can't leave the schema: begin it with `#/`"))?;
        // The engine compares names as they are.
        if pointer.contains(['~', '%']) {
            return Err(refused(
                at,
                "`$ref` can't contain `~` or `%`: choose another name",
            ));
        }
        self.references
            .push((at.to_owned(), pointer.trim_end_matches('/').to_owned()));
        bounded(self.references.len(), MOST_REFERENCES, at)?;
        Ok(value.clone())
    }
}

/// A name as part of a JSON Pointer (RFC 6901).
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn not_a(at: &str, wanted: &str, value: &Value) -> String {
    refused(at, &format!("expected {wanted}, not {}", kind(value)))
}

fn bounded(length: usize, most: usize, at: &str) -> Result<(), String> {
    if length <= most {
        return Ok(());
    }
    Err(refused(at, &format!("there are more than {most}")))
}

fn types(value: &Value, at: &str) -> Prepared {
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

fn values(value: &Value, at: &str) -> Prepared {
    let values = value.as_array().ok_or_else(|| not_a(at, "array", value))?;
    bounded(values.len(), MOST_VALUES, at)?;
    for value in values {
        constant(value, at)?;
    }
    Ok(value.clone())
}

fn constant(value: &Value, at: &str) -> Prepared {
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

fn names(value: &Value, at: &str) -> Prepared {
    let names = value.as_array().ok_or_else(|| not_a(at, "array", value))?;
    bounded(names.len(), MOST_PROPERTIES, at)?;
    match names.iter().find(|name| !name.is_string()) {
        None => Ok(value.clone()),
        Some(other) => Err(not_a(at, "strings", other)),
    }
}

fn number(value: &Value, at: &str) -> Prepared {
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

fn step(value: &Value, at: &str) -> Prepared {
    match value.as_f64() {
        Some(step) if step > 0.0 => number(value, at),
        _ => Err(refused(at, "expected a number above 0")),
    }
}

fn count(value: &Value, at: &str) -> Prepared {
    match value.as_u64() {
        Some(count) if count <= MOST_COUNT => Ok(value.clone()),
        _ => Err(refused(
            at,
            &format!("expected a whole number from 0 to {MOST_COUNT}"),
        )),
    }
}

fn pattern(expression: &str, at: &str) -> Prepared {
    if expression.len() <= MOST_PATTERN_BYTES {
        return Ok(Value::String(of_ecmascript(expression)));
    }
    Err(refused(
        at,
        &format!("a pattern has at most {MOST_PATTERN_BYTES} bytes"),
    ))
}

fn format(value: &Value, at: &str, prepared: &mut Map<String, Value>) -> Result<(), String> {
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
fn bound_integers(keywords: &mut Map<String, Value>) {
    let is_integer = match keywords.get("type") {
        Some(Value::Array(names)) => names.iter().any(|name| name == "integer"),
        one => one.is_some_and(|name| name == "integer"),
    };
    if !is_integer && !keywords.contains_key("multipleOf") {
        return;
    }
    let bound = |keywords: &Map<String, Value>, names: [&str; 2]| {
        let bounds = names.iter().filter_map(|name| keywords.get(*name));
        bounds.filter_map(Value::as_f64).next()
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

fn version(value: &Value, at: &str) -> Prepared {
    let name = value.as_str().map(|name| name.trim_end_matches('#'));
    if at == "/$schema" && name.is_some_and(|name| VERSIONS.contains(&name)) {
        return Ok(value.clone());
    }
    Err(refused(
        at,
        "`$schema` is the address of draft 2020-12, 2019-09, 07 or 06, and stands at the top",
    ))
}

/// Counts the patterns that may meet in one string: those of an `allOf`, at whatever depth, come together.
struct Meeting<'a> {
    root: &'a Value,
    /// What references lead to; 0 while it is being counted, because a cycle brings together what it has brought already.
    known: HashMap<&'a str, usize>,
}

impl<'a> Meeting<'a> {
    fn of(&mut self, schema: &'a Value) -> usize {
        let Value::Object(keywords) = schema else {
            return 0;
        };
        let here = ["pattern", "format"]
            .iter()
            .filter(|name| keywords.contains_key(**name));
        let mut alone = here.count();
        let mut together = 0;
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("properties" | "patternProperties", Value::Object(schemas)) => {
                    alone = alone.max(self.most(schemas.values()));
                }
                ("items" | "prefixItems", Value::Array(schemas)) => {
                    alone = alone.max(self.most(schemas));
                }
                ("items" | "additionalItems" | "additionalProperties", schema) => {
                    alone = alone.max(self.of(schema));
                }
                ("allOf", Value::Array(schemas)) => {
                    together += schemas.iter().map(|schema| self.of(schema)).sum::<usize>();
                }
                ("anyOf" | "oneOf", Value::Array(schemas)) => together += self.most(schemas),
                ("$ref", Value::String(target)) => together += self.referred(target),
                _ => {}
            }
        }
        alone + together
    }

    fn most(&mut self, schemas: impl IntoIterator<Item = &'a Value>) -> usize {
        let each = schemas.into_iter().map(|schema| self.of(schema));
        each.max().unwrap_or(0)
    }

    fn referred(&mut self, target: &'a str) -> usize {
        if let Some(known) = self.known.get(target) {
            return *known;
        }
        self.known.insert(target, 0);
        let pointer = target.trim_start_matches('#').trim_end_matches('/');
        let met = self
            .root
            .pointer(pointer)
            .map_or(0, |schema| self.of(schema));
        self.known.insert(target, met);
        met
    }
}

/// The deepest schema inside `prepared` that the engine refuses for the same reason when it stands alone: where the reason lies.
/// At most [`MOST_TRIES`] are tried, those first in which engines find reasons.
pub(super) fn locate(
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

/// A keyword that JSON Schema does not know.
const APART: &str = "x-apart";

fn collect_places(schema: &Value, at: String, places: &mut Vec<String>) {
    let Value::Object(keywords) = schema else {
        return;
    };
    const TELLING: [&str; 9] = [
        "pattern",
        "format",
        "multipleOf",
        "oneOf",
        "allOf",
        "minimum",
        "maximum",
        "minProperties",
        "maxProperties",
    ];
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

/// Names that nobody listed can come twice, so the engine can't count more than one of them.
fn enough_properties(keywords: &Map<String, Value>, at: &str) -> Result<(), String> {
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
