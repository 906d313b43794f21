//! `GET /v1/models` and `GET /v1/models/{name}`: the models that can be asked, the default one first.

use super::{now, seconds};
use crate::http::app::{App, blocking};
use crate::http::error::{ApiError, Code};
use crate::http::json;
use crate::models::Model;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

/// Where they are.
pub(in crate::http) const PATH: &str = "/v1/models";
/// Where one is.
pub(in crate::http) const ONE_PATH: &str = "/v1/models/{name}";

#[derive(Serialize)]
struct Card {
    id: String,
    object: &'static str,
    /// When its file was last changed.
    created: u64,
    owned_by: String,
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Card>,
}

/// `GET /v1/models`
pub(in crate::http) async fn list(State(app): State<App>) -> Result<Response, ApiError> {
    let listed = app.listed().await?;
    let models = listed.into_iter().filter_map(|listed| listed.model);
    let models: Vec<Model> = models.collect();
    let data = blocking(move || models.iter().map(card).collect()).await?;
    let list = List {
        object: "list",
        data,
    };
    Ok(json::compact(StatusCode::OK, &list))
}

/// `GET /v1/models/{name}`; aliases lead to the model that they mean.
pub(in crate::http) async fn one(
    State(app): State<App>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let unusable = |error: PathRejection| ApiError::new(Code::ModelNotFound, error.body_text());
    let Path(name) = name.map_err(unusable)?;
    let model = app.resolve(Some(&name)).await?;
    let card = blocking(move || card(&model)).await?;
    Ok(json::compact(StatusCode::OK, &card))
}

/// Looks at the disk.
fn card(model: &Model) -> Card {
    let changed = std::fs::metadata(&model.path).and_then(|about| about.modified());
    let owner = model.entry.as_ref().and_then(|entry| {
        let address = entry.source.hub.to_string();
        let repo = address.strip_prefix("hf:")?;
        Some(repo.split_once('/')?.0.to_owned())
    });
    Card {
        id: model.name.clone(),
        object: "model",
        created: changed.map_or_else(|_| now(), seconds),
        owned_by: owner.unwrap_or_else(|| "local".into()),
    }
}
