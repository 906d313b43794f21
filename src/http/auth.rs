//! `Authorization: Bearer KEY` on everything but the probes.

use super::app::App;
use super::error::{ApiError, Code};
use super::phone;
use crate::metrics::Outcome;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

/// Who showed which of several keys: a name that says nothing of the key, and is another one after a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeyHolder(pub(super) String);

impl KeyHolder {
    fn of(shown: &[u8]) -> Self {
        static SECRET: OnceLock<RandomState> = OnceLock::new();
        let name = SECRET.get_or_init(RandomState::new).hash_one(shown);
        Self(format!("key-{name:016x}"))
    }
}

/// What answers without a key, to anybody.
pub(super) fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

/// Lets a request through if it needs no key or shows a right one.
pub(super) async fn check(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let keys = &app.settings().keys;
    let shown = shown_key(request.headers());
    let is_right = !keys.is_open() && shown.is_some_and(|shown| keys.accept(shown));
    if is_right && keys.are_several() {
        let holder = shown.map(KeyHolder::of);
        if let Some(holder) = holder {
            request.extensions_mut().insert(holder);
        }
    }
    let path = request.uri().path();
    if is_right || keys.is_open() || is_probe(path) {
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

fn shown_key(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, shown) = value.split_at_checked(7)?;
    let shown = shown.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !shown.is_empty()).then_some(shown)
}
