//! How models lie on the disk: `/ai/models/status`, `/ai/models/{name}/status`, `/ai/models/diagnostics`.

use super::super::super::app::App;
use super::super::super::error::ApiError;
use super::super::super::json;
use super::{Named, checked, is_known, named, not_downloaded, not_found, store};
use crate::device::memory;
use crate::engine::EngineState;
use crate::models::memory::Bytes;
use crate::models::store::Stored;
use crate::pool::Seen;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::time::Duration;

const DAY: Duration = Duration::from_hours(24);

/// `GET /ai/models/status`
pub(in crate::http) async fn all(State(app): State<App>) -> Result<Response, ApiError> {
    let store = store(&app)?;
    let listed = app.listed().await?;
    let stored = store.list()?;
    let partials = store.partials()?;
    let seen = app.pool().seen();
    let bytes: u64 = stored.iter().map(|stored| stored.bytes).sum();
    let last = seen.iter().filter(|seen| is_ready(seen));
    let last = last.min_by_key(|seen| seen.idle);
    let totals = app.pool().totals();
    let body = json!({
        "totalModels": listed.len(),
        "downloadedModels": listed.iter().filter(|listed| listed.model.is_some()).count(),
        "loadedModels": seen.iter().filter(|seen| is_ready(seen)).count(),
        "totalDownloadSize": bytes,
        "formattedTotalSize": Bytes(bytes).to_string(),
        "lastLoadedModel": last.map(|seen| seen.facts.model.name.as_str()),
        "modelsDirectory": store.root(),
        "availableModels": stored.iter().map(|stored| persistence(&app, stored, &seen)).collect::<Vec<_>>(),
        "statistics": {
            "loads": totals.loads,
            "unloads": totals.unloads,
            "workerRestarts": totals.restarts,
            "partialDownloads": partials.len(),
            "partialBytes": partials.iter().map(|partial| partial.bytes).sum::<u64>(),
            "memoryBytes": seen.iter().map(|seen| seen.bytes).sum::<u64>(),
        },
    });
    Ok(json::pretty(StatusCode::OK, &body))
}

/// `GET /ai/models/{name}/status`
pub(in crate::http) async fn one(
    State(app): State<App>,
    name: Named,
) -> Result<Response, ApiError> {
    let name = checked(&app, &named(name)?)?;
    match store(&app)?.find(&name)? {
        Some(stored) => Ok(json::pretty(
            StatusCode::OK,
            &persistence(&app, &stored, &app.pool().seen()),
        )),
        None if is_known(&app, &name)? => Err(not_downloaded(&name)),
        None => Err(not_found(&name)),
    }
}

/// `GET /ai/models/diagnostics`: what is wrong, if anything, and what there is to work with.
pub(in crate::http) async fn diagnostics(State(app): State<App>) -> Result<Response, ApiError> {
    let store = store(&app)?;
    let (stored, partials) = (store.list(), store.partials());
    let mut problems: Vec<String> = Vec::new();
    problems.extend(stored.as_ref().err().map(ToString::to_string));
    let stored = stored.unwrap_or_default();
    for listed in app.listed().await.unwrap_or_default() {
        let fault = listed.fault.map(|fault| format!("{} {fault}", listed.name));
        problems.extend(fault);
        problems.extend(listed.stored.and_then(|stored| stored.problem));
    }
    let unnameable = store.unnameable().unwrap_or_default();
    problems.extend(unnameable.iter().map(ToString::to_string));
    let partials: Vec<Value> = partials
        .unwrap_or_default()
        .iter()
        .map(|partial| {
            json!({"modelName": partial.stem, "bytes": partial.bytes, "totalBytes": partial.expected, "isRunning": partial.running})
        })
        .collect();
    let writable = rustix::fs::access(store.root(), rustix::fs::Access::WRITE_OK).is_ok();
    if !writable {
        problems.push("the model directory can't be written: downloads are not possible".into());
    }
    let free = rustix::fs::statvfs(store.root()).ok();
    let free = free.map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    let body = json!({
        "modelsDirectory": store.root(),
        "storagePermission": writable,
        "freeBytes": free,
        "formattedFree": free.map(|free| Bytes(free).to_string()),
        "memoryFreeBytes": memory::Free::here().map(|free| free.bytes),
        "downloadedModels": stored.len(),
        "partialDownloads": partials,
        "problems": problems,
        "healthy": problems.is_empty(),
    });
    Ok(json::pretty(StatusCode::OK, &body))
}

fn is_ready(seen: &Seen) -> bool {
    matches!(seen.state, EngineState::Ready(_))
}

fn persistence(app: &App, stored: &Stored, seen: &[Seen]) -> Value {
    let manifest = stored.manifest.as_ref();
    let fetched = manifest
        .and_then(|manifest| manifest.fetched_at)
        .or(stored.modified);
    let used = manifest.and_then(|manifest| manifest.last_used);
    let loaded = seen
        .iter()
        .any(|seen| is_ready(seen) && seen.facts.model.path == stored.path);
    let fault = app.library().fault_of(stored);
    json!({
        "modelName": stored.name.to_string(),
        "downloadPath": stored.path,
        "fileSize": stored.bytes,
        "formattedSize": Bytes(stored.bytes).to_string(),
        "downloadTimestamp": fetched.map(|fetched| fetched.0),
        "lastAccessedTimestamp": used.map(|used| used.0),
        "isLoaded": loaded,
        "downloadStatus": if fault.is_none() { "complete" } else { "damaged" },
        "problem": fault,
        "ageInDays": fetched.map(|fetched| fetched.age().as_secs() / DAY.as_secs()),
        "sha256": manifest.and_then(|manifest| manifest.sha256.map(|digest| digest.to_string())),
    })
}
