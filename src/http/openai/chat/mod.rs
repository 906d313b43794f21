//! `POST /v1/chat/completions`: a chat in, the model's turn out, whole or as it is made.

mod request;
mod stream;
mod whole;

use super::collect::collect;
use super::{accept, sse};
use crate::engine::{Request, ToolChoice};
use crate::http::app::App;
use crate::http::caller::Caller;
use crate::http::error::ApiError;
use crate::http::group::Group;
use crate::http::json;
use crate::http::tracked::Tracker;
use crate::models::SamplingDefaults;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use request::ChatRequest;

pub(in crate::http) use request::TABLE;

/// Where it is.
pub(in crate::http) const PATH: &str = "/v1/chat/completions";

/// The handler.
pub(in crate::http) async fn answer(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut tracker = Tracker::of(&app, PATH, caller);
    let body = (&headers, body);
    let (asked, lease) = accept(&app, &mut tracker, body, ChatRequest::parse).await?;
    let frame = Frame::new(&lease.facts().model.name, &asked);
    let stream = asked.common.stream;
    let requests = asked.into_engine(&lease.facts().sampling, tracker.client());
    let choices = requests.len();
    let group = Group::submit(tracker, lease, requests)?;
    if let Some(streamed) = stream {
        let script = stream::Chunks::new(frame, choices, streamed.include_usage);
        return sse::start(group, choices, script, app.settings().keep_alive).await;
    }
    let answers = collect(group, choices).await?;
    Ok(json::compact(
        StatusCode::OK,
        &whole::Completion::new(&frame, &answers),
    ))
}

/// What a body asks of a model.
pub(in crate::http) fn read(
    body: &[u8],
    model: &SamplingDefaults,
) -> Result<Vec<Request>, ApiError> {
    Ok(ChatRequest::parse(body)?.into_engine(model, ""))
}

/// What stands around an answer and is known before it begins.
#[derive(Debug)]
struct Frame {
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
    /// Whether the request names the tool to call.
    named_call: bool,
}

impl Frame {
    fn new(model: &str, asked: &ChatRequest) -> Self {
        let choice = asked.tools.as_ref().map(|tools| &tools.choice);
        Self {
            id: super::new_id("chatcmpl-"),
            created: super::now(),
            model: model.to_owned(),
            logprobs: asked.logprobs.is_some(),
            named_call: matches!(choice, Some(ToolChoice::Named(_))),
        }
    }
}
