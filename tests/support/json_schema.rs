//! Values against JSON Schemas: as much of the language as `/openapi.json` uses.

use serde_json::Value;

/// Whether a schema takes a value; if not, why.
pub(crate) fn valid(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let target = document.pointer(name.trim_start_matches('#')).expect(name);
        return valid(document, target, value);
    }
    let passes = |schema: &Value| valid(document, schema, value).is_ok();
    let fail = |what: &str| Err(format!("{value} against {what} of {schema}"));
    if let Some(all) = schema["allOf"].as_array() {
        all.iter()
            .try_for_each(|schema| valid(document, schema, value))?;
    }
    if let Some(several) = schema["anyOf"].as_array()
        && !several.iter().any(passes)
    {
        return fail("anyOf");
    }
    if schema["if"].is_object() && passes(&schema["if"]) {
        valid(document, &schema["then"], value)?;
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return fail("const");
    }
    if schema["enum"]
        .as_array()
        .is_some_and(|known| !known.contains(value))
    {
        return fail("enum");
    }
    let is_type = |name: &Value| match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        other => panic!("no type is called {other}"),
    };
    let types = &schema["type"];
    let fits = match types {
        Value::Null => true,
        Value::Array(names) => names.iter().any(is_type),
        name => is_type(name),
    };
    if !fits {
        return fail("type");
    }
    sizes(schema, value).or_else(|what| fail(&what))?;
    parts(document, schema, value)
}

/// Limits on numbers, lengths and patterns.
#[expect(clippy::cast_precision_loss, reason = "tests have no such sizes")]
fn sizes(schema: &Value, value: &Value) -> Result<(), String> {
    let (least, most, size) = match value {
        Value::Number(number) => ("minimum", "maximum", number.as_f64().unwrap()),
        Value::String(text) => ("minLength", "maxLength", text.chars().count() as f64),
        Value::Array(list) => ("minItems", "maxItems", list.len() as f64),
        Value::Object(object) => ("minProperties", "maxProperties", object.len() as f64),
        _ => return Ok(()),
    };
    if schema[least].as_f64().is_some_and(|least| size < least) {
        return Err(least.into());
    }
    if schema[most].as_f64().is_some_and(|most| size > most) {
        return Err(most.into());
    }
    let pattern = schema["pattern"].as_str();
    match (pattern, value.as_str()) {
        (Some(pattern), Some(text)) if !matches(pattern, text) => Err("pattern".into()),
        _ => Ok(()),
    }
}

/// The two patterns that there are.
fn matches(pattern: &str, text: &str) -> bool {
    let (most, fits): (_, fn(char) -> bool) = match pattern {
        "^[A-Za-z0-9_-]{1,64}$" => (64, |c| c.is_ascii_alphanumeric() || "_-".contains(c)),
        "^[0-9]{1,9}$" => (9, |c| c.is_ascii_digit()),
        other => panic!("no test knows the pattern {other}"),
    };
    (1..=most).contains(&text.len()) && text.chars().all(fits)
}

/// Items and properties.
fn parts(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    match value {
        Value::Array(items) if schema["items"].is_object() => items
            .iter()
            .try_for_each(|item| valid(document, &schema["items"], item)),
        Value::Object(object) => {
            for name in schema["required"].as_array().into_iter().flatten() {
                if !object.contains_key(name.as_str().unwrap()) {
                    return Err(format!("{name} is missing in {value}"));
                }
            }
            for (name, part) in object {
                if schema["propertyNames"].is_object() {
                    valid(document, &schema["propertyNames"], &name.as_str().into())?;
                }
                let own = &schema["properties"][name];
                let schema = if own.is_object() {
                    own
                } else {
                    &schema["additionalProperties"]
                };
                if schema.is_object() {
                    valid(document, schema, part)?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
