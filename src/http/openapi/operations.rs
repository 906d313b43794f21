//! What each endpoint takes and gives.

use super::super::endpoints::Endpoint;
use super::super::schema::{self, Field, Table};
use super::super::{openai, phone};
use super::{JSON, openai as shapes, phone as phone_shapes};
use serde_json::{Value, json};

const SSE: &str = "text/event-stream";
const PLAIN: &str = "text/plain";

/// One endpoint.
pub(super) struct Operation {
    pub(super) request: Option<Value>,
    /// Status, content type and schema of what is no error.
    pub(super) answers: Vec<(u16, &'static str, Value)>,
    /// Whether it needs no key.
    pub(super) is_free: bool,
    /// Whether it tells of its place in the queue.
    pub(super) waits: bool,
    uses: Uses,
}

/// What an endpoint does, which decides what can go wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Uses {
    /// Tells something that it has.
    Nothing,
    /// Looks at models on the disk.
    Disk,
    /// Reads a body, and writes to the disk.
    Downloads,
    /// Reads a body, and asks a model.
    Model,
    /// Does nothing: it does not exist here.
    Absent,
}

impl Operation {
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        if !endpoint.exists {
            return Self::new(Uses::Absent, Vec::new());
        }
        match (endpoint.method, endpoint.path) {
            ("POST", phone::text::PATH) => Self::streamed(
                with(
                    table(&[phone::text::FIELDS]),
                    [phone_shapes::says_something()],
                ),
                phone_shapes::answer(),
                &[SSE, "application/x-ndjson", PLAIN],
            ),
            ("POST", phone::text::TEST_PATH) => Self {
                waits: true,
                ..Self::json(Uses::Model, phone_shapes::tested())
                    .takes(fields(phone::text::TEST_FIELDS))
            },
            ("POST", path) if openai::speaks(path) => Self::of_openai(path),
            ("GET", openai::models::PATH) => Self::json(Uses::Disk, shapes::models()),
            ("GET", openai::models::ONE_PATH) => Self::json(Uses::Disk, shapes::model()),
            ("GET", "/livez") => Self::free(&[200]),
            ("GET", "/readyz") => Self::free(&[200, 503]),
            ("GET", "/metrics") => Self::new(
                Uses::Nothing,
                vec![(
                    200,
                    "application/openmetrics-text",
                    json!({"type": "string"}),
                )],
            ),
            ("GET", "/ai/models/loading-status") => {
                let mut operation = Self::json(Uses::Disk, phone_shapes::loading());
                operation.answers.push((200, SSE, stream_of(SSE)));
                operation
            }
            ("GET", "/health") => Self::new(
                Uses::Nothing,
                vec![
                    (200, JSON, phone_shapes::health()),
                    (503, JSON, phone_shapes::health()),
                ],
            ),
            ("POST", "/ai/models/download") => Self::json(Uses::Downloads, phone_shapes::started())
                .takes(fields(phone::models::download::FIELDS)),
            ("POST", "/ai/text/upload-model-api") => {
                Self::json(Uses::Downloads, phone_shapes::started())
                    .takes(fields(phone::models::upload::FIELDS))
            }
            (_, path) => {
                let uses = if path.starts_with("/ai/") {
                    Uses::Disk
                } else {
                    Uses::Nothing
                };
                Self::json(uses, phone_shapes::shown(path))
            }
        }
    }

    fn of_openai(path: &str) -> Self {
        let asks = |answer, request| Self::json(Uses::Model, answer).takes(request);
        match path {
            openai::chat::PATH => Self::streamed(
                with(
                    table(openai::chat::TABLE),
                    [
                        shapes::alternatives_need_logprobs(),
                        shapes::choices_need_tools(),
                    ],
                ),
                shapes::chat(),
                &[SSE],
            ),
            openai::completions::PATH => Self::streamed(
                with(
                    table(openai::completions::TABLE),
                    [shapes::nothing_needs_echo()],
                ),
                shapes::completion(),
                &[SSE],
            ),
            openai::responses::PATH => Self::streamed(
                with(
                    table(openai::responses::TABLE),
                    [shapes::choices_need_tools()],
                ),
                shapes::response(),
                &[SSE],
            ),
            openai::embeddings::PATH => {
                asks(shapes::embeddings(), table(openai::embeddings::TABLE))
            }
            openai::tokens::TOKENIZE => {
                asks(shapes::tokens(), table(openai::tokens::TOKENIZE_TABLE))
            }
            openai::tokens::DETOKENIZE => asks(
                shapes::one_text("content"),
                table(openai::tokens::DETOKENIZE_TABLE),
            ),
            _ => asks(
                shapes::one_text("prompt"),
                with(
                    table(openai::tokens::APPLY_TEMPLATE_TABLE),
                    [shapes::choices_need_tools()],
                ),
            ),
        }
    }

    fn new(uses: Uses, answers: Vec<(u16, &'static str, Value)>) -> Self {
        Self {
            request: None,
            answers,
            is_free: false,
            waits: false,
            uses,
        }
    }

    fn json(uses: Uses, schema: Value) -> Self {
        Self::new(uses, vec![(200, JSON, schema)])
    }

    fn takes(mut self, request: Value) -> Self {
        self.request = Some(request);
        self
    }

    /// Answers with an object, or as it is made.
    fn streamed(request: Value, answer: Value, kinds: &[&'static str]) -> Self {
        let mut operation = Self::json(Uses::Model, answer).takes(request);
        let streams = kinds.iter().map(|kind| (200, *kind, stream_of(kind)));
        operation.answers.extend(streams);
        operation.waits = true;
        operation
    }

    fn free(statuses: &[u16]) -> Self {
        let text = |status: &u16| (*status, PLAIN, json!({"type": "string"}));
        Self {
            is_free: true,
            ..Self::new(Uses::Nothing, statuses.iter().map(text).collect())
        }
    }

    /// Statuses of errors.
    pub(super) fn errors(&self) -> Vec<u16> {
        // Of the header `Host`, of keys, of who asks from where, of the router, and of our own faults.
        let mut errors = vec![400, 401, 403, 405, 500];
        if self.is_free {
            errors = vec![405];
        }
        errors.extend_from_slice(match self.uses {
            Uses::Nothing => &[],
            Uses::Disk => &[404, 501],
            Uses::Downloads => &[404, 408, 413, 429, 501],
            Uses::Model => &[404, 408, 413, 422, 429, 502, 503, 504],
            Uses::Absent => &[501],
        });
        errors.sort_unstable();
        errors
    }
}

fn table(table: Table) -> Value {
    schema::object(table.iter().copied().flatten())
}

fn fields(fields: &[Field]) -> Value {
    schema::object(fields.iter())
}

/// A schema with rules between its fields.
fn with<const N: usize>(mut schema: Value, rules: [Value; N]) -> Value {
    schema["allOf"] = rules.into_iter().collect();
    schema
}

/// The schema of a stream: of each event, as generators of clients and tests read a document of this version; of the whole text
/// otherwise.
fn stream_of(kind: &str) -> Value {
    if kind != SSE {
        return json!({"type": "string"});
    }
    json!({
        "type": "object",
        "properties": {
            "event": {"type": "string"},
            "data": {"type": "string", "description": "JSON, or [DONE] at the end of a stream"},
        },
        "required": ["data"],
    })
}
