//! Errors as clients see them: one envelope, one table of codes, one mapping from the engine's errors.

use super::json;
use crate::engine::EngineError;
use crate::metrics::Limit;
use crate::models::NoModel;
use crate::models::store::StoreError;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Seconds after which a client may ask again when nothing better is known.
const RETRY_SECONDS: u32 = 5;

/// What went wrong, as a client's program sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    AiServiceError,
    InvalidRequest,
    InvalidModel,
    AuthRequired,
    Unauthorized,
    Forbidden,
    StoragePermissionDenied,
    NotFound,
    ModelNotAvailable,
    ModelNotFound,
    ModelNotDownloaded,
    MethodNotAllowed,
    RequestTimeout,
    PayloadTooLarge,
    RequestRefused,
    Overloaded,
    AiError,
    RemovalError,
    NotImplemented,
    EngineDied,
    NotReady,
    ShuttingDown,
    DeadlineExceeded,
}

impl Code {
    /// Every code, for the documentation.
    pub(super) const ALL: [Self; 23] = [
        Self::AiServiceError,
        Self::InvalidRequest,
        Self::InvalidModel,
        Self::AuthRequired,
        Self::Unauthorized,
        Self::Forbidden,
        Self::StoragePermissionDenied,
        Self::NotFound,
        Self::ModelNotAvailable,
        Self::ModelNotFound,
        Self::ModelNotDownloaded,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::PayloadTooLarge,
        Self::RequestRefused,
        Self::Overloaded,
        Self::AiError,
        Self::RemovalError,
        Self::NotImplemented,
        Self::EngineDied,
        Self::NotReady,
        Self::ShuttingDown,
        Self::DeadlineExceeded,
    ];

    /// Status, code on the wire, outcome in the metrics, and meaning.
    #[rustfmt::skip] // A table reads best as one.
    fn parts(self) -> (u16, &'static str, &'static str, &'static str) {
        match self {
            Self::AiServiceError => (400, "AI_SERVICE_ERROR", "bad_request", "the request can't be used as it is"),
            Self::InvalidRequest => (400, "INVALID_REQUEST", "bad_request", "a field is missing; `required` names those that are needed"),
            Self::InvalidModel => (400, "INVALID_MODEL", "bad_request", "no model can have, or has, this name"),
            Self::AuthRequired => (400, "AUTH_REQUIRED", "bad_request", "the model's publisher wants a login; `details` says how"),
            Self::Unauthorized => (401, "UNAUTHORIZED", "unauthorized", "the key is missing or wrong"),
            Self::Forbidden => (403, "FORBIDDEN", "forbidden", "this server was not started with the flag that allows it"),
            Self::StoragePermissionDenied => (403, "STORAGE_PERMISSION_DENIED", "no_storage", "the model directory can't be read or written"),
            Self::NotFound => (404, "NOT_FOUND", "not_found", "there is nothing at this path"),
            Self::ModelNotAvailable => (404, "MODEL_NOT_AVAILABLE", "unknown_model", "no model has this name, or it is not downloaded; `details` says what there is"),
            Self::ModelNotFound => (404, "MODEL_NOT_FOUND", "unknown_model", "no model has this name"),
            Self::ModelNotDownloaded => (404, "MODEL_NOT_DOWNLOADED", "unknown_model", "the model is known, but not on disk"),
            Self::MethodNotAllowed => (405, "METHOD_NOT_ALLOWED", "wrong_method", "the path takes another method, see the header Allow"),
            Self::RequestTimeout => (408, "REQUEST_TIMEOUT", "body_timeout", "the request's body came too slowly"),
            Self::PayloadTooLarge => (413, "PAYLOAD_TOO_LARGE", "too_large", "the request's body is too large"),
            Self::RequestRefused => (422, "REQUEST_REFUSED", "refused", "this very request ended the model's process before"),
            Self::Overloaded => (429, "OVERLOADED", "overloaded", "every place is taken, or as many as one client may have; see the header Retry-After"),
            Self::AiError => (500, "AI_ERROR", "internal", "a fault of the server; its log knows more"),
            Self::RemovalError => (500, "REMOVAL_ERROR", "internal", "the model's file could not be removed"),
            Self::NotImplemented => (501, "NOT_IMPLEMENTED", "not_implemented", "this server can't do that (yet)"),
            Self::EngineDied => (502, "ENGINE_DIED", "engine_died", "the model's process ended during the request; ask again"),
            Self::NotReady => (503, "NOT_READY", "not_ready", "the model is not loaded; see the header Retry-After"),
            Self::ShuttingDown => (503, "SHUTTING_DOWN", "shutting_down", "the server is going down"),
            Self::DeadlineExceeded => (504, "DEADLINE_EXCEEDED", "deadline_exceeded", "the request's deadline passed before an answer began, or would pass in the queue"),
        }
    }

    pub(super) fn status(self) -> StatusCode {
        StatusCode::from_u16(self.parts().0).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub(super) fn as_str(self) -> &'static str {
        self.parts().1
    }

    pub(super) fn outcome(self) -> &'static str {
        self.parts().2
    }

    pub(super) fn meaning(self) -> &'static str {
        self.parts().3
    }
}

/// An error on its way to a client.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ApiError {
    code: Code,
    error: String,
    details: Option<String>,
    /// Fields that the request must have.
    required: Vec<&'static str>,
    /// The field that is wrong, as a path such as `messages[0].content`.
    param: Option<String>,
    retry_after: Option<u32>,
    limit: Option<Limit>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: &'a str,
    code: &'static str,
    details: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    required: &'a [&'static str],
}

impl ApiError {
    /// An error with one sentence for a person.
    pub(super) fn new(code: Code, error: impl Into<String>) -> Self {
        Self {
            code,
            error: error.into(),
            details: None,
            required: Vec::new(),
            param: None,
            retry_after: None,
            limit: None,
        }
    }

    /// A request that must be changed.
    pub(super) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(Code::AiServiceError, error)
    }

    /// Adds what helps to get further.
    pub(super) fn details(mut self, details: impl Into<String>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// Names the fields that are needed.
    pub(super) fn required(mut self, fields: Vec<&'static str>) -> Self {
        self.required = fields;
        self
    }

    /// Names the field that is wrong.
    pub(super) fn param(mut self, path: impl Into<String>) -> Self {
        self.param = Some(path.into());
        self
    }

    /// Says when to come back.
    pub(super) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Names the limit that was hit.
    pub(super) fn limit(mut self, limit: Limit) -> Self {
        self.limit = Some(limit);
        self
    }

    pub(super) fn code(&self) -> Code {
        self.code
    }

    pub(super) fn text(&self) -> &str {
        &self.error
    }

    pub(super) fn more(&self) -> Option<&str> {
        self.details.as_deref()
    }

    pub(super) fn parameter(&self) -> Option<&str> {
        self.param.as_deref()
    }

    pub(super) fn hit_limit(&self) -> Option<Limit> {
        self.limit
    }
}

impl From<&EngineError> for ApiError {
    fn from(error: &EngineError) -> Self {
        let text = error.to_string();
        match error {
            EngineError::BadRequest(_) | EngineError::Unloadable(_) => Self::bad_request(text),
            EngineError::PromptTooLong { .. } => Self::bad_request(text).limit(Limit::Context),
            EngineError::Overloaded {
                retry_after_seconds,
                ..
            } => Self::new(Code::Overloaded, text)
                .retry_after(*retry_after_seconds)
                .limit(Limit::Places),
            EngineError::ShareTaken {
                retry_after_seconds,
                ..
            } => Self::new(Code::Overloaded, text)
                .retry_after(*retry_after_seconds)
                .limit(Limit::ClientShare),
            EngineError::DeadlineUnreachable { wait_seconds } => {
                Self::new(Code::DeadlineExceeded, text)
                    .retry_after(*wait_seconds)
                    .limit(Limit::Deadline)
            }
            EngineError::DeadlineExceeded => {
                Self::new(Code::DeadlineExceeded, text).limit(Limit::Deadline)
            }
            EngineError::EngineDied(_) => Self::new(Code::EngineDied, text),
            EngineError::NotReady(_) => Self::new(Code::NotReady, text).retry_after(RETRY_SECONDS),
            EngineError::ShuttingDown => {
                Self::new(Code::ShuttingDown, text).retry_after(RETRY_SECONDS)
            }
            EngineError::Refused(_) => Self::new(Code::RequestRefused, text),
            // What it was is nobody's business but the log's.
            EngineError::Internal(_) => Self::new(Code::AiError, "internal error")
                .details("the server's log says more; asking again may help"),
        }
    }
}

impl From<NoModel> for ApiError {
    fn from(error: NoModel) -> Self {
        let text = error.to_string();
        match error {
            NoModel::Unknown { available, .. } if available.is_empty() => {
                Self::new(Code::ModelNotAvailable, text).details(GET_A_MODEL)
            }
            NoModel::Unknown { available, .. } => Self::new(Code::ModelNotAvailable, text)
                .details(format!("available: {}", available.join(", "))),
            NoModel::NotDownloaded(name) => Self::new(Code::ModelNotAvailable, text).details(format!(
                "get it: POST /ai/models/download {{\"modelName\":\"{name}\"}}, or `pocket-llm pull {name}` on the server"
            )),
            NoModel::Damaged { .. } => Self::bad_request(text),
            NoModel::Nothing => Self::new(Code::ModelNotAvailable, text).details(GET_A_MODEL),
            NoModel::Store(_) => Self::new(Code::StoragePermissionDenied, text),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::new(Code::StoragePermissionDenied, error.to_string())
    }
}

/// What to do about an empty store.
const GET_A_MODEL: &str =
    "get one: POST /ai/models/download {\"modelName\":\"gemma-3-1b\"}; GET /ai/models lists more";

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let envelope = Envelope {
            error: &self.error,
            code: self.code.as_str(),
            details: self.details.as_deref(),
            required: &self.required,
        };
        let mut response = json::compact(self.code.status(), &envelope);
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        // The rest of such a body is read for politeness; the connection is not worth keeping.
        if matches!(self.code, Code::PayloadTooLarge | Code::RequestTimeout) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // For who writes it in another shape.
        response.extensions_mut().insert(self);
        response
    }
}
