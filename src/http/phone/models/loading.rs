//! `GET /ai/models/loading-status`: what is being loaded and fetched, once as JSON or again and again as a stream of events.

use super::super::super::app::App;
use super::super::super::json;
use super::super::epoch_ms;
use super::super::status::loading;
use crate::models::download::{DownloadStatus, Downloads};
use crate::pool::Seen;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, sleep};

/// Between two looks for a stream.
const LOOK_EVERY: Duration = Duration::from_millis(250);

pub(in crate::http) async fn status(State(app): State<App>, headers: HeaderMap) -> Response {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok());
    if accept.is_some_and(|accept| accept.contains("text/event-stream")) {
        return events(app);
    }
    json::pretty(StatusCode::OK, &now(&app))
}

/// How things stand.
fn now(app: &App) -> Value {
    let seen = app.pool().seen();
    let downloads = app.downloads().map(Downloads::snapshot);
    let downloads: Vec<Value> = downloads.iter().flatten().map(download).collect();
    let loads = seen
        .iter()
        .find_map(|seen| loading(seen).map(|loading| (seen, loading)));
    let mut body = match loads {
        Some((seen, loading)) => load(seen, loading.progress, loading.since),
        None => json!({"isLoading": false, "message": "no model is being loaded"}),
    };
    body["downloads"] = downloads.into();
    body
}

fn load(seen: &Seen, progress: f32, since: Option<SystemTime>) -> Value {
    let elapsed = since.and_then(|since| since.elapsed().ok());
    json!({
        "isLoading": true,
        "modelName": seen.facts.model.name,
        "elapsedTime": elapsed.map(|elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)),
        "progressPercentage": percent(f64::from(progress)),
        "startTime": since.map(epoch_ms),
    })
}

fn download(status: &DownloadStatus) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "shown as a percentage")]
    let done = status
        .total
        .map(|total| status.received as f64 / total.max(1) as f64);
    json!({
        "modelName": status.name.to_string(),
        "phase": status.phase.name(),
        "receivedBytes": status.received,
        "totalBytes": status.total,
        "progressPercentage": done.map(percent),
        "bytesPerSecond": status.bytes_per_second,
        "attempt": status.attempt,
        "error": status.error,
        "startTime": status.started_at.0,
        "endTime": status.ended_at.map(|ended| ended.0),
    })
}

/// One digit after the point is enough for a bar.
fn percent(part: f64) -> f64 {
    (part * 1000.0).round() / 10.0
}

/// The same objects, whenever something changes. Ends when the client leaves or the server does.
fn events(app: App) -> Response {
    let ping = app.settings().keep_alive;
    let state = (app, Value::Null, Instant::now());
    let events = stream::unfold(state, move |(app, mut last, mut spoken)| async move {
        loop {
            if app.lifecycle().is_draining() {
                return None;
            }
            let value = now(&app);
            let frame = if differs(&last, &value) {
                Some(format!("data: {value}\n\n"))
            } else {
                (spoken.elapsed() >= ping).then(|| ": still here\n\n".to_owned())
            };
            if let Some(frame) = frame {
                (last, spoken) = (value, Instant::now());
                return Some((Ok::<_, Infallible>(Bytes::from(frame)), (app, last, spoken)));
            }
            sleep(LOOK_EVERY).await;
        }
    });
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        ),
        // Proxies that buffer would turn a stream into one late answer.
        (
            header::HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    (headers, Body::from_stream(events)).into_response()
}

/// Whether something happened beside the passing of time.
fn differs(last: &Value, now: &Value) -> bool {
    let timeless = |value: &Value| {
        let mut value = value.clone();
        if let Some(object) = value.as_object_mut() {
            object.remove("elapsedTime");
        }
        value
    };
    timeless(last) != timeless(now)
}
