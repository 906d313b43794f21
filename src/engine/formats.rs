//! What an answer may be made to look like, and the tools that it may call.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The form that an answer is held to while it is sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Any JSON object.
    JsonObject,
    /// JSON that this JSON Schema (draft 2020-12) accepts.
    JsonSchema(Value),
    /// Text that this regular expression matches as a whole.
    Regex(String),
    /// A Lark grammar, in the dialect of llguidance.
    Lark(String),
    /// A GBNF grammar, as llama.cpp reads it.
    Gbnf(String),
}

/// A program that the model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// Its name: 1 to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model to read.
    pub description: Option<String>,
    /// JSON Schema of its arguments, an object; `None` takes none.
    pub parameters: Option<Value>,
}

/// Whether and what the model calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// Nothing, though the tools are described.
    None,
    /// What it likes.
    #[default]
    Auto,
    /// One tool at least.
    Required,
    /// This one.
    Named(String),
}

/// The programs that the model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tools {
    /// All of them; names are unique.
    pub tools: Vec<Tool>,
    /// Whether and what it calls.
    pub choice: ToolChoice,
    /// Whether it may make several calls in one answer.
    pub parallel: bool,
}

/// A call that the model made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call in its result.
    pub id: String,
    /// The tool.
    pub name: String,
    /// A JSON object, as text.
    pub arguments: String,
}
