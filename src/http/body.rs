//! Request bodies: read within limits of size, time and memory, and drained when nobody wants them.
//!
//! A server that closes a connection while the client still sends makes the client's system throw the answer away: the
//! client would see a reset instead of the 413 that tells what is wrong. So what is left of an unwanted body is read and
//! forgotten, within limits.

use super::app::{App, HttpSettings};
use super::error::{ApiError, Code};
use crate::metrics::Limit;
use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout, timeout_at};

/// A body in memory.
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    /// Its share of the memory that all bodies may use; to be held as long as what was parsed from it may be large.
    pub(super) memory: Memory,
}

/// A share of the bodies' memory. A body of less than a KiB has none.
#[derive(Debug, Default)]
pub(super) struct Memory(Option<OwnedSemaphorePermit>);

impl Memory {
    /// Grows to cover this many bytes.
    fn cover(&mut self, app: &App, bytes: usize) -> Result<(), ApiError> {
        let held = self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let wanted = bytes / 1024 - held;
        if wanted == 0 {
            return Ok(());
        }
        let more = u32::try_from(wanted)
            .ok()
            .and_then(|kib| app.body_memory().try_acquire_many_owned(kib).ok())
            .ok_or_else(no_memory)?;
        match &mut self.0 {
            Some(memory) => memory.merge(more),
            None => self.0 = Some(more),
        }
        Ok(())
    }
}

/// Reads a whole body, or says why not.
pub(super) async fn read(
    app: &App,
    headers: &HeaderMap,
    mut body: Body,
) -> Result<Received, ApiError> {
    let settings = app.settings();
    if is_encoded(headers) {
        // What a few bytes unpack to has no bound that is known beforehand.
        return Err(ApiError::bad_request("compressed bodies are not read")
            .details("send the body as it is, without `Content-Encoding`"));
    }
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > settings.body_limit as u64) {
        return Err(too_large(settings.body_limit));
    }
    let deadline = Instant::now() + settings.body_time;
    let mut bytes = Vec::new();
    let mut memory = Memory::default();
    loop {
        let next = timeout(settings.body_pause, body.frame());
        let frame = match timeout_at(deadline, next).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => break,
            Ok(Err(_)) | Err(_) => return Err(too_slow(settings)),
        };
        let frame = frame.map_err(|error| {
            ApiError::bad_request("the request's body could not be read").details(error.to_string())
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > settings.body_limit {
            return Err(too_large(settings.body_limit));
        }
        bytes.extend_from_slice(&data);
        memory.cover(app, bytes.len())?;
    }
    Ok(Received { bytes, memory })
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    encodings.any(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn no_memory() -> ApiError {
    let error = "too many large requests at once: try again in 2 s";
    ApiError::new(Code::Overloaded, error)
        .retry_after(2)
        .limit(Limit::BodyMemory)
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(Code::PayloadTooLarge, "the request's body is too large")
        .details(format!("this server takes {limit} bytes at most"))
        .limit(Limit::BodySize)
}

fn too_slow(settings: &HttpSettings) -> ApiError {
    let (pause, time) = (
        settings.body_pause.as_secs_f64(),
        settings.body_time.as_secs_f64(),
    );
    ApiError::new(Code::RequestTimeout, "the request's body came too slowly")
        .details(format!(
            "this server waits {pause} s for the next byte and {time} s for the last one"
        ))
        .limit(Limit::BodyTime)
}

/// A body from the network. What is left of it when it is dropped is read by a task of its own, within limits.
pub(super) struct Drained {
    body: Option<Incoming>,
    /// The client waits for a word before it sends the body. Until we ask for the first byte, there is nothing to drain.
    held_back: bool,
    limit: u64,
    time: Duration,
}

impl Drained {
    pub(super) fn new(body: Incoming, headers: &HeaderMap, settings: &HttpSettings) -> Self {
        Self {
            body: Some(body),
            held_back: headers.contains_key(header::EXPECT),
            limit: settings.drain_limit,
            time: settings.drain_time,
        }
    }
}

impl hyper::body::Body for Drained {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.held_back = false;
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let unwanted = self.body.take().filter(|body| !body.is_end_stream());
        if let (Some(body), false, Ok(runtime)) = (unwanted, self.held_back, Handle::try_current())
        {
            // A connection has one body at a time, so there are never more of these than connections.
            let (limit, time) = (self.limit, self.time);
            runtime.spawn(async move { timeout(time, drain(body, limit)).await });
        }
    }
}

async fn drain(mut body: Incoming, limit: u64) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, |data| data.len() as u64);
        if read > limit {
            return;
        }
    }
}
