//! What the server does at this moment: `/status` and `/health`. Neither waits for the worker.

use super::super::app::App;
use super::super::json;
use super::super::tracked::millis;
use super::info::features;
use super::{SERVER, VERSION, epoch_ms, machine};
use crate::engine::{EngineState, ModelInfo};
use crate::models::Listed;
use crate::pool::Seen;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};
use std::time::SystemTime;

/// `GET /status`
pub(in crate::http) async fn status(State(app): State<App>) -> Response {
    let totals = app.pool().totals();
    let in_flight = app.pool().in_flight();
    let settings = app.settings();
    let models = app.pool().seen();
    let models: Vec<Value> = models.iter().map(|seen| model(&app, seen)).collect();
    let current = app.current();
    // A store that can't be read is told by /ai/models/diagnostics.
    let listed = app.listed().await.unwrap_or_default();
    let body = json!({
        "status": "running",
        "timestamp": epoch_ms(SystemTime::now()),
        "server": SERVER,
        "version": VERSION,
        "ready": app.readiness().is_ok(),
        "draining": app.lifecycle().is_draining(),
        "features": features(),
        "permissions": {"location": false, "camera": false},
        "ai": ai(&app, &listed, current.as_ref(), in_flight),
        "queue": {
            "running": totals.workers.running,
            "queued": in_flight.saturating_sub(totals.workers.running),
            "places": app.pool().places(),
            "inFlight": in_flight,
        },
        "worker": current.as_ref().map(worker),
        "machine": machine::machine(&app, current.as_ref()),
        "models": models,
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

fn ai(app: &App, listed: &[Listed], current: Option<&Seen>, in_flight: u32) -> Value {
    let loaded = current.and_then(|seen| match &seen.state {
        EngineState::Ready(info) => Some((seen.facts.model.name.as_str(), details(info))),
        _ => None,
    });
    let (name, details) = loaded.unzip();
    let loading = app
        .pool()
        .seen()
        .into_iter()
        .find_map(|seen| loading(&seen));
    let since = app.busy_since().filter(|_| in_flight > 0);
    json!({
        "isEnabled": true,
        "downloadedModels": listed.iter().filter(|listed| listed.model.is_some()).count(),
        "totalModels": listed.len(),
        "currentModel": name,
        "currentModelDetails": details,
        "supportedFeatures": ["text_generation", "streaming"],
        "isProcessing": in_flight > 0,
        "processingStartTime": since.map(epoch_ms),
        "isModelLoading": loading.is_some(),
        "modelLoadingStartTime": loading.and_then(|loading| loading.since).map(epoch_ms),
        "modelLoadingProgress": loading.map(|loading| loading.progress),
    })
}

/// How far the load of a model is.
#[derive(Clone, Copy)]
pub(super) struct Loading {
    /// 0 to 1.
    pub(super) progress: f32,
    pub(super) since: Option<SystemTime>,
}

/// How far it is, if it is being loaded or waits for room.
pub(super) fn loading(seen: &Seen) -> Option<Loading> {
    let EngineState::Loading {
        progress, since, ..
    } = &seen.state
    else {
        return None;
    };
    Some(Loading {
        progress: *progress,
        since: SystemTime::now().checked_sub(since.elapsed()),
    })
}

/// A model in memory, or on its way.
fn model(app: &App, seen: &Seen) -> Value {
    json!({
        "name": seen.facts.model.name,
        "state": state(seen),
        "progress": loading(seen).map(|loading| loading.progress),
        "running": seen.load.worker.running,
        "inFlight": seen.in_flight,
        "places": seen.places,
        "memoryBytes": seen.bytes,
        "idleSeconds": seen.idle.map(|idle| idle.as_secs()),
        "worker": worker(seen),
        "speed": machine::speed(app, seen),
    })
}

fn state(seen: &Seen) -> &'static str {
    match &seen.state {
        _ if seen.leaving => "leaving",
        EngineState::Loading { .. } if seen.waiting => "waiting",
        EngineState::Loading { .. } => "loading",
        EngineState::Ready(_) => "ready",
        EngineState::Restarting { .. } => "restarting",
        EngineState::Failed { .. } => "failed",
        EngineState::Stopped => "stopped",
    }
}

fn worker(seen: &Seen) -> Value {
    json!({
        "pid": seen.load.pid,
        "restarts": seen.load.restarts,
        "trouble": trouble(&seen.state),
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
    add("batchSize", json!(info.batch_size));
    add("template", json!(info.template));
    add("thinks", json!(info.thinks));
    add("draftModel", json!(info.draft_model));
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
