//! `POST /v1/responses`: items in, items out (reasoning, a message, calls of tools), whole or as events.
//!
//! Nothing is stored: each request brings the whole conversation.

mod building;
mod item;
mod request;

use super::sse::{Out, Script};
use super::{accept, sse};
use crate::engine::{Event, Request};
use crate::http::app::App;
use crate::http::caller::Caller;
use crate::http::error::ApiError;
use crate::http::group::{Group, ended_early};
use crate::http::json;
use crate::http::tracked::Tracker;
use crate::models::SamplingDefaults;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use building::Building;
use request::ResponseRequest;

pub(in crate::http) use request::TABLE;

/// Where it is.
pub(in crate::http) const PATH: &str = "/v1/responses";

/// The handler.
pub(in crate::http) async fn answer(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut tracker = Tracker::of(&app, PATH, caller);
    let body = (&headers, body);
    let (asked, lease) = accept(&app, &mut tracker, body, ResponseRequest::parse).await?;
    let stream = asked.common.stream;
    let (request, echo) = asked.into_engine(&lease.facts().sampling, tracker.client());
    let building = Building::new(&lease.facts().model.name, echo, &request);
    let mut group = Group::submit(tracker, lease, vec![request])?;
    if stream.is_some() {
        return sse::start(group, 1, Events(building), app.settings().keep_alive).await;
    }
    let mut building = building;
    while let Some((_, event)) = group.next().await {
        if let Event::Failed(error) = event {
            return Err(ApiError::from(&error));
        }
        building.event(event, &mut |_, _| {});
    }
    if !building.is_over() {
        return Err(ended_early());
    }
    Ok(json::compact(StatusCode::OK, &building.response()))
}

/// What a body asks of a model.
pub(in crate::http) fn read(
    body: &[u8],
    model: &SamplingDefaults,
) -> Result<Vec<Request>, ApiError> {
    let (request, _) = ResponseRequest::parse(body)?.into_engine(model, "");
    Ok(vec![request])
}

/// Writes the events of a stream.
struct Events(Building);

impl Script for Events {
    fn begin(&mut self, out: &mut Out) {
        self.0.begin(&mut |name, event| out.named(name, &event));
    }

    fn event(&mut self, _: usize, event: Event, out: &mut Out) {
        self.0
            .event(event, &mut |name, event| out.named(name, &event));
    }

    fn end(&mut self, _: &mut Out) {}

    fn fail(&mut self, error: &ApiError, out: &mut Out) {
        self.0
            .fail(error, &mut |name, event| out.named(name, &event));
    }
}
