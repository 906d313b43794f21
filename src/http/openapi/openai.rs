//! Answers in OpenAI's shapes.

use super::shapes::{anything, flag, is, list, number, one_of, or_null, record, text, whole};
use serde_json::{Value, json};

pub(super) fn error() -> Value {
    let error = record(
        [
            ("message", text()),
            ("type", text()),
            ("param", or_null(text())),
            ("code", or_null(text())),
        ],
        [],
    );
    record([("error", error)], [])
}

/// A rule of chats: `top_logprobs` needs `logprobs`.
pub(super) fn alternatives_need_logprobs() -> Value {
    json!({
        "if": {"properties": {"top_logprobs": {"type": "integer"}}, "required": ["top_logprobs"]},
        "then": {"properties": {"logprobs": {"const": true}}, "required": ["logprobs"]},
    })
}

/// A rule of chats: a call that must be made needs something to call. (That a named tool is one of those given can't be said.)
pub(super) fn choices_need_tools() -> Value {
    let must = json!({"anyOf": [{"const": "required"}, {"type": "object"}]});
    json!({
        "if": {"properties": {"tool_choice": must}, "required": ["tool_choice"]},
        "then": {"properties": {"tools": {"type": "array", "minItems": 1}}, "required": ["tools"]},
    })
}

/// A rule of completions: no tokens are something to ask for with `echo` only.
pub(super) fn nothing_needs_echo() -> Value {
    json!({
        "if": {"properties": {"max_tokens": {"const": 0}}, "required": ["max_tokens"]},
        "then": {"properties": {"echo": {"const": true}}, "required": ["echo"]},
    })
}

fn usage() -> Value {
    record(
        [
            ("prompt_tokens", whole()),
            ("completion_tokens", whole()),
            ("total_tokens", whole()),
            (
                "prompt_tokens_details",
                record([("cached_tokens", whole())], []),
            ),
            (
                "completion_tokens_details",
                record([("reasoning_tokens", whole())], []),
            ),
        ],
        [],
    )
}

/// Where the time went, in the words of llama-server.
pub(super) fn timings() -> Value {
    record(
        [
            ("cache_n", whole()),
            ("prompt_n", whole()),
            ("prompt_ms", number()),
            ("prompt_per_token_ms", or_null(number())),
            ("prompt_per_second", or_null(number())),
            ("predicted_n", whole()),
            ("predicted_ms", number()),
            ("predicted_per_token_ms", or_null(number())),
            ("predicted_per_second", or_null(number())),
            ("draft_n", whole()),
            ("draft_n_accepted", whole()),
            ("queue_ms", number()),
            ("ttft_ms", number()),
        ],
        [],
    )
}

fn one_logprob() -> [(&'static str, Value); 3] {
    [
        ("token", text()),
        ("logprob", number()),
        ("bytes", or_null(list(whole()))),
    ]
}

pub(super) fn chat() -> Value {
    let [token, logprob, bytes] = one_logprob();
    let top = ("top_logprobs", list(record(one_logprob(), [])));
    let logprobs = record(
        [
            ("content", list(record([token, logprob, bytes, top], []))),
            ("refusal", json!({"type": "null"})),
        ],
        [],
    );
    let function = record([("name", text()), ("arguments", text())], []);
    let call = record(
        [
            ("id", text()),
            ("type", is("function")),
            ("function", function),
        ],
        [],
    );
    let message = record(
        [
            ("role", is("assistant")),
            ("content", or_null(text())),
            ("refusal", json!({"type": "null"})),
        ],
        [("reasoning_content", text()), ("tool_calls", list(call))],
    );
    let choice = record(
        [
            ("index", whole()),
            ("message", message),
            ("logprobs", or_null(logprobs)),
            ("finish_reason", one_of(&["stop", "length", "tool_calls"])),
        ],
        [],
    );
    answer("chat.completion", choice)
}

pub(super) fn completion() -> Value {
    let logprobs = record(
        [
            ("tokens", list(text())),
            ("token_logprobs", list(or_null(number()))),
            ("top_logprobs", or_null(list(or_null(anything())))),
            ("text_offset", list(whole())),
        ],
        [],
    );
    let choice = record(
        [
            ("text", text()),
            ("index", whole()),
            ("logprobs", or_null(logprobs)),
            ("finish_reason", one_of(&["stop", "length"])),
        ],
        [],
    );
    answer("text_completion", choice)
}

fn answer(object: &str, choice: Value) -> Value {
    record(
        [
            ("id", text()),
            ("object", is(object)),
            ("created", whole()),
            ("model", text()),
            ("choices", list(choice)),
            ("usage", usage()),
            ("system_fingerprint", text()),
            ("timings", timings()),
        ],
        [],
    )
}

pub(super) fn response() -> Value {
    let status = || one_of(&["completed", "incomplete"]);
    let item = |kind, more: Vec<(&str, Value)>| {
        let mut item = record(
            [("id", text()), ("type", is(kind)), ("status", status())],
            [],
        );
        for (name, schema) in more {
            item["properties"][name] = schema;
            if let Some(required) = item["required"].as_array_mut() {
                required.push(name.into());
            }
        }
        item
    };
    let items = [
        item(
            "reasoning",
            vec![("summary", list(anything())), ("content", list(anything()))],
        ),
        item(
            "message",
            vec![("role", is("assistant")), ("content", list(anything()))],
        ),
        item(
            "function_call",
            vec![("call_id", text()), ("name", text()), ("arguments", text())],
        ),
    ];
    let usage = record(
        [
            ("input_tokens", whole()),
            (
                "input_tokens_details",
                record([("cached_tokens", whole())], []),
            ),
            ("output_tokens", whole()),
            (
                "output_tokens_details",
                record([("reasoning_tokens", whole())], []),
            ),
            ("total_tokens", whole()),
        ],
        [],
    );
    record(
        [
            ("id", text()),
            ("object", is("response")),
            ("created_at", whole()),
            ("status", status()),
            ("error", json!({"type": "null"})),
            (
                "incomplete_details",
                or_null(record([("reason", text())], [])),
            ),
            ("instructions", or_null(text())),
            ("metadata", anything()),
            ("model", text()),
            ("output", list(json!({"anyOf": items}))),
            ("parallel_tool_calls", flag()),
            ("store", json!({"const": false})),
            ("temperature", number()),
            ("top_p", number()),
            ("tools", list(anything())),
            ("top_logprobs", whole()),
            ("usage", usage),
            ("timings", timings()),
        ],
        [],
    )
}

pub(super) fn model() -> Value {
    record(
        [
            ("id", text()),
            ("object", is("model")),
            ("created", whole()),
            ("owned_by", text()),
        ],
        [],
    )
}

pub(super) fn models() -> Value {
    record([("object", is("list")), ("data", list(model()))], [])
}

pub(super) fn embeddings() -> Value {
    let vector =
        json!({"anyOf": [list(number()), {"type": "string", "contentEncoding": "base64"}]});
    let item = record(
        [
            ("object", is("embedding")),
            ("index", whole()),
            ("embedding", vector),
        ],
        [],
    );
    let usage = record([("prompt_tokens", whole()), ("total_tokens", whole())], []);
    record(
        [
            ("object", is("list")),
            ("data", list(item)),
            ("model", text()),
            ("usage", usage),
        ],
        [],
    )
}

pub(super) fn tokens() -> Value {
    let piece = json!({"anyOf": [text(), list(whole())]});
    let token = record([("id", whole()), ("piece", piece)], []);
    record([("tokens", list(json!({"anyOf": [whole(), token]})))], [])
}

/// An object with one text.
pub(super) fn one_text(name: &str) -> Value {
    record([(name, text())], [])
}
