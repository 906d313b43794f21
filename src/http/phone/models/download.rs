//! `POST /ai/models/download`: fetches a model in the background.

use super::super::super::app::{App, blocking};
use super::super::super::error::{ApiError, Code};
use super::super::super::json;
use super::super::super::schema::{Field, needed};
use super::{WORDS, store, texts};
use crate::models::download::{DownloadError, Downloads, Refused, Start};
use crate::models::{Entry, ModelName, ModelRef};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::json;

/// The fields of a request.
pub(in crate::http) const FIELDS: &[Field; 1] =
    &[needed("modelName", WORDS, "a name of the catalogue")];

/// Seconds after which a client may ask again when the queue of downloads is full.
const RETRY_SECONDS: u32 = 60;

pub(in crate::http) async fn start(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let [name] = texts(&app, &headers, body, FIELDS).await?;
    if let Some(there) = on_disk(&app, &name)? {
        return Ok(there);
    }
    let reference = allowed(&app, &name)?;
    let downloads = downloads(&app)?;
    if let ModelRef::Known(entry) = &reference
        && entry.login
        && !downloads.has_token()
    {
        return Err(login_wanted(entry));
    }
    let (model, url) = match &reference {
        ModelRef::Known(entry) => (entry.name.clone(), entry.source.hub.to_string()),
        ModelRef::Hub(file) => (file.to_string(), file.to_string()),
        ModelRef::Path(path) => (path.display().to_string(), String::new()),
    };
    let started = blocking(move || downloads.start(reference)).await?;
    Ok(answer(
        &model,
        &url,
        &started.map_err(|error| refused(&error))?,
    ))
}

/// The answer to a wish for a model that somebody put into the store.
fn on_disk(app: &App, name: &str) -> Result<Option<Response>, ApiError> {
    let collection = app.library().collection();
    let (None, Ok(name)) = (collection.catalogue.find(name), ModelName::parse(name)) else {
        return Ok(None);
    };
    let there = store(app)?.find(&name)?;
    Ok(there.map(|stored| already(&stored.name.to_string(), "")))
}

fn already(model: &str, url: &str) -> Response {
    told(
        model,
        url,
        "already_available",
        &format!("{model} is on disk"),
    )
}

fn told(model: &str, url: &str, status: &str, message: &str) -> Response {
    let body = json!({
        "success": true,
        "message": message,
        "modelName": model,
        "status": status,
        "downloadUrl": url,
    });
    json::pretty(StatusCode::OK, &body)
}

/// What the answer to a wish is.
pub(super) fn answer(model: &str, url: &str, started: &Start) -> Response {
    let message = match started {
        Start::Started => {
            format!("{model} is being fetched; GET /ai/models/loading-status tells how far it is")
        }
        Start::AlreadyRunning => format!("{model} is being fetched already"),
        Start::AlreadyAvailable(_) => return already(model, url),
    };
    told(model, url, "download_started", &message)
}

/// A model that clients may have fetched: one of the catalogue, or with the flag any file on the hub.
fn allowed(app: &App, name: &str) -> Result<ModelRef, ApiError> {
    let catalogue = &app.library().collection().catalogue;
    match ModelRef::parse(name, catalogue) {
        Ok(ModelRef::Hub(_)) if !app.settings().allow_install => Err(forbidden()),
        Ok(reference @ (ModelRef::Known(_) | ModelRef::Hub(_))) => Ok(reference),
        Ok(ModelRef::Path(_)) => Err(ApiError::new(
            Code::InvalidModel,
            "a path is no model that can be downloaded",
        )),
        Err(error) => Err(ApiError::new(Code::InvalidModel, error.to_string())
            .details("GET /ai/models lists what can be downloaded")),
    }
}

pub(super) fn forbidden() -> ApiError {
    ApiError::new(
        Code::Forbidden,
        "this server lets nobody install models of their own",
    )
    .details("start it with --allow-install, or use `pocket-llm pull` on the server")
}

fn login_wanted(entry: &Entry) -> ApiError {
    ApiError::new(
        Code::AuthRequired,
        format!("the publisher of {} wants a login", entry.name),
    )
    .details(format!(
        "accept the terms at the page of {} on the hub, and start the server with HF_TOKEN",
        entry.source.hub.repo()
    ))
}

pub(super) fn downloads(app: &App) -> Result<Downloads, ApiError> {
    store(app)?;
    app.downloads()
        .cloned()
        .ok_or_else(|| ApiError::new(Code::NotImplemented, "this server downloads no models"))
}

pub(super) fn refused(refused: &Refused) -> ApiError {
    let text = refused.to_string();
    match refused {
        Refused::Full => ApiError::new(Code::Overloaded, text).retry_after(RETRY_SECONDS),
        Refused::Ending => ApiError::new(Code::ShuttingDown, text),
        Refused::Thread(_) => {
            tracing::error!(error = text, "a download could not be started");
            ApiError::new(Code::AiError, "internal error")
        }
        Refused::Download(DownloadError::Store(_)) => {
            ApiError::new(Code::StoragePermissionDenied, text)
        }
        Refused::Download(DownloadError::InTheWay { .. }) => ApiError::new(
            Code::InvalidModel,
            "another model has this name: choose another one",
        ),
        Refused::Download(_) => ApiError::new(Code::InvalidModel, text),
    }
}
