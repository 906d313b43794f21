//! Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.
//!
//! Handlers, the key check and the router all answer with an [`ApiError`], which writes itself in the phone API's shape and
//! leaves itself in the response's extensions. [`in_the_paths_shape`] is the one place that writes it anew for paths of
//! this API, so nobody else needs to know which path asked.

use super::speaks;
use crate::http::caller::RequestId;
use crate::http::error::{ApiError, Code};
use crate::metrics::Limit;
use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use serde::Serialize;

/// The body of an error, and the last object of a stream that went wrong.
#[derive(Debug, Serialize)]
pub(super) struct Envelope {
    error: ErrorObject,
}

/// What official clients read.
#[derive(Debug, Serialize)]
pub(super) struct ErrorObject {
    message: String,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

impl From<&ApiError> for Envelope {
    fn from(error: &ApiError) -> Self {
        Self {
            error: error.into(),
        }
    }
}

impl From<&ApiError> for ErrorObject {
    fn from(error: &ApiError) -> Self {
        let message = match error.more() {
            Some(details) if !details.is_empty() => format!("{}: {details}", error.text()),
            _ => error.text().to_owned(),
        };
        let (kind, code) = kind_and_code(error);
        let unknown_model = code == Some("model_not_found");
        let param = error.parameter().map(str::to_owned);
        Self {
            message,
            kind,
            param: param.or_else(|| unknown_model.then(|| "model".into())),
            code,
        }
    }
}

/// The `type` and `code` of an error.
fn kind_and_code(error: &ApiError) -> (&'static str, Option<&'static str>) {
    const INVALID: &str = "invalid_request_error";
    const SERVER: &str = "server_error";
    match error.code() {
        Code::AiServiceError | Code::InvalidRequest
            if error.hit_limit() == Some(Limit::Context) =>
        {
            (INVALID, Some("context_length_exceeded"))
        }
        Code::AiServiceError | Code::InvalidRequest | Code::InvalidModel | Code::AuthRequired => {
            (INVALID, None)
        }
        Code::Unauthorized => ("authentication_error", Some("invalid_api_key")),
        Code::Forbidden | Code::StoragePermissionDenied => ("permission_error", Some("forbidden")),
        Code::NotFound => ("not_found", Some("not_found")),
        Code::ModelNotAvailable | Code::ModelNotFound | Code::ModelNotDownloaded => {
            ("not_found", Some("model_not_found"))
        }
        Code::MethodNotAllowed => (INVALID, Some("method_not_allowed")),
        Code::RequestTimeout => (INVALID, Some("request_timeout")),
        Code::PayloadTooLarge => (INVALID, Some("payload_too_large")),
        Code::RequestRefused => (INVALID, Some("request_refused")),
        Code::Overloaded => ("rate_limit_error", Some("rate_limit_exceeded")),
        Code::AiError | Code::RemovalError => (SERVER, Some("internal_error")),
        Code::NotImplemented => (SERVER, Some("not_implemented")),
        Code::EngineDied => (SERVER, Some("engine_died")),
        Code::NotReady => (SERVER, Some("not_ready")),
        Code::ShuttingDown => (SERVER, Some("shutting_down")),
        Code::DeadlineExceeded => (SERVER, Some("deadline_exceeded")),
    }
}

/// Writes errors in the shape that the path's clients read, and gives each answer its request's id. The outermost layer.
pub(in crate::http) async fn in_the_paths_shape(mut request: Request, next: Next) -> Response {
    let is_ours = speaks(request.uri().path());
    let id = RequestId::of(request.headers());
    let shown = id.header();
    request.extensions_mut().insert(id);
    let mut response = next.run(request).await;
    if let Some(shown) = shown {
        response.headers_mut().insert("x-request-id", shown);
    }
    let error = response.extensions_mut().remove::<ApiError>();
    let Some(error) = error.filter(|_| is_ours) else {
        return response;
    };
    let mut body = serde_json::to_vec(&Envelope::from(&error)).unwrap_or_default();
    body.push(b'\n');
    response.headers_mut().remove(header::CONTENT_LENGTH);
    *response.body_mut() = Body::from(body);
    response
}
