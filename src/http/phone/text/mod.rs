//! `POST /ai/text`: a prompt in, an answer out, whole or as it is made.
//!
//! Until the engine has accepted a request, what goes wrong has a status of its own. After that a stream's head is out,
//! and an error is the stream's last object.

mod answer;
mod request;
mod stream;

use super::super::app::App;
use super::super::caller::Caller;
use super::super::error::ApiError;
use super::super::negotiate;
use super::super::schema::{Field, Shape, needed, optional};
use super::super::tracked::{Tracked, Tracker};
use super::super::{body, json};
use crate::engine::{EngineError, Event, Outcome, Request};
use crate::models::SamplingDefaults;
use crate::pool::Lease;
use answer::{Answer, Frame};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};

/// Where it is.
pub(in crate::http) const PATH: &str = "/ai/text";

/// What `/help` says about it.
pub(in crate::http) const DESCRIPTION: &str = "answers a prompt with the model: one JSON object, or a stream with \
     \"stream\": true or Accept: text/event-stream, application/x-ndjson or text/plain";

/// The fields of a request.
#[rustfmt::skip] // A table reads best as one.
pub(in crate::http) const FIELDS: &[Field] = &[
    optional("text", Shape::TEXT, "what to answer; `prompt` is another name (`text` wins unless it is empty)"),
    optional("prompt", Shape::TEXT, "another name of `text`"),
    optional("model", Shape::TEXT, "one of the names in /ai/models; the served model if absent"),
    optional("temperature", Shape::Number { least: 0.0, most: 100.0 }, "0 to 100; 0 always takes the likeliest token"),
    optional("topK", Shape::at_least(0), "whole number; 0 keeps all tokens"),
    optional("topP", Shape::Number { least: 0.0, most: 1.0 }, "0 to 1; 1 keeps all tokens"),
    optional("maxTokens", Shape::at_least(1), "at least 1; 1024 if absent; the context's end is a limit in any case"),
    optional("stream", Shape::Flag, "true streams, false never does, whatever Accept says"),
    optional("format", Shape::Either(&[Shape::Choice(&["json"]), Shape::AnyObject]), "\"json\" for a JSON object as the answer, or a JSON Schema that it follows"),
    optional("system", Shape::TEXT, "standing instructions"),
    optional("messages", Shape::list(&TURN), "earlier turns: a list of {role: system|user|assistant, content}; `text` is then the latest turn, or absent if the list ends with it"),
    optional("minP", Shape::Number { least: 0.0, most: 1.0 }, "0 to 1; 0 is off"),
    optional("seed", Shape::at_least(-1), "whole number; absent or -1 for a random one, which metadata tells"),
    // The engine divides by it.
    optional("repeatPenalty", Shape::Number { least: 0.01, most: 100.0 }, "0.01 to 100; 1 is off"),
    optional("frequencyPenalty", Shape::Number { least: -100.0, most: 100.0 }, "-100 to 100; 0 is off"),
    optional("presencePenalty", Shape::Number { least: -100.0, most: 100.0 }, "-100 to 100; 0 is off"),
    optional("repeatLastN", Shape::at_least(0), "tokens that the penalties look at, up to 65536; 64 if absent"),
    optional("stop", Shape::Either(&[STOP, Shape::List { of: &STOP, least: 0, most: 16 }]), "a string or up to 16, each of 1 to 256 characters; the answer ends before the first of them"),
    optional("ignoreEos", Shape::Flag, "true goes on until maxTokens (for benchmarks)"),
    optional("cachePrompt", Shape::Flag, "false decodes the whole prompt anew"),
    optional("deadlineMs", Shape::at_least(1), "milliseconds after which the answer ends as it is, up to a day"),
];

const STOP: Shape = Shape::Text {
    least: 1,
    most: 256,
};

const TURN: Shape = Shape::Object(&[
    needed(
        "role",
        Shape::Choice(&["system", "user", "assistant"]),
        "who speaks",
    ),
    needed("content", Shape::TEXT, "what was said"),
]);

/// Where a model is tried.
pub(in crate::http) const TEST_PATH: &str = "/ai/models/test";

/// The fields of such a request.
pub(in crate::http) const TEST_FIELDS: &[Field; 2] = &[
    needed("modelName", super::models::WORDS, "the model to try"),
    needed("prompt", super::models::WORDS, "what to answer"),
];

/// Tokens of such an answer at most.
const TEST_TOKENS: u32 = 64;

/// The handler.
pub(in crate::http) async fn answer(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut tracker = Tracker::of(&app, PATH, caller);
    let prepared = match prepare(&app, &mut tracker, &headers, body).await {
        Ok(prepared) => prepared,
        Err(error) => {
            tracker.failed(&error);
            return error.into_response();
        }
    };
    let Prepared {
        request,
        lease,
        frame,
        shape,
    } = prepared;
    let generation = match Tracked::submit(tracker, lease, request) {
        Ok(generation) => generation,
        Err(error) => return error.into_response(),
    };
    let answered = match shape {
        negotiate::Shape::Json => whole(generation, frame).await,
        negotiate::Shape::Stream(format) => {
            stream::start(generation, frame, format, app.settings().keep_alive).await
        }
    };
    answered.unwrap_or_else(IntoResponse::into_response)
}

/// `POST /ai/models/test`: whether a model answers at all. `{modelName, prompt}` → an answer as `/ai/text` gives it, with
/// `success`, `modelName` and `message`.
pub(in crate::http) async fn test(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut tracker = Tracker::of(&app, TEST_PATH, caller);
    let tried = async {
        let [name, prompt] = super::models::texts(&app, &headers, body, TEST_FIELDS).await?;
        let lease = app.lease(Some(&name)).await?;
        let asked = request::TextRequest::test(prompt, TEST_TOKENS);
        Ok((
            asked.into_engine(&lease.facts().sampling, tracker.client()),
            lease,
        ))
    };
    let (request, lease) = tried.await.inspect_err(|error| tracker.failed(error))?;
    let frame = Frame::new(&lease, &request);
    let generation = Tracked::submit(tracker, lease, request)?;
    let (answer, outcome) = collect(generation).await?;
    Ok(json::pretty(
        StatusCode::OK,
        &frame.tested(&answer, &outcome),
    ))
}

/// A request that can be submitted, and what its answer will need.
struct Prepared {
    request: Request,
    lease: Lease,
    frame: Frame,
    shape: negotiate::Shape,
}

async fn prepare(
    app: &App,
    tracker: &mut Tracker,
    headers: &HeaderMap,
    body: Body,
) -> Result<Prepared, ApiError> {
    let body::Received { bytes, memory } = body::read(app, headers, body).await?;
    tracker.hold(memory);
    let asked = request::parse(bytes).await?;
    let lease = app.lease(asked.model.as_deref()).await?;
    let shape = negotiate::shape(asked.stream, headers);
    let request = asked.into_engine(&lease.facts().sampling, tracker.client());
    let frame = Frame::new(&lease, &request);
    Ok(Prepared {
        request,
        lease,
        frame,
        shape,
    })
}

/// What a body asks of a model.
pub(in crate::http) fn read(
    body: &[u8],
    model: &SamplingDefaults,
) -> Result<Vec<Request>, ApiError> {
    let asked = request::TextRequest::parse(body)?;
    Ok(vec![asked.into_engine(model, "")])
}

/// Collects the whole answer. When the client leaves, this future is dropped, and the generation with it.
async fn collect(mut generation: Tracked) -> Result<(Answer, Outcome), ApiError> {
    let mut answer = Answer::default();
    while let Some(event) = generation.next().await {
        match event {
            Event::Accepted { .. }
            | Event::Started { .. }
            | Event::ToolCall { .. }
            | Event::Answered(_) => {}
            Event::Text { text, thinking, .. } => answer.push(&text, thinking),
            Event::Finished(outcome) => return Ok((answer, outcome)),
            Event::Failed(error) => return Err(ApiError::from(&error)),
        }
    }
    Err(ended_early())
}

async fn whole(generation: Tracked, frame: Frame) -> Result<Response, ApiError> {
    let (answer, outcome) = collect(generation).await?;
    let whole = frame.whole(&answer, &outcome);
    Ok(json::compact(StatusCode::OK, &whole))
}

/// The engine promises a terminal event; this is for a day on which it breaks its word.
fn ended_early() -> ApiError {
    ApiError::from(&EngineError::Internal(
        "the events ended without a terminal one".into(),
    ))
}
