//! An answer as a stream: events in, bytes out, keep-alives while nothing else flows.
//!
//! The body is pulled: while the client does not read, events wait in the engine's buffer, which has room for all of
//! them. When the client leaves, the body is dropped, and the generation with it.

use super::super::super::error::ApiError;
use super::super::super::negotiate::Format;
use super::super::super::tracked::{Tracked, millis};
use super::answer::{Answer, Chunk, Frame};
use crate::engine::Event;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use std::io;
use std::time::Duration;
use tokio::time::timeout;

/// Events that are there at once go out together, up to about this many bytes.
const CHUNK_BYTES: usize = 16 << 10;

/// Waits until the engine has accepted the request, then begins the stream.
pub(super) async fn start(
    mut generation: Tracked,
    frame: Frame,
    format: Format,
    keep_alive: Duration,
) -> Result<Response, ApiError> {
    let mut writer = Writer {
        frame,
        format,
        answer: Answer::default(),
        out: Vec::new(),
        end: None,
    };
    match generation.next().await {
        Some(Event::Accepted { .. }) => {}
        Some(Event::Failed(error)) => return Err(ApiError::from(&error)),
        Some(event) => writer.write(event, &generation),
        None => return Err(super::ended_early()),
    }
    let state = Some(Streaming {
        generation,
        writer,
        keep_alive,
    });
    // Once the state is given back as `None`, the stream is over.
    let chunks = stream::unfold(state, |state| async move {
        let mut streaming = state?;
        let chunk = streaming.chunk().await;
        let next = streaming.goes_on().then_some(streaming);
        Some((chunk, next))
    });
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static(format.content_type()),
        ),
        // Proxies that buffer would turn a stream into one late answer.
        (
            header::HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    Ok((headers, Body::from_stream(chunks)).into_response())
}

struct Streaming {
    generation: Tracked,
    writer: Writer,
    keep_alive: Duration,
}

impl Streaming {
    /// The next bytes; an error cuts the connection, so that the client sees that the end is missing.
    async fn chunk(&mut self) -> io::Result<Bytes> {
        while self.writer.out.is_empty() && self.writer.end.is_none() {
            match timeout(self.keep_alive, self.generation.next()).await {
                Ok(Some(event)) => self.writer.write(event, &self.generation),
                Ok(None) => self.writer.fail(&super::ended_early()),
                Err(_) => self.writer.keep_alive(),
            }
        }
        while self.writer.end.is_none() && self.writer.out.len() < CHUNK_BYTES {
            let Some(event) = self.generation.try_next() else {
                break;
            };
            self.writer.write(event, &self.generation);
        }
        if self.writer.out.is_empty()
            && let Some(Err(error)) = &mut self.writer.end
        {
            let error = std::mem::replace(error, io::ErrorKind::Other.into());
            self.writer.end = Some(Ok(()));
            // While there is more to poll the connection writes nothing out, and an error drops what it holds back.
            tokio::task::yield_now().await;
            return Err(error);
        }
        Ok(Bytes::from(std::mem::take(&mut self.writer.out)))
    }

    /// Whether there is more to come: text, or the error after it.
    fn goes_on(&self) -> bool {
        !matches!(self.writer.end, Some(Ok(())))
    }
}

/// Writes events in one format.
struct Writer {
    frame: Frame,
    format: Format,
    answer: Answer,
    out: Vec<u8>,
    /// Set once nothing follows what is in `out`; an error is still to be shown as a cut connection.
    end: Option<io::Result<()>>,
}

impl Writer {
    fn write(&mut self, event: Event, generation: &Tracked) {
        match event {
            Event::Accepted { .. }
            | Event::Started { .. }
            | Event::ToolCall { .. }
            | Event::Answered(_) => {}
            Event::Text { text, thinking, .. } => {
                self.answer.push(&text, thinking);
                match self.format {
                    // Reasoning is no part of the answer, and bare text can't mark it.
                    Format::Plain if thinking => {}
                    Format::Plain => self.out.extend_from_slice(text.as_bytes()),
                    _ => object(
                        &mut self.out,
                        self.format,
                        &self.frame.token(&text, thinking),
                    ),
                }
            }
            Event::Finished(outcome) => {
                self.end = Some(Ok(()));
                if self.format != Format::Plain {
                    let elapsed = millis(generation.elapsed());
                    let complete = self.frame.complete(&self.answer, &outcome, elapsed);
                    object(&mut self.out, self.format, &complete);
                }
            }
            Event::Failed(error) => self.fail(&ApiError::from(&error)),
        }
    }

    fn fail(&mut self, error: &ApiError) {
        if self.format == Format::Plain {
            self.end = Some(Err(io::Error::other(error.text().to_owned())));
        } else {
            self.end = Some(Ok(()));
            object(&mut self.out, self.format, &self.frame.error(error));
        }
    }

    fn keep_alive(&mut self) {
        match self.format {
            Format::Sse => self.out.extend_from_slice(b": keep-alive\n\n"),
            Format::Ndjson => self.out.push(b'\n'),
            Format::Plain => {}
        }
    }
}

fn object(out: &mut Vec<u8>, format: Format, chunk: &Chunk<'_>) {
    let (before, after): (&[u8], &[u8]) = match format {
        Format::Sse => (b"data: ", b"\n\n"),
        _ => (b"", b"\n"),
    };
    let whole = out.len();
    out.extend_from_slice(before);
    match serde_json::to_writer(&mut *out, chunk) {
        Ok(()) => out.extend_from_slice(after),
        Err(error) => {
            tracing::error!(%error, "an event can't be encoded");
            out.truncate(whole);
        }
    }
}
