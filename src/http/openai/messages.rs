//! The turns of a chat: roles, content as a text or as parts, calls of tools and their results.

use crate::engine::{Message, Role, ToolCall};
use crate::http::error::ApiError;
use crate::http::schema::{Body, Field, Shape, Tagged, needed, optional};
use serde_json::Value;

const READS_TEXT: &str = "this model reads text: leave out images, audio and files";

const PART: Shape = Shape::Tagged(&Tagged {
    tag: "type",
    of: &[("text", &[needed("text", Shape::TEXT, "what is said")])],
    default: None,
    otherwise: READS_TEXT,
});

const ASSISTANT_PART: Shape = Shape::Tagged(&Tagged {
    tag: "type",
    of: &[
        ("text", &[needed("text", Shape::TEXT, "what was said")]),
        (
            "refusal",
            &[needed(
                "refusal",
                Shape::TEXT,
                "what was said instead of an answer",
            )],
        ),
    ],
    default: None,
    otherwise: READS_TEXT,
});

const CONTENT: Shape = Shape::Either(&[
    Shape::TEXT,
    Shape::List {
        of: &PART,
        least: 1,
        most: usize::MAX,
    },
]);

const ASSISTANT_CONTENT: Shape = Shape::Either(&[Shape::TEXT, Shape::list(&ASSISTANT_PART)]);

const SPEAKS: &[Field] = &[needed(
    "content",
    CONTENT,
    "a text, or a list of text parts",
)];

const CALL: Shape = Shape::Tagged(&Tagged {
    tag: "type",
    of: &[(
        "function",
        &[
            needed("id", Shape::TEXT, "names the call in its result"),
            needed(
                "function",
                Shape::Object(&[
                    needed("name", Shape::Text { least: 1, most: 64 }, "the tool"),
                    needed("arguments", Shape::TEXT, "a JSON object, as text"),
                ]),
                "what was called",
            ),
        ],
    )],
    default: Some("function"),
    otherwise: "only functions can be called",
});

/// One turn.
#[rustfmt::skip] // A table reads best as one.
const MESSAGE: Shape = Shape::Tagged(&Tagged {
    tag: "role",
    of: &[
        ("system", SPEAKS),
        ("developer", SPEAKS),
        ("user", SPEAKS),
        ("assistant", &[
            optional("content", ASSISTANT_CONTENT, "a text, or a list of text parts; needed unless there are `tool_calls`"),
            optional("tool_calls", Shape::list(&CALL), "what the model called in this turn"),
        ]),
        ("tool", &[
            needed("content", CONTENT, "the result, as a text or a list of text parts"),
            needed("tool_call_id", Shape::TEXT, "the `id` of the call"),
        ]),
    ],
    default: None,
    otherwise: "it says who speaks",
});

/// A whole chat.
pub(super) const MESSAGES: Shape = Shape::List {
    of: &MESSAGE,
    least: 1,
    most: usize::MAX,
};

/// The turns of a list that was checked.
pub(super) fn chat(turns: Vec<Value>) -> Result<Vec<Message>, ApiError> {
    let turns = turns.into_iter().enumerate();
    turns.map(|(index, turn)| message(index, turn)).collect()
}

fn message(index: usize, turn: Value) -> Result<Message, ApiError> {
    let mut turn = Body::of(turn);
    let role = match turn.text("role").as_deref() {
        Some("system" | "developer") => Role::System,
        Some("assistant") => Role::Assistant,
        Some("tool") => Role::Tool,
        _ => Role::User,
    };
    let content = turn.any("content");
    let tool_calls = match role {
        Role::Assistant => turn.list("tool_calls").into_iter().map(call).collect(),
        _ => Vec::new(),
    };
    if content.is_none() && tool_calls.is_empty() {
        let path = format!("messages[{index}].content");
        return Err(ApiError::bad_request(format!("`{path}` is missing"))
            .details("a turn without `tool_calls` says something")
            .param(path));
    }
    Ok(Message {
        tool_calls,
        tool_call_id: turn.text("tool_call_id").filter(|_| role == Role::Tool),
        ..Message::new(role, said(content))
    })
}

/// A text, or the texts of parts: one below the other, as llama-server puts them together.
pub(super) fn said(content: Option<Value>) -> String {
    match content {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let text = |part| {
                let mut part = Body::of(part);
                part.text("text").or_else(|| part.text("refusal"))
            };
            let texts: Vec<String> = parts.into_iter().filter_map(text).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

fn call(call: Value) -> ToolCall {
    let mut call = Body::of(call);
    let function = call.object("function");
    let mut function = function.unwrap_or_else(|| Body::of(Value::Null));
    ToolCall {
        id: call.text("id").unwrap_or_default(),
        name: function.text("name").unwrap_or_default(),
        arguments: arguments(function.text("arguments")),
    }
}

/// The arguments of a call that is told again. What was cut by a token limit is no JSON any more; it is kept as a text.
pub(super) fn arguments(text: Option<String>) -> String {
    let text = text.unwrap_or_default();
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(_)) => text,
        _ if text.trim().is_empty() => "{}".into(),
        _ => serde_json::json!({"arguments": text}).to_string(),
    }
}
