//! Answers as server-sent events: the engine's events in, a resource's objects out, keep-alives while nothing else flows.
//!
//! The body is pulled: while the client does not read, events wait in the engine's buffers, which have room for all of them.
//! When the client leaves, the body is dropped, and all generations with it. Until every generation is accepted no head goes out,
//! so what goes wrong before that has a status of its own; what goes wrong later is the stream's last object.

use crate::engine::Event;
use crate::http::error::ApiError;
use crate::http::group::{Group, ended_early};
use crate::http::negotiate::Format;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use std::convert::Infallible;
use std::time::Duration;
use tokio::time::timeout;

/// Events that are there at once go out together, up to about this many bytes.
const CHUNK_BYTES: usize = 16 << 10;

/// Writes a resource's objects.
pub(super) trait Script: Send + 'static {
    /// All generations are accepted.
    fn begin(&mut self, out: &mut Out);
    /// Something of a choice's answer came, or its end.
    fn event(&mut self, choice: usize, event: Event, out: &mut Out);
    /// All answers have ended.
    fn end(&mut self, out: &mut Out);
    /// One of them failed: nothing comes after this.
    fn fail(&mut self, error: &ApiError, out: &mut Out);
}

/// Bytes on their way out.
#[derive(Debug, Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    /// An event without a name.
    pub(super) fn data(&mut self, object: &impl Serialize) {
        let whole = self.0.len();
        self.0.extend_from_slice(b"data: ");
        match serde_json::to_writer(&mut self.0, object) {
            Ok(()) => self.0.extend_from_slice(b"\n\n"),
            Err(error) => {
                tracing::error!(%error, "an event can't be encoded");
                self.0.truncate(whole);
            }
        }
    }

    /// An event with a name.
    pub(super) fn named(&mut self, name: &str, object: &impl Serialize) {
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(b'\n');
        self.data(object);
    }

    /// The mark that ends streams of chats and completions.
    pub(super) fn done(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }
}

/// Waits until the engine has accepted all of the group, then begins the stream.
pub(super) async fn start(
    mut group: Group,
    choices: usize,
    mut script: impl Script,
    keep_alive: Duration,
) -> Result<Response, ApiError> {
    let mut out = Out::default();
    let mut early = Vec::new();
    let mut accepted = 0;
    while accepted < choices {
        match group.next().await {
            Some((_, Event::Accepted { .. })) => accepted += 1,
            Some((_, Event::Failed(error))) => return Err(ApiError::from(&error)),
            Some(event) => early.push(event),
            None => return Err(ended_early()),
        }
    }
    script.begin(&mut out);
    for (choice, event) in early {
        script.event(choice, event, &mut out);
    }
    let streaming = Streaming {
        group,
        script,
        out,
        over: false,
        keep_alive,
    };
    // Once the state is given back as `None`, the stream is over.
    let chunks = stream::unfold(Some(streaming), |state| async move {
        let mut streaming = state?;
        let chunk = streaming.chunk().await;
        let next = (!streaming.over).then_some(streaming);
        Some((Ok::<_, Infallible>(chunk), next))
    });
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static(Format::Sse.content_type()),
        ),
        // Proxies that buffer would turn a stream into one late answer.
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}

struct Streaming<S> {
    group: Group,
    script: S,
    out: Out,
    /// Set once nothing follows what is in `out`.
    over: bool,
    keep_alive: Duration,
}

impl<S: Script> Streaming<S> {
    async fn chunk(&mut self) -> Bytes {
        while self.out.0.is_empty() && !self.over {
            match timeout(self.keep_alive, self.group.next()).await {
                Ok(event) => self.take(event),
                Err(_) => self.out.0.extend_from_slice(b": keep-alive\n\n"),
            }
        }
        while !self.over && self.out.0.len() < CHUNK_BYTES {
            if self.group.is_over() {
                self.take(None);
            } else {
                match self.group.try_next() {
                    Some(event) => self.take(Some(event)),
                    None => break,
                }
            }
        }
        Bytes::from(std::mem::take(&mut self.out.0))
    }

    fn take(&mut self, event: Option<(usize, Event)>) {
        match event {
            Some((_, Event::Failed(error))) => {
                self.script.fail(&ApiError::from(&error), &mut self.out);
                self.over = true;
            }
            Some((choice, event)) => self.script.event(choice, event, &mut self.out),
            None if self.group.is_over() => {
                self.script.end(&mut self.out);
                self.over = true;
            }
            None => {
                self.script.fail(&ended_early(), &mut self.out);
                self.over = true;
            }
        }
    }
}
