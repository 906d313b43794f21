//! What the server is and how it is used: `/`, `/help` and `/capabilities`. All of it comes from the table of
//! endpoints.

use super::super::app::App;
use super::super::endpoints::{ENDPOINTS, Endpoint, existing};
use super::super::error::Code;
use super::super::json;
use super::super::listen::Peer;
use super::{SERVER, VERSION, epoch_ms, text};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::time::SystemTime;

/// What a person sees first; the fields keep their order.
#[derive(Serialize)]
struct Index {
    server: &'static str,
    version: &'static str,
    message: String,
    documentation: &'static str,
    available_endpoints: Vec<String>,
}

/// `GET /`
pub(in crate::http) async fn index(State(app): State<App>) -> Response {
    let message = match app.readiness() {
        Ok(()) => match app.library().default() {
            Ok(model) => format!("{} answers at POST {}", model.name, text::PATH),
            Err(error) => error.to_string(),
        },
        Err(reason) => format!("not ready: {reason}"),
    };
    let body = Index {
        server: SERVER,
        version: VERSION,
        message,
        documentation: "/help",
        available_endpoints: existing().map(name).collect(),
    };
    json::pretty(StatusCode::OK, &body)
}

/// `GET /help`
pub(in crate::http) async fn help(headers: HeaderMap) -> Response {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let base_url = format!("http://{}", host.unwrap_or("localhost:8005"));
    let endpoints: Map<String, Value> = existing()
        .map(|endpoint| (name(endpoint), describe(endpoint, &base_url)))
        .collect();
    let absent: Map<String, Value> = ENDPOINTS
        .iter()
        .filter(|endpoint| !endpoint.exists)
        .map(|endpoint| (name(endpoint), endpoint.description.into()))
        .collect();
    let errors: Map<String, Value> = Code::ALL
        .iter()
        .map(|code| {
            let meaning = json!({"status": code.status().as_u16(), "meaning": code.meaning()});
            (code.as_str().into(), meaning)
        })
        .collect();
    let body = json!({
        "server": SERVER,
        "version": VERSION,
        "base_url": base_url,
        "endpoints": endpoints,
        "not_implemented": absent,
        "common_errors": errors,
        "error_shape": {"error": "one sentence", "code": "one of common_errors", "details": "what helps, or null"},
    });
    json::pretty(StatusCode::OK, &body)
}

/// `GET /capabilities`
pub(in crate::http) async fn capabilities(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
) -> Response {
    let body = json!({
        "server": SERVER,
        "version": VERSION,
        "capabilities": {
            "text_generation": true,
            "streaming": ["text/event-stream", "application/x-ndjson", "text/plain"],
            "chat_history": true,
            "model_management": app.downloads().is_some(),
            "object_detection": false,
            "image_input": false,
        },
        "features": features(),
        "port": peer.map(|Extension(peer)| peer.port),
        "timestamp": epoch_ms(SystemTime::now()),
    });
    json::pretty(StatusCode::OK, &body)
}

/// What of the phone this server can use.
pub(super) fn features() -> Value {
    json!({"location": false, "orientation": false, "camera": false, "ai": true})
}

fn name(endpoint: &Endpoint) -> String {
    format!("{} {}", endpoint.method, endpoint.path)
}

/// Stands for a name in sample requests.
const SAMPLE_MODEL: &str = "gemma-3-1b";

fn describe(endpoint: &Endpoint, base_url: &str) -> Value {
    let sample = endpoint.sample.unwrap_or_default();
    let mut described = json!({
        "description": endpoint.description,
        "sample_request": format!("curl -s {base_url}{}{sample}", endpoint.path.replace("{name}", SAMPLE_MODEL)),
    });
    if endpoint.path == text::PATH {
        let fields: Map<String, Value> = text::FIELDS
            .iter()
            .map(|field| (field.name.into(), field.about.into()))
            .collect();
        described["fields"] = fields.into();
    }
    described
}
