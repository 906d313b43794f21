//! From a body to a request that can't be wrong: items become the turns of a chat.

use super::super::Asked;
use super::super::sampling::{Common, FIELDS};
use super::super::{format, messages, tools};
use crate::engine::{Format, MOST_ALTERNATIVES, Message, Prompt, Request, Role, ToolCall, Tools};
use crate::http::error::ApiError;
use crate::http::schema::{Body, Field, Shape, Table, Tagged, needed, optional};
use crate::models::SamplingDefaults;
use serde_json::Value;

/// Every field.
pub(in crate::http) const TABLE: Table = &[RESPONSE, FIELDS, tools::FLAT_FIELDS];

const TEXT: &[Field] = &[needed("text", Shape::TEXT, "what is said")];

const PART: Shape = Shape::Tagged(&Tagged {
    tag: "type",
    of: &[
        ("input_text", TEXT),
        ("output_text", TEXT),
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
    otherwise: "this model reads text: leave out images, audio and files",
});

const SAID: Shape = Shape::Either(&[Shape::TEXT, Shape::list(&PART)]);

#[rustfmt::skip] // A table reads best as one.
const ITEM: Shape = Shape::Tagged(&Tagged {
    tag: "type",
    of: &[
        ("message", &[
            needed("role", Shape::Choice(&["user", "assistant", "system", "developer"]), "who speaks"),
            needed("content", SAID, "a text, or a list of text parts"),
        ]),
        ("function_call", &[
            needed("call_id", Shape::TEXT, "names the call in its result"),
            needed("name", Shape::Text { least: 1, most: 64 }, "the tool"),
            needed("arguments", Shape::TEXT, "a JSON object, as text"),
        ]),
        ("function_call_output", &[
            needed("call_id", Shape::TEXT, "the `call_id` of the call"),
            needed("output", SAID, "the result"),
        ]),
        ("reasoning", &[]),
    ],
    default: Some("message"),
    otherwise: "nothing is stored here, and this server calls nothing itself",
});

const STORED: Shape =
    Shape::Absent("nothing is stored here: send the whole conversation as `input`");

#[rustfmt::skip] // A table reads best as one.
const RESPONSE: &[Field] = &[
    needed("input", Shape::Either(&[
        Shape::Text { least: 1, most: usize::MAX },
        Shape::List { of: &ITEM, least: 1, most: usize::MAX },
    ]), "a text, or the items of the conversation so far"),
    optional("instructions", Shape::TEXT, "standing instructions"),
    optional("max_output_tokens", Shape::at_least(1), "tokens of an answer at most, reasoning included; the context's end is a limit in any case"),
    optional("text", Shape::Object(&[
        optional("format", format::FLAT_FORMAT, "the form that the answer must have"),
    ]), "how the text is to be"),
    optional("include", Shape::list(&Shape::TEXT), "`message.output_text.logprobs` gives the log-probability of each token; the others name what is not here"),
    optional("top_logprobs", Shape::between(0, MOST_ALTERNATIVES), "log-probabilities, with so many alternatives for each token"),
    optional("metadata", Shape::AnyObject, "given back with the response"),
    optional("store", Shape::Flag, "accepted; nothing is stored"),
    optional("previous_response_id", STORED, "not possible: nothing is stored here"),
    optional("conversation", STORED, "not possible: nothing is stored here"),
];

/// What was asked, checked.
#[derive(Debug)]
pub(super) struct ResponseRequest {
    pub(super) common: Common,
    chat: Vec<Message>,
    tools: Option<Tools>,
    format: Option<Format>,
    max_tokens: Option<u32>,
    logprobs: Option<u32>,
    echo: Echo,
}

/// What the response gives back of its request.
#[derive(Debug)]
pub(super) struct Echo {
    pub(super) instructions: Option<String>,
    pub(super) tools: Value,
    pub(super) tool_choice: Value,
    pub(super) parallel: bool,
    pub(super) format: Value,
    pub(super) metadata: Value,
}

impl Asked for ResponseRequest {
    fn model(&self) -> Option<&str> {
        self.common.model.as_deref()
    }
}

impl ResponseRequest {
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut body = Body::parse(body, TABLE)?;
        let text = body.object("text");
        let asked_format = text.and_then(|mut text| text.any("format"));
        let format = asked_format.clone();
        let instructions = body.text("instructions");
        let or = |value: Option<Value>, other: Value| value.unwrap_or(other);
        let echo = Echo {
            instructions: instructions.clone(),
            tools: or(body.peek("tools"), Value::Array(Vec::new())),
            tool_choice: or(body.peek("tool_choice"), "auto".into()),
            parallel: body
                .peek("parallel_tool_calls")
                .is_none_or(|parallel| parallel == true),
            format: or(asked_format, serde_json::json!({"type": "text"})),
            metadata: or(body.any("metadata"), serde_json::json!({})),
        };
        let included = body.texts("include");
        let included = included
            .iter()
            .any(|what| what == "message.output_text.logprobs");
        let top_logprobs = body.count("top_logprobs");
        let mut chat = Vec::new();
        chat.extend(instructions.map(|text| Message::new(Role::System, text)));
        match body.any("input") {
            Some(Value::Array(items)) => {
                for item in items {
                    add(&mut chat, Body::of(item));
                }
            }
            input => chat.push(Message::new(Role::User, messages::said(input))),
        }
        Ok(Self {
            common: Common::take(&mut body),
            tools: tools::take(&mut body)?,
            format: format.map(Body::of).and_then(format::of_format),
            max_tokens: body.count("max_output_tokens"),
            logprobs: top_logprobs.or(included.then_some(0)),
            chat,
            echo,
        })
    }

    pub(super) fn into_engine(self, model: &SamplingDefaults, client: &str) -> (Request, Echo) {
        let request = Request {
            max_tokens: self.max_tokens,
            logprobs: self.logprobs,
            format: self.format,
            tools: self.tools,
            ..self
                .common
                .request(model, client, Prompt::Messages(self.chat))
        };
        (request, self.echo)
    }
}

/// Adds an item to a chat. Calls belong to the turn of the model before them. Reasoning is not told again: templates of models that
/// think leave that of earlier turns out.
fn add(chat: &mut Vec<Message>, mut item: Body) {
    match item.text("type").as_deref() {
        Some("reasoning") => {}
        Some("function_call") => {
            let call = ToolCall {
                id: item.text("call_id").unwrap_or_default(),
                name: item.text("name").unwrap_or_default(),
                arguments: messages::arguments(item.text("arguments")),
            };
            match chat.last_mut() {
                Some(last) if last.role == Role::Assistant => last.tool_calls.push(call),
                _ => chat.push(Message {
                    tool_calls: vec![call],
                    ..Message::new(Role::Assistant, "")
                }),
            }
        }
        Some("function_call_output") => chat.push(Message {
            tool_call_id: item.text("call_id"),
            ..Message::new(Role::Tool, messages::said(item.any("output")))
        }),
        _ => {
            let role = match item.text("role").as_deref() {
                Some("assistant") => Role::Assistant,
                Some("system" | "developer") => Role::System,
                _ => Role::User,
            };
            chat.push(Message::new(role, messages::said(item.any("content"))));
        }
    }
}
