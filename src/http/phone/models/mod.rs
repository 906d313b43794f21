//! Models over HTTP: which there are, how they stand, and what clients may do with them.
//!
//! What writes or fetches is safe by default: models of the catalogue can be downloaded; installing from anywhere and deleting
//! need a flag. Every name is checked before anything else happens, so no path leaves the store.

pub(in crate::http) mod download;
pub(in crate::http) mod loading;
pub(in crate::http) mod manage;
pub(in crate::http) mod stored;
pub(in crate::http) mod upload;

use super::super::app::App;
use super::super::error::{ApiError, Code};
use super::super::schema::{Field, Shape};
use super::super::{body, json};
use crate::engine::EngineState;
use crate::models::catalogue::Capability;
use crate::models::store::Store;
use crate::models::{Listed, ModelName};
use crate::pool::Seen;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};

/// `GET /ai/models`: all known models, the default one first.
pub(in crate::http) async fn list(State(app): State<App>) -> Result<Response, ApiError> {
    let listed = app.listed().await?;
    let seen = app.pool().seen();
    let models: Vec<Value> = listed.iter().map(|listed| entry(listed, &seen)).collect();
    Ok(json::pretty(StatusCode::OK, &json!({"models": models})))
}

fn entry(listed: &Listed, seen: &[Seen]) -> Value {
    let here = listed
        .model
        .as_ref()
        .and_then(|model| seen.iter().find(|seen| seen.facts.model.path == model.path));
    let facts = here.map(|seen| &seen.facts);
    let known = listed.entry.as_deref();
    let notice = match (facts, known) {
        (Some(facts), _) => facts.licence_notice.as_deref(),
        (None, Some(entry)) => entry.licence_notice.as_deref(),
        (None, None) => None,
    };
    let title = known.map(|entry| entry.display_name.as_str());
    let title = title.or_else(|| facts.and_then(|facts| facts.info.name.as_deref()));
    let ready = here.and_then(|seen| match &seen.state {
        EngineState::Ready(info) => Some(info),
        _ => None,
    });
    let bytes = listed.stored.as_ref().map(|stored| stored.bytes);
    let bytes = bytes.or_else(|| facts.map(|facts| facts.header.file_bytes()));
    json!({
        "name": listed.name,
        "displayName": title.unwrap_or(&listed.name),
        "description": described(listed, here),
        "needsLicense": notice.is_some(),
        "license": notice,
        "available": listed.model.is_some(),
        "problem": listed.fault,
        "currentlyLoaded": ready.is_some(),
        "backend": "CPU",
        "isMultiModal": known.is_some_and(|entry| entry.can(Capability::Vision)),
        "aliases": listed.aliases,
        "sizeBytes": bytes.or_else(|| known.and_then(|entry| entry.source.bytes)),
        "contextTokens": ready.map(|info| info.context_per_sequence),
        "trainedContext": known.map(|entry| entry.context),
        "needsLogin": known.is_some_and(|entry| entry.login),
        "source": known.map(|entry| entry.source.hub.to_string()),
    })
}

fn described(listed: &Listed, here: Option<&Seen>) -> String {
    if let Some(entry) = &listed.entry {
        return entry.description.clone();
    }
    let Some(info) = here.map(|seen| &seen.facts.info) else {
        return "a file in the store".into();
    };
    format!(
        "{}, {} parameters, {}",
        info.architecture,
        count(info.parameters),
        info.quantisation
            .as_deref()
            .unwrap_or("unknown quantisation"),
    )
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

/// The store, or why there is none.
fn store(app: &App) -> Result<&Store, ApiError> {
    app.library().collection().store.as_ref().ok_or_else(|| {
        ApiError::new(
            Code::StoragePermissionDenied,
            "this server has no model directory",
        )
        .details("start it with --models DIR")
    })
}

/// A name that somebody wrote, as the store knows it.
fn checked(app: &App, name: &str) -> Result<ModelName, ApiError> {
    let catalogue = &app.library().collection().catalogue;
    store(app)?
        .name_of(name, catalogue)
        .map_err(|error| ApiError::new(Code::InvalidModel, error.to_string()))
}

/// Whether anything has this name: the catalogue, or a file.
fn is_known(app: &App, name: &ModelName) -> Result<bool, ApiError> {
    let known = app.library().collection().catalogue.find(&name.to_string());
    Ok(known.is_some() || store(app)?.find(name)?.is_some())
}

/// A name in a path; one that is no text is refused like every other wrong name.
type Named = Result<Path<String>, PathRejection>;

fn named(name: Named) -> Result<String, ApiError> {
    let wrong = |error: PathRejection| ApiError::new(Code::InvalidModel, error.body_text());
    name.map(|Path(name)| name).map_err(wrong)
}

fn not_downloaded(name: &ModelName) -> ApiError {
    ApiError::new(
        Code::ModelNotDownloaded,
        format!("model {name} is not downloaded"),
    )
    .details("POST /ai/models/download gets it")
}

fn not_found(name: &ModelName) -> ApiError {
    ApiError::new(Code::ModelNotFound, format!("no model is called {name}"))
        .details("GET /ai/models lists those that are known")
}

/// A text that says something.
pub(super) const WORDS: Shape = Shape::Text {
    least: 1,
    most: usize::MAX,
};

/// The text fields of a body, all of which must be there and say something.
pub(super) async fn texts<const N: usize>(
    app: &App,
    headers: &HeaderMap,
    body: Body,
    fields: &'static [Field; N],
) -> Result<[String; N], ApiError> {
    let received = body::read(app, headers, body).await?;
    let names = fields.map(|field| field.name);
    let mut object = json::parse_object(&received.bytes, &names)?;
    let mut texts: [String; N] = std::array::from_fn(|_| String::new());
    for (text, name) in texts.iter_mut().zip(names) {
        match object.remove(name) {
            Some(Value::String(said)) if !said.trim().is_empty() => {
                said.trim().clone_into(text);
            }
            None | Some(Value::Null | Value::String(_)) => {
                let error = format!("the field {name:?} is missing");
                return Err(ApiError::new(Code::InvalidRequest, error).required(names.into()));
            }
            Some(_) => return Err(ApiError::bad_request(format!("`{name}` must be a string"))),
        }
    }
    Ok(texts)
}
