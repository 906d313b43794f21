//! `tojson` as the publishers' library has it: Python's `json.dumps`, whose output models were trained on. Jinja's own
//! filter escapes for HTML, and minijinja's too.

use super::{MARKERS, PromptError};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;

/// Deeper values are refused: Python has such a limit too, and the stack needs one.
const MAX_DEPTH: usize = 100;
/// No template needs wider indentation; each line costs it.
const MAX_INDENT: usize = 16;

/// The filter: `value | tojson(indent=4)`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the engine hands a filter its options by value"
)]
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let [between, after_key] = match separators.map(TryInto::try_into) {
        Some(Ok(both)) => both,
        Some(Err(_)) => return Err(invalid("tojson takes two separators")),
        None => [if indent.is_some() { "," } else { ", " }, ": "].map(Into::into),
    };
    let mut writer = Writer {
        out: String::new(),
        ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent: indent.map(|indent| indent.min(MAX_INDENT)),
        between,
        after_key,
    };
    options.assert_all_used()?;
    writer.value(value, 0)?;
    Ok(writer.out)
}

/// What `tojson` without options makes of a value.
pub(super) fn dumps(value: &Value) -> Result<String, PromptError> {
    let mut writer = Writer {
        out: String::new(),
        ascii: false,
        sort_keys: false,
        indent: None,
        between: ", ".into(),
        after_key: ": ".into(),
    };
    writer
        .value(value, 0)
        .map_err(|error| PromptError::Template(error.to_string()))?;
    Ok(writer.out)
}

/// A JSON value as templates take it.
pub(super) fn value(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(bool) => (*bool).into(),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (_, Some(number)) => number.into(),
            // All others are finite 64-bit floats.
            _ => number.as_f64().unwrap_or_default().into(),
        },
        Json::String(text) => text.as_str().into(),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, item)| (key.as_str(), value(item))))
        }
    }
}

struct Writer {
    out: String,
    ascii: bool,
    sort_keys: bool,
    indent: Option<usize>,
    between: String,
    after_key: String,
}

impl Writer {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(invalid("the value is nested too deeply for JSON"));
        }
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self
                .out
                .push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => match f64::try_from(value.clone()) {
                Ok(float) if !value.is_integer() => self.float(float),
                _ => self.out.push_str(&value.to_string()),
            },
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                self.out.push('[');
                let items = value.try_iter()?;
                self.items(items, depth, |writer, item| writer.value(&item, depth + 1))?;
                self.out.push(']');
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.out.push('{');
                self.items(keys.into_iter(), depth, |writer, key| {
                    writer.key(&key)?;
                    writer.out.push_str(&writer.after_key);
                    writer.value(&value.get_item(&key)?, depth + 1)
                })?;
                self.out.push('}');
            }
            kind => return Err(invalid(format!("{kind} has no form in JSON"))),
        }
        Ok(())
    }

    fn items(
        &mut self,
        items: impl Iterator<Item = Value>,
        depth: usize,
        mut write: impl FnMut(&mut Self, Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut empty = true;
        for item in items {
            if !empty {
                self.out.push_str(&self.between);
            }
            empty = false;
            self.line_break(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.line_break(depth);
        }
        Ok(())
    }

    fn line_break(&mut self, depth: usize) {
        if let Some(indent) = self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    }

    fn key(&mut self, key: &Value) -> Result<(), Error> {
        match key.kind() {
            ValueKind::String => self.string(key.as_str().unwrap_or_default()),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                self.out.push('"');
                self.value(key, 0)?;
                self.out.push('"');
            }
            kind => return Err(invalid(format!("{kind} is no key in JSON"))),
        }
        Ok(())
    }

    /// The shortest digits that give the number again, with an exponent where Python writes one: below 10⁻⁴ and from 10¹⁶.
    fn float(&mut self, float: f64) {
        if !float.is_finite() {
            let name = if float.is_nan() { "NaN" } else { "Infinity" };
            self.out.push_str(if float < 0.0 { "-" } else { "" });
            return self.out.push_str(name);
        }
        let scientific = format!("{float:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let exponent: i32 = exponent.parse().unwrap_or_default();
        // Writing to a string can't fail.
        let _ = if float == 0.0 || (-4..16).contains(&exponent) {
            write!(self.out, "{float:?}")
        } else {
            write!(self.out, "{digits}e{exponent:+03}")
        };
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for char in text.chars() {
            match char {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                // A marker that is escaped could not be taken out again.
                char if char < ' '
                    || (self.ascii && !char.is_ascii() && !MARKERS.contains(&char)) =>
                {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        // Writing to a string can't fail.
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                char => self.out.push(char),
            }
        }
        self.out.push('"');
    }
}

fn invalid(reason: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}
