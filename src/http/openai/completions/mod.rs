//! `POST /v1/completions`: bare text or tokens in, what comes after them out, whole or as it is made.

mod answer;
mod request;

use super::collect::{Collected, collect, sum};
use super::error::Envelope;
use super::sse::{Out, Script};
use super::{accept, sse};
use crate::engine::{self, Event, Request};
use crate::http::app::App;
use crate::http::caller::Caller;
use crate::http::error::ApiError;
use crate::http::group::Group;
use crate::http::json;
use crate::http::tracked::Tracker;
use crate::models::SamplingDefaults;
use answer::{Frame, LegacyLogprobs, Position};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use request::CompletionRequest;

pub(in crate::http) use request::TABLE;

/// Where it is.
pub(in crate::http) const PATH: &str = "/v1/completions";

/// The handler.
pub(in crate::http) async fn answer(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut tracker = Tracker::of(&app, PATH, caller);
    let body = (&headers, body);
    let (asked, lease) = accept(&app, &mut tracker, body, CompletionRequest::parse).await?;
    let frame = Frame::new(&lease.facts().model.name, &asked);
    let stream = asked.common.stream;
    let requests = asked.into_engine(&lease.facts().sampling, tracker.client());
    let choices = requests.len();
    let group = Group::submit(tracker, lease, requests)?;
    if let Some(streamed) = stream {
        let script = Chunks {
            frame,
            include_usage: streamed.include_usage,
            usages: vec![engine::Usage::default(); choices],
            positions: vec![Position::default(); choices],
        };
        return sse::start(group, choices, script, app.settings().keep_alive).await;
    }
    let answers = collect(group, choices).await?;
    Ok(json::compact(StatusCode::OK, &whole(&frame, &answers)))
}

/// What a body asks of a model.
pub(in crate::http) fn read(
    body: &[u8],
    model: &SamplingDefaults,
) -> Result<Vec<Request>, ApiError> {
    Ok(CompletionRequest::parse(body)?.into_engine(model, ""))
}

fn whole<'a>(frame: &'a Frame, answers: &'a [Collected]) -> answer::Completion<'a> {
    let usages: Vec<_> = answers.iter().map(Collected::usage).collect();
    let choices = answers.iter().enumerate().map(|(index, answer)| {
        let logprobs = frame
            .logprobs
            .is_some()
            .then(|| LegacyLogprobs::new(frame, &answer.logprobs, &mut Position::default()));
        answer::Choice {
            text: &answer.text,
            index,
            logprobs,
            finish_reason: Some(answer.finish_reason(false)),
        }
    });
    let choices = choices.collect();
    frame.whole(choices, &sum(&usages, frame.n))
}

/// Writes the objects of a stream.
struct Chunks {
    frame: Frame,
    include_usage: bool,
    /// Of each choice, once it has ended.
    usages: Vec<engine::Usage>,
    /// How far each choice's text has come.
    positions: Vec<Position>,
}

impl Script for Chunks {
    fn begin(&mut self, _: &mut Out) {}

    fn event(&mut self, choice: usize, event: Event, out: &mut Out) {
        match event {
            // A model that continues bare text marks no reasoning; where it does, it is text like all other.
            Event::Text { text, logprobs, .. } => {
                let position = &mut self.positions[choice];
                let logprobs = (self.frame.logprobs.is_some() && !logprobs.is_empty())
                    .then(|| LegacyLogprobs::new(&self.frame, &logprobs, position));
                let piece = answer::Choice {
                    text: &text,
                    index: choice,
                    logprobs,
                    finish_reason: None,
                };
                out.data(&self.frame.chunk(vec![piece], self.include_usage));
            }
            Event::Finished(outcome) => {
                let end = answer::Choice {
                    text: "",
                    index: choice,
                    logprobs: None,
                    finish_reason: Some(super::collect::finish_reason(outcome.reason, false)),
                };
                out.data(
                    &self
                        .frame
                        .last(vec![end], self.include_usage, &outcome.usage),
                );
                self.usages[choice] = outcome.usage;
            }
            _ => {}
        }
    }

    fn end(&mut self, out: &mut Out) {
        if self.include_usage {
            out.data(&self.frame.counted(&sum(&self.usages, self.frame.n)));
        }
        out.done();
    }

    fn fail(&mut self, error: &ApiError, out: &mut Out) {
        out.data(&Envelope::from(error));
    }
}
