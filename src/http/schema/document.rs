//! Declarations as JSON Schema (draft 2020-12, as OpenAPI 3.1 wants it).

use super::{Field, Shape, Tagged};
use serde_json::{Map, Value, json};

/// An object with the fields of several groups.
pub(in crate::http) fn object<'a>(fields: impl Iterator<Item = &'a Field>) -> Value {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for field in fields {
        let mut schema = schema(&field.shape);
        if field.needed {
            required.push(field.name);
        } else {
            schema = nullable(schema);
        }
        if !field.about.is_empty() {
            schema["description"] = field.about.into();
        }
        properties.insert(field.name.into(), schema);
    }
    let mut object = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        object["required"] = required.into();
    }
    object
}

/// What a shape takes.
fn schema(shape: &Shape) -> Value {
    match *shape {
        Shape::Text { least, most } => bounded("string", "Length", least, most),
        Shape::Flag => json!({"type": "boolean"}),
        Shape::Number { least, most } => {
            json!({"type": "number", "minimum": least, "maximum": most})
        }
        Shape::Whole { least, most } => {
            let mut whole = json!({"type": "integer"});
            if least > i64::MIN {
                whole["minimum"] = least.into();
            }
            if most < i64::MAX {
                whole["maximum"] = most.into();
            }
            whole
        }
        Shape::Choice(known) => json!({"type": "string", "enum": known}),
        Shape::List { of, least, most } => {
            let mut list = bounded("array", "Items", least, most);
            list["items"] = schema(of);
            list
        }
        Shape::Object(fields) => object(fields.iter()),
        Shape::Name => json!({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}),
        Shape::ByToken { of, most } => json!({
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": schema(of),
            "maxProperties": most,
        }),
        Shape::Tagged(tagged) => self::tagged(tagged),
        Shape::Either(shapes) => {
            json!({"anyOf": shapes.iter().map(schema).collect::<Vec<_>>()})
        }
        Shape::AnyObject => json!({"type": "object"}),
        Shape::Absent(_) => bounded("string", "Length", 0, 0),
    }
}

/// The same, or `null`.
fn nullable(mut schema: Value) -> Value {
    if let Some(known) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        known.push(Value::Null);
    }
    if let Some(name) = schema.get("type").filter(|name| name.is_string()) {
        if name == "null" {
            return schema;
        }
        schema["type"] = json!([name, "null"]);
        return schema;
    }
    if let Some(shapes) = schema.get_mut("anyOf").and_then(Value::as_array_mut) {
        shapes.push(json!({"type": "null"}));
    }
    schema
}

fn bounded(name: &str, what: &str, least: usize, most: usize) -> Value {
    let mut schema = json!({"type": name});
    if least > 0 {
        schema[format!("min{what}")] = least.into();
    }
    if most < usize::MAX {
        schema[format!("max{what}")] = most.into();
    }
    schema
}

fn tagged(tagged: &Tagged) -> Value {
    let alternatives = tagged.of.iter().map(|(tag, fields)| {
        let mut one = object(fields.iter());
        one["properties"][tagged.tag] = json!({"type": "string", "const": tag});
        if tagged.default != Some(tag) {
            let mut required = vec![Value::from(tagged.tag)];
            required.extend(one["required"].as_array().into_iter().flatten().cloned());
            one["required"] = required.into();
        }
        one
    });
    json!({"anyOf": alternatives.collect::<Vec<_>>()})
}
