//! Probes: `/livez` says that the front is sane, `/readyz` whether requests should come here. Neither needs a key or
//! waits for the worker.

use super::app::App;
use axum::extract::State;
use axum::http::StatusCode;

pub(super) async fn live() -> &'static str {
    "ok\n"
}

pub(super) async fn ready(State(app): State<App>) -> (StatusCode, String) {
    match app.readiness() {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n"),
    }
}
