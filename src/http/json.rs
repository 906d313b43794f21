//! JSON in, strictly first and then with two allowances; JSON out, compact for programs, indented for people.

use super::error::{ApiError, Code};
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt::{self, Write};

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");

/// A body as a JSON object.
///
/// Clients that paste a person's words into JSON by hand forget two things: raw control characters (a newline), and
/// backslashes that escape nothing. Such a body is understood: each is taken for itself. Nothing else is repaired.
///
/// Only fields of the `known` names are kept: a parsed value takes many times the bytes of its text, and nobody looks at the
/// others.
pub(super) fn parse_object(body: &[u8], known: &[&str]) -> Result<Map<String, Value>, ApiError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        ApiError::bad_request("the body is not UTF-8").details(error.to_string())
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_ascii().is_empty() {
        return Err(ApiError::bad_request("the body is empty")
            .details(r#"send a JSON object, such as {"text":"hello"}"#));
    }
    as_object(kept(text, known).or_else(|_| kept(&repaired(text), known)))
}

/// A body as a JSON object, without allowances: for clients that write JSON by program.
pub(super) fn parse_strictly(body: &[u8], known: &[&str]) -> Result<Map<String, Value>, ApiError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        ApiError::bad_request("the body is not UTF-8").details(error.to_string())
    })?;
    as_object(kept(text, known))
}

fn as_object(
    parsed: serde_json::Result<Option<Map<String, Value>>>,
) -> Result<Map<String, Value>, ApiError> {
    match parsed {
        Ok(Some(object)) => Ok(object),
        Ok(None) => Err(ApiError::bad_request("the body is JSON, but no object")
            .details("send a JSON object: {…}")),
        Err(error) if error.to_string().starts_with("recursion limit") => {
            Err(ApiError::bad_request("the body is nested too deeply")
                .details("128 levels is the limit"))
        }
        Err(error) => Err(ApiError::bad_request("the body is no JSON").details(error.to_string())),
    }
}

/// The known fields of an object; `None` for any other JSON.
fn kept(text: &str, known: &[&str]) -> serde_json::Result<Option<Map<String, Value>>> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let object = reader.deserialize_any(Kept(known))?;
    reader.end()?;
    Ok(object)
}

struct Kept<'a>(&'a [&'a str]);

impl<'de> Visitor<'de> for Kept<'_> {
    type Value = Option<Map<String, Value>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            if self.0.contains(&name.as_str()) {
                object.insert(name, map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Some(object))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// The text with control characters inside strings escaped, and backslashes that escape nothing doubled.
fn repaired(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 64);
    let mut in_string = false;
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match next {
            '"' => {
                in_string = !in_string;
                out.push('"');
            }
            '\\' if in_string => match escape_length(rest.as_str()) {
                0 => out.push_str("\\\\"),
                length => {
                    let (escape, after) = rest.as_str().split_at(length);
                    out.push('\\');
                    out.push_str(escape);
                    rest = after.chars();
                }
            },
            '\0'..='\x1f' if in_string => {
                // Writing to a string can't fail.
                let _ = write!(out, "\\u{:04x}", u32::from(next));
            }
            _ => out.push(next),
        }
    }
    out
}

/// Bytes of the escape that `after` (what follows a backslash) begins with; 0 if it begins with none.
fn escape_length(after: &str) -> usize {
    match after.as_bytes() {
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 1,
        [b'u', hex @ ..] => match unit(hex) {
            Some(0xd800..=0xdbff) => match hex.get(4..) {
                Some([b'\\', b'u', low @ ..]) if matches!(unit(low), Some(0xdc00..=0xdfff)) => 11,
                _ => 0,
            },
            Some(0xdc00..=0xdfff) | None => 0,
            Some(_) => 5,
        },
        _ => 0,
    }
}

/// The UTF-16 unit that four hexadecimal digits stand for.
fn unit(hex: &[u8]) -> Option<u16> {
    let digits = hex.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(unit << 4 | u16::try_from(digit).ok()?)
    })
}

/// A response for programs: one line.
pub(super) fn compact(status: StatusCode, body: &impl Serialize) -> Response {
    respond(status, serde_json::to_vec(body))
}

/// A response that a person reads in a terminal.
pub(super) fn pretty(status: StatusCode, body: &impl Serialize) -> Response {
    respond(status, serde_json::to_vec_pretty(body))
}

fn respond(status: StatusCode, body: serde_json::Result<Vec<u8>>) -> Response {
    match body {
        Ok(mut body) => {
            // So that a shell's prompt begins on its own line.
            body.push(b'\n');
            (status, [(header::CONTENT_TYPE, JSON)], Body::from(body)).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "a response can't be encoded");
            Code::AiError.status().into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(body: &str) -> Option<String> {
        let object = parse_object(body.as_bytes(), &["text"]).ok()?;
        Some(object.get("text")?.as_str()?.to_owned())
    }

    #[test]
    fn control_characters_and_idle_backslashes_are_taken_for_themselves() {
        let table = [
            ("{\"text\":\"a\nb\"}", "a\nb"),
            ("{\"text\":\"a\r\n\tb\u{0}\"}", "a\r\n\tb\u{0}"),
            (r#"{"text":"C:\Users\me"}"#, r"C:\Users\me"),
            (r#"{"text":"\d+ \x \'"}"#, r"\d+ \x \'"),
            (r#"{"text":"\u12"}"#, r"\u12"),
            (r#"{"text":"\u12é4"}"#, r"\u12é4"),
            (r#"{"text":"\ud83d"}"#, r"\ud83d"),
            (r#"{"text":"\ud83dA\ude00"}"#, r"\ud83dA\ude00"),
            ("{\"text\":\"\\ud83d\\ude00\n\"}", "😀\n"),
            ("{\"text\":\"say \\\"hi\\\"\n\"}", "say \"hi\"\n"),
            ("{\"text\":\"a\\\nb\"}", "a\\\nb"),
            ("{\"text\":\"\\\\\n\"}", "\\\n"),
            ("\u{feff}{\"text\":\"a\"}", "a"),
            (r#"{"text":"strict \n wins"}"#, "strict \n wins"),
        ];
        for (body, expected) in table {
            assert_eq!(text_of(body).as_deref(), Some(expected), "{body:?}");
        }
    }

    #[test]
    fn only_known_fields_are_kept() {
        let body = br#"{"x":[0,{"text":"inner"}],"text":"kept","y":null}"#;
        let object = parse_object(body, &["text"]).unwrap();
        assert_eq!(Value::Object(object), serde_json::json!({"text": "kept"}));
    }

    #[test]
    fn nothing_else_is_repaired() {
        let deep = format!("{{\"text\":{}{}}}", "[".repeat(200), "]".repeat(200));
        let table = [
            ("", "the body is empty"),
            (" \n", "the body is empty"),
            ("[]", "the body is JSON, but no object"),
            ("\"text\"", "the body is JSON, but no object"),
            ("{\"text\":\"a\"", "the body is no JSON"),
            ("{'text':'a'}", "the body is no JSON"),
            ("{\"text\":\"a\",}", "the body is no JSON"),
            ("{\"text\":\"a\n\\\"}", "the body is no JSON"),
            ("{\"text\":1e999}", "the body is no JSON"),
            ("text=hello", "the body is no JSON"),
            (&deep, "the body is nested too deeply"),
        ];
        for (body, error) in table {
            let found = parse_object(body.as_bytes(), &["text"]).unwrap_err();
            assert_eq!(found.text(), error, "{body:?}");
        }
        let found = parse_object(b"{\"text\":\"\xff\"}", &["text"]).unwrap_err();
        assert_eq!(found.text(), "the body is not UTF-8");
    }
}
