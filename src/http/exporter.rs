//! `GET /metrics`.

use super::app::App;
use super::error::{ApiError, Code};
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) async fn metrics(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    match app.metrics().encode(app.pool()) {
        Ok(text) => Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text)),
        Err(error) => {
            tracing::error!(%error, "metrics can't be encoded");
            Err(ApiError::new(Code::AiError, "internal error"))
        }
    }
}
