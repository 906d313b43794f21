//! `POST /ai/text/upload-model-api`: installs a model from a public URL.

use super::super::super::app::App;
use super::super::super::error::{ApiError, Code};
use super::download::{answer, downloads, forbidden, refused};
use super::manage::blocking;
use super::texts;
use crate::models::ModelName;
use crate::models::download::{Wish, parse_url, shown};
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;

pub(in crate::http) async fn install(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if !app.settings().allow_install {
        return Err(forbidden());
    }
    let [url, name, file] = texts(&app, &headers, body, ["url", "name", "fileName"]).await?;
    let invalid = |error: String| ApiError::new(Code::InvalidModel, error);
    let model = ModelName::parse(&name).map_err(|error| invalid(error.to_string()))?;
    // The file is called like the model; the name of a file is only looked at.
    ModelName::parse(&file).map_err(|error| invalid(error.to_string()))?;
    let catalogue = &app.library().collection().catalogue;
    if model.hub().is_some() || catalogue.find(&name).is_some() {
        return Err(invalid(format!(
            "{name} is the name of a known model: choose another one"
        )));
    }
    let url = parse_url(&url).map_err(|error| {
        ApiError::new(Code::InvalidRequest, error.to_string()).required(vec!["url"])
    })?;
    let downloads = downloads(&app)?;
    let shown = shown(&url);
    let wish = Wish::Url {
        name: model.clone(),
        url,
    };
    let started = blocking(move || downloads.start(wish)).await?;
    Ok(answer(
        &model.to_string(),
        &shown,
        &started.map_err(refused)?,
    ))
}
