//! What an answer may be made to look like, and the tools that it may call.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;

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
    /// JSON Schema of its arguments, which are an object; `None` takes none.
    pub parameters: Option<Value>,
}

/// Whether and what the model calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// Nothing: the model is not told of the tools.
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
    /// The names of those that it may call in this answer; `None` is all. It is told of the others all the same, so that the
    /// prompt stays what it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed: Option<Vec<String>>,
}

impl Tools {
    /// Tools of one request.
    pub const MOST: usize = 128;
    /// Bytes of their names, descriptions and schemas together.
    pub const MOST_BYTES: usize = 64 << 10;
    /// Characters of a name.
    pub const LONGEST_NAME: usize = 64;

    /// Those that the model may call in this answer.
    pub fn callable(&self) -> impl Iterator<Item = &Tool> {
        let allowed = |name: &String| {
            let among = |allowed: &Vec<String>| allowed.contains(name);
            self.allowed.as_ref().is_none_or(among)
        };
        self.tools.iter().filter(move |tool| match &self.choice {
            ToolChoice::Named(chosen) => tool.name == *chosen,
            _ => allowed(&tool.name),
        })
    }

    /// Says, in a sentence for the client, what keeps these tools from being used.
    pub fn check(&self) -> Result<(), String> {
        if self.tools.is_empty() || self.tools.len() > Self::MOST {
            let (count, most) = (self.tools.len(), Self::MOST);
            return Err(format!("there are {count} tools: send 1 to {most}"));
        }
        let mut names = HashSet::new();
        for tool in &self.tools {
            tool.check()?;
            if !names.insert(tool.name.as_str()) {
                let name = &tool.name;
                return Err(format!(
                    "two tools are called {name}: give each a name of its own"
                ));
            }
        }
        let bytes: usize = self.tools.iter().map(Tool::bytes).sum();
        if bytes > Self::MOST_BYTES {
            let most = Self::MOST_BYTES;
            return Err(format!(
                "the definitions of the tools have {bytes} bytes: send at most {most}"
            ));
        }
        let mut allowed = self.allowed.iter().flatten();
        if let Some(name) = allowed.find(|name| !names.contains(name.as_str())) {
            return Err(format!(
                "no tool is called {:.80}: allow some of those that you send",
                format!("{name:?}")
            ));
        }
        match &self.choice {
            ToolChoice::Named(name) if !names.contains(name.as_str()) => Err(format!(
                "no tool is called {:.80}: choose one of those that you send",
                format!("{name:?}")
            )),
            _ if self.callable().next().is_none() => {
                Err("no tool may be called: allow one at least".into())
            }
            _ => Ok(()),
        }
    }
}

impl Tool {
    fn check(&self) -> Result<(), String> {
        let fits = (1..=Tools::LONGEST_NAME).contains(&self.name.len());
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        if !fits || !self.name.bytes().all(good) {
            return Err(format!(
                "{:.80} is no name for a tool: use 1 to {} letters, digits, _ and -",
                format!("{:?}", self.name),
                Tools::LONGEST_NAME
            ));
        }
        let of_an_object = match &self.parameters {
            None => true,
            Some(Value::Object(schema)) => schema.get("type").is_none_or(|kind| kind == "object"),
            Some(_) => false,
        };
        if !of_an_object {
            return Err(format!(
                "the parameters of {} are no JSON Schema of an object: give them the type \"object\"",
                self.name
            ));
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let schema = self.parameters.as_ref().map(ToString::to_string);
        [Some(&self.name), self.description.as_ref(), schema.as_ref()]
            .into_iter()
            .flatten()
            .map(String::len)
            .sum()
    }
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
