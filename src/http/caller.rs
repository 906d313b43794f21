//! Who asks, and under which number.

use super::auth::KeyHolder;
use super::listen::Peer;
use super::tracked::{hex, millis};
use crate::engine::Queued;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Characters of a client's own id at most.
const LONGEST_ID: usize = 128;

/// A request's number: the client's own from `X-Request-Id`, or a random one. It is in the log and in the answer's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestId(String);

impl RequestId {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let given = headers.get("x-request-id").and_then(|id| id.to_str().ok());
        let usable = |id: &&str| {
            (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        match given.filter(usable) {
            Some(id) => Self(id.into()),
            None => Self(format!("req_{}", hex())),
        }
    }

    pub(super) fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&self.0).ok()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Requests ahead of this one when it was accepted.
const POSITION: HeaderName = HeaderName::from_static("x-queue-position");
/// How long it was likely to wait for its turn then, in milliseconds.
const WAIT: HeaderName = HeaderName::from_static("x-estimated-wait-ms");

/// Where the engine's word on a request's place in the queue is kept until its answer's head goes out.
#[derive(Clone, Debug, Default)]
pub(super) struct QueueNote(Arc<Mutex<Option<Queued>>>);

impl QueueNote {
    /// Of several choices the one counts that waits longest.
    pub(super) fn note(&self, queued: Queued) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.is_none_or(|noted| queued.position >= noted.position) {
            *noted = Some(queued);
        }
    }

    /// Writes it into an answer's head, if the request has come as far as a queue.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let noted = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queued) = noted {
            headers.insert(POSITION, queued.position.into());
            if let Some(wait) = queued.wait {
                headers.insert(WAIT, millis(wait).into());
            }
        }
    }
}

/// What a handler needs to know of a request beside its body.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Between whom the queue is fair: who holds one of several keys; addresses, where there is one key for all or none.
    pub(super) client: String,
    pub(super) id: Option<RequestId>,
    pub(super) queue: QueueNote,
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let holder = parts
            .extensions
            .get::<KeyHolder>()
            .map(|holder| holder.0.clone());
        let peer = parts
            .extensions
            .get::<Peer>()
            .map(|peer| peer.client.to_string());
        Ok(Self {
            client: holder.or(peer).unwrap_or_else(|| "unknown".into()),
            id: parts.extensions.get().cloned(),
            queue: parts.extensions.get().cloned().unwrap_or_default(),
        })
    }
}
