//! What the server does at this moment: `/status` and `/health`. Neither waits for the worker.

use super::super::app::App;
use super::super::json;
use super::super::tracked::millis;
use super::info::features;
use super::{SERVER, VERSION, epoch_ms};
use crate::engine::{EngineState, ModelInfo};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::time::SystemTime;

/// `GET /status`
pub(in crate::http) async fn status(State(app): State<App>) -> Response {
    let engine = app.engine();
    let load = engine.load();
    let in_flight = engine.in_flight();
    let settings = app.settings();
    let body = json!({
        "status": "running",
        "timestamp": epoch_ms(SystemTime::now()),
        "server": SERVER,
        "version": VERSION,
        "ready": app.readiness().is_ok(),
        "draining": app.lifecycle().is_draining(),
        "features": features(),
        "permissions": {"location": false, "camera": false},
        "ai": ai(&app, in_flight),
        "queue": {
            "running": load.worker.running,
            "queued": in_flight.saturating_sub(load.worker.running),
            "places": engine.places(),
            "inFlight": in_flight,
        },
        "worker": {
            "pid": load.pid,
            "restarts": load.restarts,
            "trouble": trouble(&engine.state()),
        },
        "uptimeSeconds": app.uptime().as_secs(),
        "pod": settings.pod_name,
        "node": settings.node_name,
    });
    json::pretty(StatusCode::OK, &body)
}

/// `GET /health`
pub(in crate::http) async fn health(State(app): State<App>) -> Response {
    let ready = app.readiness();
    let (status, word) = match ready {
        Ok(()) => (StatusCode::OK, "healthy"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
    };
    let body = json!({
        "status": word,
        "services": {"server": "running", "ai": ready.err().unwrap_or_else(|| "ready".into())},
    });
    json::pretty(status, &body)
}

fn ai(app: &App, in_flight: u32) -> Value {
    let state = app.engine().state();
    let (name, details) = match &state {
        EngineState::Ready(info) => (Some(app.model().name()), Some(details(info))),
        _ => (None, None),
    };
    let loading = match &state {
        EngineState::Loading {
            progress, since, ..
        } => Some((*progress, SystemTime::now().checked_sub(since.elapsed()))),
        _ => None,
    };
    let since = app.busy_since().filter(|_| in_flight > 0);
    json!({
        "isEnabled": true,
        "downloadedModels": 1,
        "totalModels": 1,
        "currentModel": name,
        "currentModelDetails": details,
        "supportedFeatures": ["text_generation", "streaming"],
        "isProcessing": in_flight > 0,
        "processingStartTime": since.map(epoch_ms),
        "isModelLoading": loading.is_some(),
        "modelLoadingStartTime": loading.and_then(|(_, since)| since).map(epoch_ms),
        "modelLoadingProgress": loading.map(|(progress, _)| progress),
    })
}

fn details(info: &ModelInfo) -> Value {
    let buffers: Vec<Value> = info
        .buffers
        .iter()
        .map(|(name, bytes)| json!({"name": name, "bytes": bytes}))
        .collect();
    let mut details = Map::new();
    let mut add = |name: &str, value: Value| details.insert(name.into(), value);
    add("name", json!(info.name));
    add("architecture", json!(info.architecture));
    add("license", json!(info.licence));
    add("quantisation", json!(info.quantisation));
    add("sizeBytes", json!(info.size_bytes));
    add("parameters", json!(info.parameters));
    add("vocabulary", json!(info.vocab_size));
    add("trainedContext", json!(info.trained_context));
    add("context", json!(info.context_per_sequence));
    add("sequences", json!(info.sequences));
    add("template", json!(info.template));
    add("thinks", json!(info.thinks));
    add("kernels", json!(info.kernels));
    add("cpuVariant", json!(info.cpu_variant));
    add("buffers", json!(buffers));
    add(
        "loadMs",
        json!(millis(std::time::Duration::from_secs_f64(
            info.load_ms.max(0.0) / 1000.0
        ))),
    );
    details.into()
}

/// What is wrong with the worker, if anything is.
fn trouble(state: &EngineState) -> Option<&str> {
    match state {
        EngineState::Restarting { reason } | EngineState::Failed { reason } => Some(reason),
        _ => None,
    }
}
