//! Tools for models whose template does not know them (Gemma 3, SmolLM2, DeepSeek-R1 and its distilled models): described
//! in the system message, called and answered in the form that Hermes 2 Pro and Qwen 2.5 use.
//!
//! - The system message ends with [`instructions`]; where there is none, they are one.
//! - A turn that called tools is its text, then the calls, each between `<tool_call>` and `</tool_call>`.
//! - Results are a turn of the user, each between `<tool_response>` and `</tool_response>`; those of one turn's calls share
//!   one, because some templates want user and assistant in turns.

use super::chat::{Chat, Turn};
use super::{PromptError, json};
use crate::engine::{Role, Tool};
use crate::worker::tools::{CLOSE, OPEN};
use minijinja::Value;

impl Chat {
    /// The same chat without tools, calls and results, for a template that does not know them.
    pub(super) fn described(self) -> Result<Self, PromptError> {
        let mut turns: Vec<Turn> = Vec::with_capacity(self.turns.len() + 1);
        let mut after_result = false;
        for turn in self.turns {
            let result = turn.role == Role::Tool;
            let turn = match turn.role {
                Role::Tool => {
                    let text = format!("<tool_response>\n{}\n</tool_response>", turn.content);
                    match turns.last_mut().filter(|_| after_result) {
                        Some(last) => {
                            last.content.extend(["\n", &text]);
                            continue;
                        }
                        None => Turn::new(Role::User, text),
                    }
                }
                Role::Assistant => with_calls(turn)?,
                _ => turn,
            };
            turns.push(turn);
            after_result = result;
        }
        if !self.tools.is_empty() {
            let instructions = instructions(&self.tools, self.parallel)?;
            match turns.first_mut().filter(|turn| turn.role == Role::System) {
                Some(system) => {
                    system.content = super::chat::joined(&system.content, &instructions);
                }
                None => turns.insert(0, Turn::new(Role::System, instructions)),
            }
        }
        Ok(Self::of(turns))
    }
}

fn with_calls(turn: Turn) -> Result<Turn, PromptError> {
    let mut lines = Vec::new();
    if !turn.content.is_empty() {
        lines.push(turn.content);
    }
    for call in &turn.calls {
        lines.push(format!("{OPEN}\n{}\n{CLOSE}", call.json()?));
    }
    Ok(Turn::new(Role::Assistant, lines.join("\n")))
}

/// What tells a model of its tools.
fn instructions(tools: &[Tool], parallel: bool) -> Result<String, PromptError> {
    let mut list = String::new();
    for tool in tools {
        list.extend([json::dumps(&function(tool))?.as_str(), "\n"]);
    }
    let several = if parallel {
        " You may make several calls, one after the other, each in tags of its own."
    } else {
        " Make one call at a time."
    };
    Ok(format!(
        "# Tools\n\n\
         You may call tools to answer the user. Each line between <tools> and </tools> describes one; its parameters are \
         the JSON Schema of its arguments:\n\
         <tools>\n{list}</tools>\n\n\
         To call a tool, write a JSON object with its name and its arguments between tags, and nothing after them:\n\
         {OPEN}\n{{\"name\": \"tool name\", \"arguments\": {{\"argument name\": \"value\"}}}}\n{CLOSE}\n\
         You then get the result between <tool_response> and </tool_response>.{several} If no tool helps, answer without one."
    ))
}

/// A tool as one JSON object.
pub(super) fn function(tool: &Tool) -> Value {
    let mut pairs: Vec<(&str, Value)> = vec![("name", tool.name.as_str().into())];
    pairs.extend(
        tool.description
            .as_deref()
            .map(|text| ("description", text.into())),
    );
    let parameters = tool.parameters.as_ref();
    pairs.extend(parameters.map(|schema| ("parameters", json::value(schema))));
    Value::from_pairs(pairs)
}
