//! Keys: `Authorization: Bearer KEY` on everything but the probes.

use super::app::App;
use super::error::{ApiError, Code};
use super::phone;
use crate::metrics::Outcome;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::fmt;
use subtle::{Choice, ConstantTimeEq};

/// A secret that clients show. It can't be printed by accident.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// Wraps a key.
    pub fn new(key: String) -> Self {
        Self(key)
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for ApiKey {
    fn from(key: String) -> Self {
        Self::new(key.trim().to_owned())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Lets a request through if it needs no key or shows a right one.
pub(super) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let keys = &app.settings().keys;
    let path = request.uri().path();
    let free = keys.is_empty() || matches!(path, "/livez" | "/readyz");
    if free || shows_key(request.headers(), keys) {
        return next.run(request).await;
    }
    if path == phone::text::PATH {
        app.metrics().request(
            phone::text::PATH,
            Outcome::Error(Code::Unauthorized.outcome()),
        );
    }
    let error = ApiError::new(Code::Unauthorized, "this server needs a key")
        .details("send the header `Authorization: Bearer KEY` with a key of this server");
    let mut response = error.into_response();
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

fn shows_key(headers: &HeaderMap, keys: &[ApiKey]) -> bool {
    let shown = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, shown)| shown.trim_ascii());
    let Some(shown) = shown else { return false };
    // Every key is compared, and each in a time that tells its length at most.
    let any = keys.iter().fold(Choice::from(0), |any, key| {
        any | key.0.as_bytes().ct_eq(shown)
    });
    any.into()
}
