//! `POST /ai/text/upload-model-api`: installs a model from a public URL.

use super::super::super::app::{App, blocking};
use super::super::super::error::{ApiError, Code};
use super::super::super::schema::{Field, needed};
use super::download::{answer, downloads, forbidden, refused};
use super::{WORDS, texts};
use crate::models::ModelName;
use crate::models::download::{Wish, is_public, parse_url, shown};
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use std::net::IpAddr;

/// The fields of a request.
pub(in crate::http) const FIELDS: &[Field; 3] = &[
    needed(
        "url",
        WORDS,
        "where the file is: http or https, at a public address",
    ),
    needed("name", WORDS, "what the model is to be called"),
    needed(
        "fileName",
        WORDS,
        "the file's name; the model's name is what counts",
    ),
];

pub(in crate::http) async fn install(
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    if !app.settings().allow_install {
        return Err(forbidden());
    }
    let [url, name, file] = texts(&app, &headers, body, FIELDS).await?;
    let invalid = |error: String| ApiError::new(Code::InvalidModel, error);
    let model = ModelName::parse(&name).map_err(|error| invalid(error.to_string()))?;
    // The file is called like the model; the name of a file is only looked at.
    ModelName::parse(&file).map_err(|error| invalid(error.to_string()))?;
    let catalogue = &app.library().collection().catalogue;
    let taken = catalogue.find(&name).is_some() || app.library().is_name_of_default(&name);
    if model.hub().is_some() || taken {
        return Err(invalid(format!(
            "{name} is the name of a known model: choose another one"
        )));
    }
    let url = parse_url(&url).map_err(|error| {
        ApiError::new(Code::InvalidRequest, error.to_string()).required(vec!["url"])
    })?;
    // A name is looked up when its turn comes; an address can be refused now.
    let host = url.host().unwrap_or_default();
    let literal = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    if literal.is_ok_and(|address| !is_public(address)) {
        return Err(ApiError::new(
            Code::InvalidRequest,
            format!("{host} is no public address, so nothing is fetched from there"),
        ));
    }
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
        &started.map_err(|error| refused(&error))?,
    ))
}
