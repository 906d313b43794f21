//! What a JSON Schema may contain, and how it is handed to the grammar engine.
//!
//! The engine ignores what it does not know, and a few of its answers would not validate. So every keyword is looked at here first:
//! what can't be kept while sampling is refused with its place (a JSON Pointer), sizes are bounded, and what is handed on contains
//! nothing else. Keywords that JSON Schema itself does not know are annotations, and dropped.

mod keywords;
mod locate;
mod meeting;

use super::pattern::of_ecmascript;
use keywords::{
    bound_integers, bounded, constant, count, enough_properties, format, kind, names, not_a,
    number, pattern, step, types, values, version,
};
pub(super) use locate::locate;
use meeting::Meeting;
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
            "oneOf" => self.list(value, at, MOST_ONE_OF)?,
            "allOf" | "anyOf" | "prefixItems" => self.list(value, at, MOST_BRANCHES)?,
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
