//! A chat as templates take it, and the forms that it is brought into for templates that take less.
//!
//! Calls' arguments are values here, because templates write them by `tojson`. Whatever a client wrote can be seen and
//! replaced in one place, so that no text of it is forgotten when control texts are broken up.

use super::{PromptError, json};
use crate::engine::{Message, Role, Tool, ToolCall, ToolChoice, Tools};
use serde_json::Value;

/// Messages and the tools that they may speak of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chat {
    pub(super) turns: Vec<Turn>,
    pub(super) tools: Vec<Tool>,
    /// Whether an answer may have several calls.
    pub(super) parallel: bool,
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Turn {
    pub(super) role: Role,
    pub(super) content: String,
    pub(super) calls: Vec<Call>,
    /// The call that this is the result of.
    pub(super) call_id: Option<String>,
    /// The tool that was called there.
    pub(super) tool: Option<String>,
}

/// A call that the model made.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) arguments: Value,
}

impl Chat {
    pub(super) fn new(messages: &[Message], tools: Option<&Tools>) -> Result<Self, PromptError> {
        let mut turns: Vec<Turn> = Vec::with_capacity(messages.len());
        for message in messages {
            let calls = match message.role {
                Role::Assistant => message.tool_calls.as_slice(),
                _ => &[],
            };
            let call_id = message.tool_call_id.as_ref();
            let call_id = call_id.filter(|_| message.role == Role::Tool);
            turns.push(Turn {
                role: message.role,
                content: message.content.clone(),
                calls: calls.iter().map(Call::new).collect::<Result<_, _>>()?,
                call_id: call_id.cloned(),
                tool: call_id.and_then(|id| called(&turns, id)),
            });
        }
        // A model that may call none is not told of any.
        let tools = tools.filter(|tools| tools.choice != ToolChoice::None);
        Ok(Self {
            turns,
            tools: tools.map(|tools| tools.tools.clone()).unwrap_or_default(),
            parallel: tools.is_some_and(|tools| tools.parallel),
        })
    }

    /// A chat without tools.
    pub(super) fn of(turns: Vec<Turn>) -> Self {
        Self {
            turns,
            tools: Vec::new(),
            parallel: false,
        }
    }

    /// Bytes of all messages and tools, roughly.
    pub(super) fn bytes(&self) -> usize {
        let mut bytes = 0;
        self.any(|text| {
            bytes += text.len() + 8;
            false
        });
        bytes
    }

    /// Whether some text that the client wrote passes the test.
    pub(super) fn any(&self, mut test: impl FnMut(&str) -> bool) -> bool {
        for turn in &self.turns {
            let ids = turn.call_id.iter().chain(&turn.tool);
            if std::iter::once(&turn.content)
                .chain(ids)
                .any(|text| test(text))
            {
                return true;
            }
            for call in &turn.calls {
                if test(&call.id) || test(&call.name) || any_in(&call.arguments, &mut test) {
                    return true;
                }
            }
        }
        self.tools.iter().any(|tool| {
            test(&tool.name)
                || tool.description.as_ref().is_some_and(|text| test(text))
                || tool
                    .parameters
                    .as_ref()
                    .is_some_and(|schema| any_in(schema, &mut test))
        })
    }

    /// The same with each text that the client wrote replaced.
    pub(super) fn map(&self, change: impl Fn(&str) -> String) -> Self {
        let change = &change;
        let turns = self.turns.iter().map(|turn| Turn {
            role: turn.role,
            content: change(&turn.content),
            calls: turn.calls.iter().map(|call| call.map(change)).collect(),
            call_id: turn.call_id.as_deref().map(change),
            tool: turn.tool.as_deref().map(change),
        });
        let tools = self.tools.iter().map(|tool| Tool {
            name: change(&tool.name),
            description: tool.description.as_deref().map(change),
            parameters: tool
                .parameters
                .as_ref()
                .map(|schema| map_in(schema, change)),
        });
        Self {
            turns: turns.collect(),
            tools: tools.collect(),
            parallel: self.parallel,
        }
    }

    /// For templates without a system role: what the system says leads what the user says next, as Gemma's own template
    /// has it for the first message. With `later_only`, a first message may stay.
    pub(super) fn without_system(mut self, later_only: bool) -> Self {
        let mut turns: Vec<Turn> = Vec::with_capacity(self.turns.len());
        let mut lead: Option<String> = None;
        for (index, mut turn) in self.turns.into_iter().enumerate() {
            match turn.role {
                Role::System if index > 0 || !later_only => {
                    lead =
                        Some(lead.map_or_else(
                            || turn.content.clone(),
                            |lead| joined(&lead, &turn.content),
                        ));
                    continue;
                }
                Role::User => {
                    if let Some(lead) = lead.take() {
                        turn.content = joined(&lead, &turn.content);
                    }
                }
                _ => {}
            }
            turns.push(turn);
        }
        turns.extend(lead.map(|lead| Turn::new(Role::User, lead)));
        self.turns = turns;
        self
    }

    /// For templates that want user and assistant in turns, and one call in a turn: later system messages lead what the
    /// user says, each call is followed by its result, and what one of them says twice in a row is one message.
    pub(super) fn in_turns(self) -> Self {
        let mut chat = self.without_system(true).one_call_each();
        let mut turns: Vec<Turn> = Vec::with_capacity(chat.turns.len());
        for turn in chat.turns {
            match turns.last_mut() {
                Some(last)
                    if last.role == turn.role
                        && turn.role != Role::Tool
                        && last.calls.is_empty() =>
                {
                    last.content = joined(&last.content, &turn.content);
                    last.calls = turn.calls;
                }
                _ => turns.push(turn),
            }
        }
        chat.turns = turns;
        chat
    }

    fn one_call_each(mut self) -> Self {
        let mut turns: Vec<Turn> = Vec::with_capacity(self.turns.len());
        let mut rest = self.turns.into_iter().peekable();
        while let Some(mut turn) = rest.next() {
            let calls = std::mem::take(&mut turn.calls);
            if calls.len() < 2 {
                turn.calls = calls;
                turns.push(turn);
                continue;
            }
            let mut results = Vec::new();
            while let Some(result) = rest.next_if(|turn| turn.role == Role::Tool) {
                results.push(result);
            }
            for call in calls {
                let of_it = |result: &Turn| result.call_id.as_deref() == Some(&call.id);
                let result = results.iter().position(of_it);
                let content = std::mem::take(&mut turn.content);
                turns.push(Turn {
                    calls: vec![call],
                    ..Turn::new(Role::Assistant, content)
                });
                turns.extend(result.map(|at| results.remove(at)));
            }
            turns.append(&mut results);
        }
        self.turns = turns;
        self
    }
}

impl Turn {
    pub(super) fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            calls: Vec::new(),
            call_id: None,
            tool: None,
        }
    }
}

impl Call {
    fn new(call: &ToolCall) -> Result<Self, PromptError> {
        let text = match call.arguments.trim() {
            "" => "{}",
            text => text,
        };
        match serde_json::from_str(text) {
            Ok(arguments @ Value::Object(_)) => Ok(Self {
                id: call.id.clone(),
                name: call.name.clone(),
                arguments,
            }),
            _ => Err(PromptError::Template(format!(
                "the arguments of the earlier call {:.80} are no JSON object: send them as the model wrote them, or leave the call out",
                format!("{:?}", call.id)
            ))),
        }
    }

    fn map(&self, change: &impl Fn(&str) -> String) -> Self {
        Self {
            id: change(&self.id),
            name: change(&self.name),
            arguments: map_in(&self.arguments, change),
        }
    }

    /// The object that a call is in Hermes' form.
    pub(super) fn json(&self) -> Result<String, PromptError> {
        let call = [
            ("name", self.name.as_str().into()),
            ("arguments", json::value(&self.arguments)),
        ];
        json::dumps(&minijinja::Value::from_pairs(call))
    }
}

/// One text, a blank line, another; no blank line beside nothing.
pub(super) fn joined(first: &str, second: &str) -> String {
    if first.is_empty() || second.is_empty() {
        return [first, second].concat();
    }
    format!("{first}\n\n{second}")
}

fn called(turns: &[Turn], id: &str) -> Option<String> {
    let mut calls = turns.iter().rev().flat_map(|turn| &turn.calls);
    Some(calls.find(|call| call.id == id)?.name.clone())
}

/// Values come from JSON texts, which are nested 128 deep at most.
fn any_in(value: &Value, test: &mut impl FnMut(&str) -> bool) -> bool {
    match value {
        Value::String(text) => test(text),
        Value::Array(items) => items.iter().any(|item| any_in(item, test)),
        Value::Object(map) => map
            .iter()
            .any(|(key, value)| test(key) || any_in(value, test)),
        _ => false,
    }
}

fn map_in(value: &Value, change: &impl Fn(&str) -> String) -> Value {
    match value {
        Value::String(text) => change(text).into(),
        Value::Array(items) => items.iter().map(|item| map_in(item, change)).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (change(key), map_in(value, change)))
            .collect(),
        other => other.clone(),
    }
}
