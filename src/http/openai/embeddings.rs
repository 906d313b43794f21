//! `POST /v1/embeddings`: texts or tokens in, a vector of length 1 for each out.

use super::sampling::{DEADLINE, deadline};
use super::{Asked, accept, prompts};
use crate::engine::{Answer, Embedded, EngineError, Prompt, Question};
use crate::http::app::App;
use crate::http::caller::Caller;
use crate::http::error::ApiError;
use crate::http::json;
use crate::http::schema::{self, Field, Shape, Table, needed, optional};
use crate::http::tracked::Tracker;
use crate::pool::Lease;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Serialize;

/// Where it is.
pub(in crate::http) const PATH: &str = "/v1/embeddings";

/// Every field.
pub(in crate::http) const TABLE: Table = &[FIELDS];

#[rustfmt::skip] // A table reads best as one.
const FIELDS: &[Field] = &[
    needed("input", prompts::INPUTS, "a text, a list of texts, token ids, or a list of those"),
    optional("model", Shape::TEXT, "one of the names in /v1/models, or an alias; the default model if absent"),
    optional("encoding_format", Shape::Choice(&["float", "base64"]), "base64 holds little-endian numbers of 32 bits"),
    optional("dimensions", Shape::at_least(1), "the model's own number, if any"),
    optional("user", Shape::TEXT, "accepted, and not looked at"),
    DEADLINE,
];

struct EmbeddingRequest {
    model: Option<String>,
    inputs: Vec<Prompt>,
    base64: bool,
    dimensions: Option<u32>,
    deadline_ms: Option<u64>,
}

impl Asked for EmbeddingRequest {
    fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }
}

impl EmbeddingRequest {
    fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut body = schema::Body::parse(body, TABLE)?;
        Ok(Self {
            model: body.text("model"),
            inputs: prompts::take(&mut body, "input"),
            base64: body
                .text("encoding_format")
                .is_some_and(|format| format == "base64"),
            dimensions: body.count("dimensions"),
            deadline_ms: deadline(&mut body),
        })
    }
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Item>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

/// The handler.
pub(in crate::http) async fn answer(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut tracker = Tracker::of(&app, PATH, caller);
    let body = (&headers, body);
    let (asked, lease) = accept(&app, &mut tracker, body, EmbeddingRequest::parse).await?;
    let answered = embed(&mut tracker, &lease, asked).await;
    answered.inspect_err(|error| tracker.failed(error))
}

async fn embed(
    tracker: &mut Tracker,
    lease: &Lease,
    asked: EmbeddingRequest,
) -> Result<Response, ApiError> {
    let model = &lease.facts().model.name;
    tracker.goes_to(model, 1);
    // Known from the header of most files; else from the answer.
    let width = lease.facts().info.embedding_width;
    check_width(asked.dimensions, width)?;
    let question = Question::Embed {
        client: tracker.client().to_owned(),
        inputs: asked.inputs,
        deadline_ms: asked.deadline_ms,
    };
    let embedded = match lease.engine().ask_fairly(tracker.client(), question).await {
        Ok(Answer::Embeddings(embedded)) => embedded,
        Ok(_) => return Err(unanswered()),
        Err(error) => return Err(ApiError::from(&error)),
    };
    let width = embedded.vectors.first().map_or(0, Vec::len);
    check_width(asked.dimensions, u32::try_from(width).unwrap_or(0))?;
    tracker.answered(embedded.prompt_tokens);
    let list = list(model, embedded, asked.base64);
    Ok(json::compact(StatusCode::OK, &list))
}

fn check_width(asked: Option<u32>, width: u32) -> Result<(), ApiError> {
    match asked {
        Some(asked) if width != 0 && asked != width => {
            let error = format!("`dimensions` must be {width}, as the model has it");
            Err(ApiError::bad_request(error)
                .details(format!("it is {asked}"))
                .param("dimensions"))
        }
        _ => Ok(()),
    }
}

fn list(model: &str, embedded: Embedded, base64: bool) -> List<'_> {
    let vectors = embedded.vectors.into_iter().enumerate();
    let data = vectors.map(|(index, numbers)| Item {
        object: "embedding",
        index,
        embedding: if base64 {
            let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            Vector::Base64(self::base64(&bytes))
        } else {
            Vector::Numbers(numbers)
        },
    });
    List {
        object: "list",
        data: data.collect(),
        model,
        usage: Usage {
            prompt_tokens: embedded.prompt_tokens,
            total_tokens: embedded.prompt_tokens,
        },
    }
}

/// The engine answers each question in its own kind; this is for a day on which it breaks its word.
pub(super) fn unanswered() -> ApiError {
    ApiError::from(&EngineError::Internal(
        "a question was answered in another kind".into(),
    ))
}

/// RFC 4648, section 4, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) as usize & 63;
            let is_padding = digit > group.len();
            text.push(if is_padding {
                '='
            } else {
                DIGITS[index].into()
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn the_rfcs_examples() {
        let table = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in table {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }
}
