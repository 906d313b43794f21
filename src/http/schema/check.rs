//! Values against declarations. What is wrong is named with its whole path, such as `messages[0].content`.

use super::{Field, Shape, Tagged};
use crate::http::error::ApiError;
use serde_json::{Map, Value};

/// What is wrong with a value, and where.
#[derive(Debug)]
pub(super) struct Fault {
    /// From the outside in; put together from its end.
    path: String,
    what: String,
    found: String,
}

impl Fault {
    fn new(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            path: String::new(),
            what: what.into(),
            found: found.into(),
        }
    }

    fn inside(mut self, outer: &str) -> Self {
        let joint = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        self.path.insert_str(0, joint);
        self.path.insert_str(0, outer);
        self
    }

    fn depth(&self) -> usize {
        self.path.matches(['.', '[']).count()
    }
}

impl From<Fault> for ApiError {
    fn from(fault: Fault) -> Self {
        Self::bad_request(format!("`{}` {}", fault.path, fault.what))
            .details(fault.found)
            .param(fault.path)
    }
}

/// Checks the fields of an object.
pub(super) fn object<'a>(
    object: &Map<String, Value>,
    fields: impl Iterator<Item = &'a Field>,
) -> Result<(), Fault> {
    for field in fields {
        match object.get(field.name) {
            None if field.needed => {
                return Err(Fault::new("is missing", field.about).inside(field.name));
            }
            None => {}
            Some(Value::Null) if !field.needed => {}
            Some(value) => {
                check(value, &field.shape).map_err(|fault| fault.inside(field.name))?;
            }
        }
    }
    Ok(())
}

fn check(value: &Value, shape: &Shape) -> Result<(), Fault> {
    match (shape, value) {
        (Shape::Flag, Value::Bool(_)) | (Shape::AnyObject, Value::Object(_)) => Ok(()),
        (Shape::Text { least, most }, Value::String(text)) => length(text, *least, *most),
        (Shape::Number { least, most }, Value::Number(number)) => {
            within(number.as_f64().unwrap_or(f64::NAN), *least, *most, value)
        }
        (Shape::Whole { least, most }, Value::Number(_)) => whole(value, *least, *most),
        (Shape::Choice(known), Value::String(text)) if known.contains(&text.as_str()) => Ok(()),
        (Shape::Choice(known), Value::String(_)) => Err(Fault::new(
            format!("must be one of {}", known.join(", ")),
            "it is another text",
        )),
        (Shape::List { of, least, most }, Value::Array(values)) => list(values, of, *least, *most),
        (Shape::Object(fields), Value::Object(map)) => object(map, fields.iter()),
        (Shape::ByToken { of, most }, Value::Object(map)) => by_token(map, of, *most),
        (Shape::Name, Value::String(text)) => name(text),
        (Shape::Tagged(tagged), Value::Object(map)) => self::tagged(map, tagged),
        (Shape::Either(shapes), _) => either(value, shapes),
        // Some clients send an empty text for nothing.
        (Shape::Absent(_), Value::String(text)) if text.is_empty() => Ok(()),
        (Shape::Absent(why), _) => Err(Fault::new("must be absent", *why)),
        _ => Err(Fault::new(
            format!("must be {}", wanted(shape)),
            format!("it is {}", kind(value)),
        )),
    }
}

fn length(text: &str, least: usize, most: usize) -> Result<(), Fault> {
    // Bytes bound characters from above, so long texts are not counted for nothing.
    let fits = text.len() >= least && (text.len() <= most || text.chars().count() <= most);
    let characters = || text.chars().count();
    if fits && (least <= 1 || characters() >= least) {
        return Ok(());
    }
    let what = if most == usize::MAX && least == 1 {
        "must not be empty".into()
    } else {
        format!("must have {least} to {most} characters")
    };
    Err(Fault::new(what, format!("it has {}", characters())))
}

fn within(number: f64, least: f64, most: f64, value: &Value) -> Result<(), Fault> {
    if (least..=most).contains(&number) {
        return Ok(());
    }
    Err(Fault::new(
        format!("must be from {least} to {most}"),
        format!("it is {value}"),
    ))
}

fn whole(value: &Value, least: i64, most: i64) -> Result<(), Fault> {
    let found = || format!("it is {value}");
    if value.as_f64().is_none_or(|number| number.fract() != 0.0) {
        return Err(Fault::new("must be a whole number", found()));
    }
    let number = super::whole(value).unwrap_or(0);
    let too_large = most < i64::MAX && number > i128::from(most);
    if number >= i128::from(least) && !too_large {
        return Ok(());
    }
    let what = if most == i64::MAX {
        format!("must be at least {least}")
    } else {
        format!("must be from {least} to {most}")
    };
    Err(Fault::new(what, found()))
}

fn list(values: &[Value], of: &Shape, least: usize, most: usize) -> Result<(), Fault> {
    let found = format!("it has {}", values.len());
    if values.len() < least {
        return Err(Fault::new("must not be empty", found));
    }
    if values.len() > most {
        return Err(Fault::new(format!("may have {most} items at most"), found));
    }
    values.iter().enumerate().try_for_each(|(index, value)| {
        check(value, of).map_err(|fault| fault.inside(&format!("[{index}]")))
    })
}

fn name(text: &str) -> Result<(), Fault> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
        return Ok(());
    }
    let what = "must have 1 to 64 letters, digits, `_` and `-`";
    Err(Fault::new(what, "it is another text"))
}

fn by_token(map: &Map<String, Value>, of: &Shape, most: usize) -> Result<(), Fault> {
    if map.len() > most {
        let found = format!("it has {}", map.len());
        return Err(Fault::new(format!("may have {most} names at most"), found));
    }
    // As many digits as the largest token id may have.
    let is_id = |name: &String| {
        (1..=9).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !map.keys().all(is_id) {
        let found = "a name is a whole number, such as \"50256\"";
        return Err(Fault::new("must name tokens by their ids", found));
    }
    let fault = map.values().find_map(|value| check(value, of).err());
    fault.map_or(Ok(()), Err)
}

fn tagged(map: &Map<String, Value>, tagged: &Tagged) -> Result<(), Fault> {
    let tag = match (map.get(tagged.tag), tagged.default) {
        (Some(Value::String(tag)), _) => tag,
        (None, Some(default)) => default,
        (None, None) => return Err(Fault::new("is missing", tagged.otherwise).inside(tagged.tag)),
        (Some(other), _) => {
            let found = format!("it is {}", kind(other));
            return Err(Fault::new("must be a string", found).inside(tagged.tag));
        }
    };
    if let Some((_, fields)) = tagged.of.iter().find(|(known, _)| *known == tag) {
        return object(map, fields.iter());
    }
    let known: Vec<&str> = tagged.of.iter().map(|(known, _)| *known).collect();
    let what = match known.as_slice() {
        [only] => format!("must be {only}"),
        _ => format!("must be one of {}", known.join(", ")),
    };
    Err(Fault::new(what, tagged.otherwise).inside(tagged.tag))
}

/// The fault of the alternative that came furthest is told, if one came further than the value's type.
fn either(value: &Value, shapes: &[Shape]) -> Result<(), Fault> {
    let mut furthest: Option<Fault> = None;
    for shape in shapes.iter().filter(|shape| takes(shape, value)) {
        match check(value, shape) {
            Ok(()) => return Ok(()),
            Err(fault)
                if furthest
                    .as_ref()
                    .is_none_or(|far| fault.depth() > far.depth()) =>
            {
                furthest = Some(fault);
            }
            Err(_) => {}
        }
    }
    Err(furthest.unwrap_or_else(|| {
        let wanted: Vec<String> = shapes.iter().map(wanted).collect();
        let what = format!("must be {}", wanted.join(" or "));
        Fault::new(what, format!("it is {}", kind(value)))
    }))
}

/// Whether a value's type is right; of a list, also that of what it begins with.
fn takes(shape: &Shape, value: &Value) -> bool {
    match (shape, value) {
        (Shape::List { of, .. }, Value::Array(values)) => {
            values.first().is_none_or(|first| takes(of, first))
        }
        (Shape::Text { .. } | Shape::Name | Shape::Choice(_), Value::String(_))
        | (Shape::Flag, Value::Bool(_))
        | (Shape::Number { .. } | Shape::Whole { .. }, Value::Number(_))
        | (
            Shape::Object(_) | Shape::ByToken { .. } | Shape::Tagged(_) | Shape::AnyObject,
            Value::Object(_),
        ) => true,
        (Shape::Either(shapes), _) => shapes.iter().any(|shape| takes(shape, value)),
        _ => false,
    }
}

fn wanted(shape: &Shape) -> String {
    match shape {
        Shape::Text { .. } | Shape::Name | Shape::Choice(_) => "a string".into(),
        Shape::Flag => "true or false".into(),
        Shape::Number { .. } => "a number".into(),
        Shape::Whole { .. } => "a whole number".into(),
        Shape::List { of, .. } => format!("a list of {}", several(of)),
        Shape::Object(_) | Shape::ByToken { .. } | Shape::Tagged(_) | Shape::AnyObject => {
            "an object".into()
        }
        Shape::Absent(_) => "absent".into(),
        Shape::Either(shapes) => shapes.iter().map(wanted).collect::<Vec<_>>().join(" or "),
    }
}

fn several(of: &Shape) -> &'static str {
    match of {
        Shape::Text { .. } | Shape::Name | Shape::Choice(_) => "strings",
        Shape::Number { .. } | Shape::Whole { .. } => "numbers",
        Shape::List { .. } => "lists",
        _ => "objects",
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
