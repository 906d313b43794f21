//! `GET /openapi.json`: the API as an OpenAPI 3.1 document.
//!
//! Made from what serves: routes from the table of endpoints, requests from the tables that check bodies, statuses from the
//! table of errors. Only the shapes of answers are written down here once more, in [`openai`] and [`phone`]; a test holds real
//! answers against them.

mod openai;
mod operations;
mod phone;
mod shapes;

use super::endpoints::{ENDPOINTS, Endpoint};
use super::error::Code;
use super::json;
use super::openai::speaks;
use axum::http::StatusCode;
use axum::response::Response;
use operations::Operation;
use serde_json::{Map, Value, json};

/// Where it is.
pub(super) const PATH: &str = "/openapi.json";

const JSON: &str = "application/json";

/// The handler.
pub(super) async fn show() -> Response {
    json::compact(StatusCode::OK, &document())
}

fn document() -> Value {
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let methods = paths.entry(endpoint.path).or_insert_with(|| json!({}));
        methods[endpoint.method.to_ascii_lowercase()] = operation(endpoint);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "pocket-llm",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "OpenAI's API under /v1, the phone API under /ai, and what a server shows of itself.",
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "needed if the server was started with keys"}},
            "schemas": {"Error": openai::error(), "PhoneError": phone::error()},
            "responses": errors(),
        },
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let described = Operation::of(endpoint);
    let id = format!("{} {}", endpoint.method, endpoint.path).to_ascii_lowercase();
    let words = id.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let mut operation = json!({
        "operationId": words.join("_"),
        "tags": [if speaks(endpoint.path) { "openai" } else { "phone" }],
        "summary": endpoint.description,
        "responses": responses(endpoint, &described),
    });
    if endpoint.path.contains("{name}") {
        operation["parameters"] = json!([{
            "name": "name", "in": "path", "required": true, "description": "a model's name, or another of its names",
            "schema": {"type": "string", "minLength": 1},
        }]);
    }
    if let Some(schema) = described.request {
        operation["requestBody"] = json!({
            "required": true,
            "description": "JSON, whatever type is declared",
            "content": {JSON: {"schema": schema}},
        });
    }
    if !endpoint.exists {
        // The phone API has it, this server never will.
        operation["deprecated"] = true.into();
    }
    if described.is_free {
        operation["security"] = json!([]);
    }
    operation
}

fn responses(endpoint: &Endpoint, described: &Operation) -> Value {
    let mut responses = Map::new();
    for (status, kind, schema) in &described.answers {
        let response = responses
            .entry(status.to_string())
            .or_insert_with(|| json!({"description": "the answer", "content": {}}));
        if described.waits {
            response["headers"] = queue_headers();
        }
        response["content"][*kind] = json!({"schema": schema});
    }
    let name = error_name(speaks(endpoint.path));
    for status in described.errors() {
        let shared = json!({"$ref": format!("#/components/responses/{name}{status}")});
        let both = |mut response: Value| {
            response["content"][JSON] =
                json!({"schema": {"$ref": format!("#/components/schemas/{name}")}});
            response
        };
        // A status that an answer has too is described there.
        let response = responses.remove(&status.to_string()).map_or(shared, both);
        responses.insert(status.to_string(), response);
    }
    responses.into()
}

/// What the answer of a request tells that went through a queue.
fn queue_headers() -> Value {
    let number = |description: &str| json!({"description": description, "schema": {"type": "integer", "minimum": 0}});
    json!({
        "X-Queue-Position": number("requests ahead of this one when it was accepted"),
        "X-Estimated-Wait-Ms": number("how long it was likely to wait then; absent where nothing was measured yet"),
    })
}

fn error_name(is_openai: bool) -> &'static str {
    if is_openai { "Error" } else { "PhoneError" }
}

/// What errors look like, by API and status.
fn errors() -> Value {
    let mut errors = Map::new();
    for name in [error_name(true), error_name(false)] {
        let schema = json!({"$ref": format!("#/components/schemas/{name}")});
        for code in Code::ALL {
            let status = code.status().as_u16();
            errors.insert(format!("{name}{status}"), error(status, &schema));
        }
    }
    errors.into()
}

fn error(status: u16, schema: &Value) -> Value {
    let codes = Code::ALL
        .iter()
        .filter(|code| code.status().as_u16() == status);
    let meanings: Vec<&str> = codes.map(|code| code.meaning()).collect();
    let mut response =
        json!({"description": meanings.join("; or "), "content": {JSON: {"schema": schema}}});
    let header = match status {
        401 => Some(("WWW-Authenticate", json!({"type": "string"}))),
        405 => Some(("Allow", json!({"type": "string"}))),
        429 | 503 | 504 => Some(("Retry-After", json!({"type": "integer", "minimum": 0}))),
        _ => None,
    };
    if let Some((name, schema)) = header {
        response["headers"] = json!({name: {"schema": schema}});
    }
    response
}
