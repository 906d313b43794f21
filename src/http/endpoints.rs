//! The table of endpoints: the router is built from it, `/` and `/help` show it.

use super::app::App;
use super::error::{ApiError, Code};
use super::{exporter, openai, openapi, phone, probes};
use axum::extract::MatchedPath;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};

/// One thing that can be asked for.
pub(super) struct Endpoint {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// What it does; for one that does not exist yet, why not.
    pub(super) description: &'static str,
    /// What `curl -s` needs besides the address.
    pub(super) sample: Option<&'static str>,
    /// Whether it does anything.
    pub(super) exists: bool,
    pub(super) route: fn() -> MethodRouter<App>,
}

const fn shows(
    path: &'static str,
    description: &'static str,
    route: fn() -> MethodRouter<App>,
) -> Endpoint {
    Endpoint {
        method: "GET",
        path,
        description,
        sample: Some(""),
        exists: true,
        route,
    }
}

const fn absent(method: &'static str, path: &'static str, description: &'static str) -> Endpoint {
    Endpoint {
        method,
        path,
        description,
        sample: None,
        exists: false,
        route: match method.as_bytes()[0] {
            b'G' => || get(not_implemented),
            b'D' => || delete(not_implemented),
            _ => || post(not_implemented),
        },
    }
}

const SENSOR: &str = "this server has no access to the phone's sensors, camera or screen";
const VISION: &str = "this server sees no pictures";

/// Everything, in the order in which it is shown.
#[rustfmt::skip] // A table reads best as one.
pub(super) static ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        method: "POST",
        path: phone::text::PATH,
        description: phone::text::DESCRIPTION,
        sample: Some(r#" -d '{"text":"Why is the sky blue?","maxTokens":200}'"#),
        exists: true,
        route: || post(phone::text::answer),
    },
    Endpoint {
        method: "POST",
        path: openai::chat::PATH,
        description: "OpenAI: the model's turn in a chat, whole or with \"stream\": true as it is made",
        sample: Some(r#" -d '{"messages":[{"role":"user","content":"Why is the sky blue?"}]}'"#),
        exists: true,
        route: || post(openai::chat::answer),
    },
    Endpoint {
        method: "POST",
        path: openai::completions::PATH,
        description: "OpenAI: what comes after a text, whole or with \"stream\": true as it is made",
        sample: Some(r#" -d '{"prompt":"Once upon a time","max_tokens":50}'"#),
        exists: true,
        route: || post(openai::completions::answer),
    },
    Endpoint {
        method: "POST",
        path: openai::responses::PATH,
        description: "OpenAI: items in, items out; nothing is stored",
        sample: Some(r#" -d '{"input":"Why is the sky blue?"}'"#),
        exists: true,
        route: || post(openai::responses::answer),
    },
    Endpoint {
        method: "POST",
        path: openai::embeddings::PATH,
        description: "OpenAI: texts as vectors",
        sample: Some(r#" -d '{"input":"The sky is blue."}'"#),
        exists: true,
        route: || post(openai::embeddings::answer),
    },
    shows(openai::models::PATH, "OpenAI: the models that can be asked", || get(openai::models::list)),
    shows(openai::models::ONE_PATH, "OpenAI: one of them", || get(openai::models::one)),
    Endpoint {
        method: "POST",
        path: openai::tokens::TOKENIZE,
        description: "a text as tokens",
        sample: Some(r#" -d '{"content":"The sky is blue."}'"#),
        exists: true,
        route: || post(openai::tokens::tokenize),
    },
    Endpoint {
        method: "POST",
        path: openai::tokens::DETOKENIZE,
        description: "tokens as a text",
        sample: Some(r#" -d '{"tokens":[504,6376]}'"#),
        exists: true,
        route: || post(openai::tokens::detokenize),
    },
    Endpoint {
        method: "POST",
        path: openai::tokens::APPLY_TEMPLATE,
        description: "a chat as the prompt that the model reads",
        sample: Some(r#" -d '{"messages":[{"role":"user","content":"hi"}]}'"#),
        exists: true,
        route: || post(openai::tokens::apply_template),
    },
    shows("/ai/models", "the models that can be asked", || get(phone::models::list)),
    Endpoint {
        method: "POST",
        path: "/ai/models/download",
        description: "fetches a model of the catalogue in the background",
        sample: Some(r#" -d '{"modelName":"gemma-3-1b"}'"#),
        exists: true,
        route: || post(phone::models::download::start),
    },
    shows("/ai/models/status", "the models on disk and in memory, with sizes and times", || get(phone::models::stored::all)),
    shows("/ai/models/loading-status", "what is being loaded and fetched; as a stream with Accept: text/event-stream", || get(phone::models::loading::status)),
    shows("/ai/models/diagnostics", "what is wrong with the models on disk, if anything, and what room there is", || get(phone::models::stored::diagnostics)),
    Endpoint {
        method: "GET",
        path: "/ai/models/{name}/status",
        description: "one model on disk",
        sample: Some(""),
        exists: true,
        route: || get(phone::models::stored::one),
    },
    Endpoint {
        method: "POST",
        path: phone::text::TEST_PATH,
        description: "loads a model, if it is not, and answers a prompt shortly",
        sample: Some(r#" -d '{"modelName":"gemma-3-1b","prompt":"hello"}'"#),
        exists: true,
        route: || post(phone::text::test),
    },
    Endpoint {
        method: "POST",
        path: "/ai/models/cleanup",
        description: "removes what broken-off downloads left",
        sample: Some(" -X POST"),
        exists: true,
        route: || post(phone::models::manage::cleanup),
    },
    Endpoint {
        method: "DELETE",
        path: "/ai/models/{name}",
        description: "deletes a model from the disk; needs the flag --allow-delete",
        sample: Some(" -X DELETE"),
        exists: true,
        route: || delete(phone::models::manage::remove),
    },
    Endpoint {
        method: "POST",
        path: "/ai/text/upload-model-api",
        description: "installs a model from a public URL; needs the flag --allow-install",
        sample: Some(r#" -d '{"url":"https://example.org/m.gguf","name":"m","fileName":"m.gguf"}'"#),
        exists: true,
        route: || post(phone::models::upload::install),
    },
    shows("/", "this list", || get(phone::info::index)),
    shows("/help", "all endpoints with their fields, samples and errors", || get(phone::info::help)),
    shows(openapi::PATH, "all of this as an OpenAPI 3.1 document", || get(openapi::show)),
    shows("/status", "what the server does now: model, queue, worker, uptime", || get(phone::status::status)),
    shows("/health", "whether the server can answer; 503 if not", || get(phone::status::health)),
    shows("/capabilities", "what the server can do", || get(phone::info::capabilities)),
    shows("/livez", "liveness probe: the front is sane; needs no key", || get(probes::live)),
    shows("/readyz", "readiness probe: requests should come here; needs no key", || get(probes::ready)),
    shows("/metrics", "counters and histograms as OpenMetrics text", || get(exporter::metrics)),

    absent("POST", "/ai/object_detection", VISION),
    absent("POST", "/camera/detect", VISION),
    absent("GET", "/orientation", SENSOR),
    absent("GET", "/capture", SENSOR),
    absent("GET", "/location", SENSOR),
    absent("POST", "/display", SENSOR),
];

/// Everything that exists.
pub(super) fn existing() -> impl Iterator<Item = &'static Endpoint> {
    ENDPOINTS.iter().filter(|endpoint| endpoint.exists)
}

async fn not_implemented(path: MatchedPath, method: Method) -> ApiError {
    let known = ENDPOINTS
        .iter()
        .find(|endpoint| endpoint.path == path.as_str() && !endpoint.exists);
    ApiError::new(
        Code::NotImplemented,
        format!("{method} {} is not implemented", path.as_str()),
    )
    .details(known.map_or("", |endpoint| endpoint.description))
}

/// No endpoint has the request's path.
pub(super) async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(
        Code::NotFound,
        format!("there is nothing at {}", uri.path()),
    )
    .details("GET / lists what exists")
}

/// No endpoint at the request's path has its method. The router adds the header `Allow`.
pub(super) async fn wrong_method(path: Option<MatchedPath>, method: Method) -> Response {
    if method == Method::OPTIONS {
        return StatusCode::NO_CONTENT.into_response();
    }
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    let methods: Vec<&str> = ENDPOINTS
        .iter()
        .filter(|endpoint| endpoint.path == path)
        .map(|endpoint| endpoint.method)
        .collect();
    let methods = methods.join(", ");
    let error = ApiError::new(
        Code::MethodNotAllowed,
        format!("{path} does not take {method}"),
    );
    let mut response = error.details(format!("it takes {methods}")).into_response();
    if let Ok(allow) = methods.replace("GET", "GET, HEAD").parse() {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}
