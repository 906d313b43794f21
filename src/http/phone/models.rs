//! `GET /ai/models`: the models that can be asked. That is one, the served one.

use super::super::app::App;
use super::super::json;
use crate::engine::EngineState;
use crate::models::Family;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

pub(in crate::http) async fn list(State(app): State<App>) -> Response {
    let model = app.model();
    let state = app.engine().state();
    let info = app.known_info();
    let notice = info
        .as_ref()
        .and_then(|info| Family::of(info).licence_notice.as_deref());
    let title = info.as_ref().and_then(|info| info.name.as_deref());
    let entry = json!({
        "name": model.name(),
        "displayName": title.unwrap_or(model.name()),
        "description": info.as_ref().map_or_else(
            || "not loaded yet".to_owned(),
            |info| format!(
                "{}, {} parameters, {}",
                info.architecture,
                count(info.parameters),
                info.quantisation.as_deref().unwrap_or("unknown quantisation"),
            ),
        ),
        "needsLicense": notice.is_some(),
        "license": notice,
        "available": !matches!(state, EngineState::Failed { .. } | EngineState::Stopped),
        "currentlyLoaded": matches!(state, EngineState::Ready(_)),
        "backend": "CPU",
        "isMultiModal": false,
        "aliases": model.aliases(),
        "sizeBytes": info.as_ref().map(|info| info.size_bytes),
        "contextTokens": info.as_ref().map(|info| info.context_per_sequence),
    });
    json::pretty(StatusCode::OK, &json!({"models": [entry]}))
}

/// A large number as people say it.
fn count(parameters: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    let millions = parameters as f64 / 1e6;
    if millions >= 1000.0 {
        format!("{:.1} B", millions / 1000.0)
    } else {
        format!("{millions:.0} M")
    }
}
