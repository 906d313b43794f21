//! What holds a model to calls that can be made: a grammar for them, and where in the answer it begins.
//!
//! The grammar is Lark in llguidance's dialect. A tool's arguments are its schema, inline (`%json`); all that is around
//! them is literal, so a call has the name of a tool and arguments that its schema accepts. White space is what Python's
//! `json.dumps` writes, which is what models were trained on: it leaves a model no room for blanks without end.

use super::{CLOSE, Key, OPEN, Syntax};
use crate::engine::{Format, Tool, ToolChoice, Tools};
use crate::worker::constraint::{Form, any_object, prepared_schema};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Calls of one answer that must consist of calls.
const MOST_CALLS: usize = 16;

/// What an answer that may call tools is held to.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolPlan {
    /// The grammar.
    pub form: Form,
    /// The answer is free up to this text, and held to the grammar behind it; `None` holds it from its start. The answer
    /// begins behind the model's reasoning.
    pub start_after: Option<&'static str>,
    /// Whether the answer is free again behind what the grammar describes. If not, it ends there.
    pub again: bool,
}

/// The plan for these tools, which [`Tools::check`] has passed and of which one may be called; an answer that calls none has
/// the `format`. The error says what can't be enforced, and where it stands.
pub fn plan(tools: &Tools, syntax: Syntax, format: Option<&Format>) -> Result<ToolPlan, String> {
    let may_answer = tools.choice == ToolChoice::Auto;
    let answer = format.filter(|_| may_answer).map(answer).transpose()?;
    let several = || format!(r#"tagged ("\n" tagged){{0,{}}}"#, MOST_CALLS - 1);
    let mut start_after = None;
    let calls = match (syntax, tools.parallel) {
        (Syntax::Tagged, _) if may_answer && answer.is_none() => {
            start_after = Some(OPEN);
            format!(r#""\n" call "\n{CLOSE}""#)
        }
        (Syntax::Tagged, true) if !matches!(tools.choice, ToolChoice::Named(_)) => several(),
        (Syntax::Tagged, _) => "tagged".into(),
        (Syntax::Bare(_), _) => "call".into(),
    };
    let or_text = may_answer && answer.is_none() && start_after.is_none();
    let start = match (&answer, or_text) {
        (Some(_), _) => calls + " | answer",
        // No mark announces a call, but no other answer begins like one.
        (None, true) => calls + " | TEXT",
        (None, false) => calls,
    };
    let key = match syntax {
        Syntax::Tagged => Key::Arguments,
        Syntax::Bare(key) => key,
    };
    let mut grammar = grammar(&start, tools.callable(), key)?;
    if let Some(answer) = answer {
        grammar.push_str("answer: %json ");
        grammar.push_str(&answer.to_string());
        grammar.push('\n');
    }
    Ok(ToolPlan {
        form: Form::Calls { grammar, or_text },
        start_after,
        again: start_after.is_some() && tools.parallel,
    })
}

/// The schema of an answer that calls nothing.
fn answer(format: &Format) -> Result<Value, String> {
    match format {
        Format::JsonObject => Ok(any_object()),
        Format::JsonSchema(schema) => prepared_schema(schema),
        Format::Regex(_) | Format::Lark(_) | Format::Gbnf(_) => {
            Err("an answer that may call tools can't have a regular expression or a grammar as its format: use a JSON schema".into())
        }
    }
}

fn grammar<'a>(
    start: &str,
    tools: impl Iterator<Item = &'a Tool>,
    key: Key,
) -> Result<String, String> {
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
                schema(parameters).map_err(|error| format!("tool `{}`: {error}", tool.name))?
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
    Ok(out + &rules)
}

/// A literal of the grammar. Names have no characters that JSON and Lark escape differently.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The schema, for an object in any case, with Python's separators.
pub(super) fn schema(parameters: &Value) -> Result<Value, String> {
    let mut schema: Map<String, Value> = parameters.as_object().cloned().unwrap_or_default();
    schema
        .entry("type")
        .or_insert_with(|| Value::from("object"));
    let Value::Object(mut schema) = prepared_schema(&Value::Object(schema))? else {
        return Err("the schema accepts nothing, or everything: describe an object".into());
    };
    if let Some(Value::Object(options)) = schema.get_mut("x-guidance") {
        options.insert("item_separator".into(), json!(", "));
        options.insert("key_separator".into(), json!(": "));
    }
    Ok(Value::Object(schema))
}
