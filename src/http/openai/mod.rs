//! OpenAI's API: its paths and shapes, so that its official clients work unchanged, with the usual extensions.
//!
//! One module per resource. Each declares its fields as a table (see [`super::schema`]), turns a checked body into the
//! engine's requests, and writes events in OpenAI's shapes. Nothing is stored between requests.

pub(super) mod chat;
pub(super) mod completions;
pub(super) mod embeddings;
pub(super) mod error;
pub(super) mod models;
pub(super) mod responses;
pub(super) mod tokens;

mod answer;
mod collect;
mod format;
mod messages;
mod prompts;
mod sampling;
mod sse;
mod tools;

use super::app::App;
use super::body;
use super::error::ApiError;
use super::tracked::{Tracker, hex};
use crate::engine::EngineError;
use crate::pool::Lease;
use axum::body::Body;
use axum::http::HeaderMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// A larger body is parsed beside the runtime's threads, where it holds nobody up.
const PARSE_INLINE: usize = 256 << 10;

/// Paths of this API that are not under `/v1`: llama-server's, whose clients expect the same errors.
const OTHERS: [&str; 3] = ["/tokenize", "/detokenize", "/apply-template"];

/// Whether a path is one of this API, whether it exists or not.
pub(super) fn speaks(path: &str) -> bool {
    path == "/v1" || path.starts_with("/v1/") || OTHERS.contains(&path)
}

/// A request that was read.
trait Asked: Send + 'static {
    /// The model that it names.
    fn model(&self) -> Option<&str>;
}

/// What every request begins with: it is read and checked, and the model that it names is taken. What is wrong is on its account.
async fn accept<T: Asked>(
    app: &App,
    tracker: &mut Tracker,
    body: (&HeaderMap, Body),
    parse: fn(&[u8]) -> Result<T, ApiError>,
) -> Result<(T, Lease), ApiError> {
    let accepted = async {
        let asked = read(app, tracker, body, parse).await?;
        let lease = app.lease(asked.model()).await?;
        Ok((asked, lease))
    };
    let accepted = accepted.await;
    accepted.inspect_err(|error| tracker.failed(error))
}

/// Reads a body and parses it. Its share of memory stays with the account.
async fn read<T: Send + 'static>(
    app: &App,
    tracker: &mut Tracker,
    (headers, body): (&HeaderMap, Body),
    parse: fn(&[u8]) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let body::Received { bytes, memory } = body::read(app, headers, body).await?;
    tracker.hold(memory);
    if bytes.len() <= PARSE_INLINE {
        return parse(&bytes);
    }
    let parsed = tokio::task::spawn_blocking(move || parse(&bytes));
    parsed.await.unwrap_or_else(|error| {
        tracing::error!(%error, "parsing a body failed");
        Err(ApiError::from(&EngineError::Internal(error.to_string())))
    })
}

/// A new id, such as `chatcmpl-…`.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", &hex()[..29])
}

/// Seconds since the epoch.
fn now() -> u64 {
    seconds(SystemTime::now())
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
