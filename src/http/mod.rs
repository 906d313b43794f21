//! The door: HTTP in, requests to the engine, answers out.
//!
//! It owns sockets, wire formats, limits on what comes in, and keys. It never computes and never knows how a model
//! works: all that it sees of one is [`crate::engine`]. One table, in `endpoints`, is both the router and its
//! documentation.

pub mod listen;

mod app;
mod auth;
mod body;
mod caller;
mod endpoints;
mod error;
mod exporter;
mod foreign;
mod group;
mod json;
mod keys;
mod lifecycle;
mod negotiate;
mod openai;
mod openapi;
mod phone;
mod probes;
mod read;
mod schema;
mod socket;
mod timings;
mod tracked;

pub use app::{App, HttpSettings, Parts};
pub use foreign::Origins;
pub use keys::{ApiKey, KeyFileError, Keys};
pub use lifecycle::Lifecycle;
pub use listen::Peer;
pub use read::read_body;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use caller::QueueNote;

/// All endpoints, behind the key check, behind the check for other sites' pages.
pub fn router(app: App) -> Router {
    endpoints::ENDPOINTS
        .iter()
        .fold(Router::new(), |router, endpoint| {
            router.route(endpoint.path, (endpoint.route)())
        })
        .fallback(endpoints::not_found)
        .method_not_allowed_fallback(endpoints::wrong_method)
        .layer(from_fn_with_state(app.clone(), auth::check))
        .layer(from_fn_with_state(app.clone(), foreign::check))
        .layer(from_fn_with_state(app.clone(), common_headers))
        .layer(from_fn(openai::error::in_the_paths_shape))
        .with_state(app)
}

/// Headers that every answer carries. While the server drains, clients with open connections are sent away, so that their
/// next request goes to another pod.
async fn common_headers(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let queue = QueueNote::default();
    request.extensions_mut().insert(queue.clone());
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    queue.write(headers);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(name) = app.served_by() {
        headers.insert("x-served-by", name.clone());
    }
    if app.lifecycle().is_draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}
