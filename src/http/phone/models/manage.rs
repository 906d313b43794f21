//! What changes the disk without fetching: `POST /ai/models/cleanup`, `DELETE /ai/models/{name}`.

use super::super::super::app::{App, blocking};
use super::super::super::error::{ApiError, Code};
use super::super::super::json;
use super::{Named, checked, is_known, named, not_downloaded, not_found, store};
use crate::models::memory::Bytes;
use crate::models::store::StoreError;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;
use std::time::Duration;

/// Parts of downloads that have not grown for this long are removed when somebody asks for it.
const STALE: Duration = Duration::from_hours(24);

/// `POST /ai/models/cleanup`: removes what broken-off downloads left, never a model.
pub(in crate::http) async fn cleanup(State(app): State<App>) -> Result<Response, ApiError> {
    let store = store(&app)?.clone();
    let cleaned = blocking(move || store.clean(STALE)).await??;
    let count = cleaned.files.len();
    let body = json!({
        "success": true,
        "message": format!("{count} files of broken-off downloads were removed, {}", Bytes(cleaned.bytes)),
        "cleanedModels": count,
        "freedBytes": cleaned.bytes,
    });
    Ok(json::pretty(StatusCode::OK, &body))
}

/// `DELETE /ai/models/{name}`: running answers are finished, then its memory is free.
pub(in crate::http) async fn remove(
    State(app): State<App>,
    name: Named,
) -> Result<Response, ApiError> {
    if !app.settings().allow_delete {
        return Err(
            ApiError::new(Code::Forbidden, "this server lets nobody delete models")
                .details("start it with --allow-delete, or use `pocket-llm rm` on the server"),
        );
    }
    let name = checked(&app, &named(name)?)?;
    let store = store(&app)?.clone();
    if let Some(downloads) = app.downloads()
        && downloads.cancel(&name)
    {
        let body = json!({
            "success": true,
            "message": format!("the download of {name} is ended; what came of it is kept for the next one"),
            "modelName": name.to_string(),
        });
        return Ok(json::pretty(StatusCode::OK, &body));
    }
    let path = store.place(&name);
    let removing = name.clone();
    let removed = blocking(move || store.remove(&removing)).await?;
    let known = is_known(&app, &name)?;
    let removed = removed.map_err(|error| match error {
        StoreError::Missing { .. } if known => not_downloaded(&name),
        StoreError::Missing { .. } => not_found(&name),
        other => ApiError::new(Code::RemovalError, other.to_string()),
    })?;
    let pool = app.pool().clone();
    // Its requests may take their time; the file is gone, so nobody new comes.
    tokio::spawn(async move { pool.unload(&path).await });
    let body = json!({
        "success": true,
        "message": format!("model {name} was removed, {} are free", Bytes(removed.bytes)),
        "modelName": name.to_string(),
        "freedBytes": removed.bytes,
    });
    Ok(json::pretty(StatusCode::OK, &body))
}
