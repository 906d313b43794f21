//! Answers in the phone API's shapes.

use super::openai::timings;
use super::shapes::{anything, flag, is, list, number, one_of, or_null, record, text, whole};
use serde_json::{Value, json};

pub(super) fn error() -> Value {
    record(
        [
            ("error", text()),
            ("code", text()),
            ("details", or_null(text())),
        ],
        [("required", list(text()))],
    )
}

/// A rule of `/ai/text`: one of these says what to answer.
pub(super) fn says_something() -> Value {
    let says = |name: &str| json!({"required": [name], "properties": {name: {"type": "string", "minLength": 1}}});
    let turns = json!({"required": ["messages"], "properties": {"messages": {"type": "array", "minItems": 1}}});
    json!({"anyOf": [says("text"), says("prompt"), turns]})
}

fn metadata() -> Value {
    record(
        [
            ("model", text()),
            ("inferenceTime", whole()),
            ("tokenCount", whole()),
            ("temperature", number()),
            ("topK", whole()),
            ("topP", number()),
            ("backend", text()),
            ("isMultimodal", flag()),
            ("promptTokens", whole()),
            ("cachedTokens", whole()),
            ("maxTokens", or_null(whole())),
            ("seed", whole()),
            (
                "finishReason",
                one_of(&["stop", "length", "deadline", "tool_calls"]),
            ),
        ],
        [],
    )
}

fn answer_fields() -> [(&'static str, Value); 7] {
    [
        ("response", text()),
        ("model", text()),
        ("thinking", or_null(text())),
        ("license", or_null(text())),
        ("metadata", metadata()),
        ("image", json!({"type": "null"})),
        ("timings", timings()),
    ]
}

/// Of `/ai/text`.
pub(super) fn answer() -> Value {
    record(answer_fields(), [])
}

/// Of `/ai/models/test`.
pub(super) fn tested() -> Value {
    let more = record(
        [
            ("success", flag()),
            ("message", text()),
            ("modelName", text()),
        ],
        [],
    );
    json!({"allOf": [more, answer()]})
}

/// Of what begins a download.
pub(super) fn started() -> Value {
    record(
        [
            ("success", flag()),
            ("message", text()),
            ("modelName", text()),
            ("status", one_of(&["download_started", "already_available"])),
            ("downloadUrl", or_null(text())),
        ],
        [],
    )
}

pub(super) fn health() -> Value {
    let services = record([("server", text()), ("ai", text())], []);
    record(
        [
            ("status", one_of(&["healthy", "unhealthy"])),
            ("services", services),
        ],
        [],
    )
}

pub(super) fn loading() -> Value {
    record([("isLoading", flag()), ("downloads", list(anything()))], [])
}

/// What other paths show.
pub(super) fn shown(path: &str) -> Value {
    match path {
        "/" => record(
            [
                ("server", text()),
                ("version", text()),
                ("message", text()),
                ("documentation", text()),
                ("available_endpoints", list(text())),
            ],
            [],
        ),
        "/help" => record(
            [
                ("server", text()),
                ("version", text()),
                ("base_url", text()),
                ("endpoints", anything()),
                ("not_implemented", anything()),
                ("common_errors", anything()),
                ("error_shape", anything()),
            ],
            [],
        ),
        "/status" => record(
            [
                ("status", is("running")),
                ("timestamp", whole()),
                ("server", text()),
                ("version", text()),
                ("ready", flag()),
                ("draining", flag()),
                ("ai", anything()),
                ("queue", anything()),
                ("worker", or_null(anything())),
                ("machine", anything()),
                ("models", list(anything())),
                ("uptimeSeconds", whole()),
            ],
            [],
        ),
        "/capabilities" => record(
            [
                ("server", text()),
                ("version", text()),
                ("capabilities", anything()),
                ("features", anything()),
                ("port", or_null(whole())),
                ("timestamp", whole()),
            ],
            [],
        ),
        path if path.starts_with("/ai/models") => models(path),
        // The document itself.
        _ => record(
            [
                ("openapi", text()),
                ("info", anything()),
                ("paths", anything()),
            ],
            [],
        ),
    }
}

fn models(path: &str) -> Value {
    let done = || [("success", flag()), ("message", text())];
    let [success, message] = done();
    match path {
        "/ai/models" => record([("models", list(anything()))], []),
        "/ai/models/status" => record(
            [
                ("totalModels", whole()),
                ("downloadedModels", whole()),
                ("loadedModels", whole()),
                ("totalDownloadSize", whole()),
                ("lastLoadedModel", or_null(text())),
                ("modelsDirectory", text()),
                ("availableModels", list(anything())),
                ("statistics", anything()),
            ],
            [],
        ),
        "/ai/models/diagnostics" => record(
            [
                ("modelsDirectory", text()),
                ("storagePermission", flag()),
                ("freeBytes", or_null(whole())),
                ("downloadedModels", whole()),
                ("partialDownloads", list(anything())),
                ("problems", list(text())),
                ("healthy", flag()),
            ],
            [],
        ),
        "/ai/models/cleanup" => record(
            [
                success,
                message,
                ("cleanedModels", whole()),
                ("freedBytes", whole()),
            ],
            [],
        ),
        "/ai/models/{name}" => record(
            [success, message, ("modelName", text())],
            [("freedBytes", whole())],
        ),
        _ => record(
            [
                ("modelName", text()),
                ("downloadPath", text()),
                ("fileSize", whole()),
                ("isLoaded", flag()),
                ("downloadStatus", one_of(&["complete", "damaged"])),
                ("ageInDays", or_null(whole())),
            ],
            [],
        ),
    }
}
