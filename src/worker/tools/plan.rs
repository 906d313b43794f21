//! What holds a model to calls that can be made: a grammar for them, and where in the answer it begins.
//!
//! The grammar is Lark in llguidance's dialect. A tool's arguments are its schema, inline (`%json`); all that is around
//! them is literal, so a call has the name of a tool and arguments that its schema accepts. White space is what Python's
//! `json.dumps` writes, which is what models were trained on: it leaves a model no room for blanks without end.

use super::{CLOSE, Key, OPEN, Syntax};
use crate::engine::{Format, Tool, ToolChoice, Tools};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Calls of one answer that must consist of calls.
const MOST_CALLS: usize = 16;

/// What an answer that may call tools is held to.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolPlan {
    /// The grammar; `None` leaves the answer alone.
    pub format: Option<Format>,
    /// The answer is free up to this text, and held to the grammar behind it; `None` holds it from its start. The answer
    /// begins behind the model's reasoning.
    pub start_after: Option<&'static str>,
    /// Whether the answer is free again behind what the grammar describes. If not, it ends there.
    pub again: bool,
}

/// The plan for these tools, which [`Tools::check`] has passed.
pub fn plan(tools: &Tools, syntax: Syntax) -> ToolPlan {
    let all = || tools.tools.iter();
    let (start, start_after, again) = match (&tools.choice, syntax) {
        (ToolChoice::None, _) => {
            return ToolPlan {
                format: None,
                start_after: None,
                again: false,
            };
        }
        (ToolChoice::Auto, Syntax::Tagged) => (
            format!(r#""\n" call "\n{CLOSE}""#),
            Some(OPEN),
            tools.parallel,
        ),
        // No mark announces a call, but no other answer begins like one.
        (ToolChoice::Auto, Syntax::Bare(_)) => ("call | TEXT".into(), None, false),
        (ToolChoice::Required, Syntax::Tagged) if tools.parallel => (
            format!(r#"tagged ("\n" tagged){{0,{}}}"#, MOST_CALLS - 1),
            None,
            false,
        ),
        (ToolChoice::Required | ToolChoice::Named(_), Syntax::Tagged) => {
            ("tagged".into(), None, false)
        }
        (ToolChoice::Required | ToolChoice::Named(_), Syntax::Bare(_)) => {
            ("call".into(), None, false)
        }
    };
    let key = match syntax {
        Syntax::Tagged => Key::Arguments,
        Syntax::Bare(key) => key,
    };
    let grammar = match &tools.choice {
        ToolChoice::Named(name) => grammar(&start, all().filter(|tool| tool.name == *name), key),
        _ => grammar(&start, all(), key),
    };
    ToolPlan {
        format: Some(Format::Lark(grammar)),
        start_after,
        again,
    }
}

fn grammar<'a>(start: &str, tools: impl Iterator<Item = &'a Tool>, key: Key) -> String {
    let mut rules = String::new();
    let mut calls = Vec::new();
    for (index, tool) in tools.enumerate() {
        let head = format!("{{\"name\": \"{}\", \"{}\": ", tool.name, key.text());
        // Writing to a string can't fail.
        let _ = match &tool.parameters {
            Some(parameters) => writeln!(
                rules,
                "call_{index}: {} arguments_{index} \"}}\"\narguments_{index}: %json {}",
                quoted(&head),
                schema(parameters)
            ),
            None => writeln!(rules, "call_{index}: {}", quoted(&(head + "{}}"))),
        };
        calls.push(format!("call_{index}"));
    }
    let mut out = format!("start: {start}\n");
    if start.contains("tagged") {
        let (open, close) = (quoted(&format!("{OPEN}\n")), quoted(&format!("\n{CLOSE}")));
        let _ = writeln!(out, "tagged: {open} call {close}");
    }
    if start.contains("TEXT") {
        out.push_str("TEXT: /[ \\t\\r\\n]*[^{ \\t\\r\\n](.|\\n)*/\n");
    }
    let _ = writeln!(out, "call: {}", calls.join(" | "));
    out + &rules
}

/// A literal of the grammar. Names have no characters that JSON and Lark escape differently.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The schema, for an object in any case, with Python's separators.
pub(super) fn schema(parameters: &Value) -> Value {
    let mut schema: Map<String, Value> = parameters.as_object().cloned().unwrap_or_default();
    schema
        .entry("type")
        .or_insert_with(|| Value::from("object"));
    let spaces =
        json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    schema.insert("x-guidance".into(), spaces);
    Value::Object(schema)
}
