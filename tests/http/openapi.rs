//! `/openapi.json`: what it promises is what is served.

use crate::support::Server;
use crate::support::client::ask;
use crate::support::json_schema::valid;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

#[tokio::test]
async fn the_document() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").await;
    assert_eq!(document.status, 200);
    insta::assert_json_snapshot!("openapi", document.json(), {".info.version" => "[version]"});
}

#[tokio::test]
async fn every_route_is_in_it() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").await.json();
    let help = server.get("/help").await.json();
    let mut routes: Vec<String> = Vec::new();
    for name in ["endpoints", "not_implemented"] {
        routes.extend(help[name].as_object().unwrap().keys().cloned());
    }
    let mut documented: Vec<String> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            documented.push(format!("{} {path}", method.to_uppercase()));
        }
    }
    routes.sort();
    documented.sort();
    assert_eq!(documented, routes);
}

/// What can be looked at.
const SHOWN: [&str; 16] = [
    "/v1/models",
    "/v1/models/{name}",
    "/ai/models",
    "/ai/models/status",
    "/ai/models/loading-status",
    "/ai/models/diagnostics",
    "/ai/models/{name}/status",
    "/",
    "/help",
    "/openapi.json",
    "/status",
    "/health",
    "/capabilities",
    "/livez",
    "/readyz",
    "/metrics",
];

/// Bodies that are answered, and some that are not.
#[rustfmt::skip] // A table reads best as one.
fn samples() -> Vec<(&'static str, &'static str, Value)> {
    let chat = |word: &str| json!({"messages": [{"role": "user", "content": word}]});
    let with = |mut body: Value, more: Value| {
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let tools = json!({"tools": [{"type": "function", "function": {"name": "weather"}}], "n": 2});
    let flat = json!({"input": "calls", "tools": [{"type": "function", "name": "weather"}]});
    let mut samples = vec![
        ("POST", "/v1/chat/completions", chat("think")),
        ("POST", "/v1/chat/completions", with(chat("calls"), tools)),
        ("POST", "/v1/chat/completions", with(chat("hi"), json!({"logprobs": true, "top_logprobs": 2}))),
        ("POST", "/v1/chat/completions", with(chat("hi"), json!({"stream": true}))),
        ("POST", "/v1/completions", json!({"prompt": "a"})),
        ("POST", "/v1/completions", json!({"prompt": "a", "echo": true, "logprobs": 2})),
        ("POST", "/v1/completions", json!({"prompt": "a", "logprobs": 0})),
        ("POST", "/v1/responses", json!({"input": "think"})),
        ("POST", "/v1/responses", json!({"input": "think", "top_logprobs": 2, "include": ["message.output_text.logprobs"]})),
        ("POST", "/v1/responses", json!({"input": "long", "stream": true})),
        ("POST", "/v1/responses", flat),
        ("POST", "/v1/embeddings", json!({"input": "a"})),
        ("POST", "/v1/embeddings", json!({"input": "a", "encoding_format": "base64"})),
        ("POST", "/tokenize", json!({"content": "hö"})),
        ("POST", "/tokenize", json!({"content": "hö", "with_pieces": true})),
        ("POST", "/detokenize", json!({"tokens": [104]})),
        ("POST", "/apply-template", chat("hi")),
        ("POST", "/ai/text", json!({"text": "think"})),
        ("POST", "/ai/text", json!({"text": "hi", "stream": true})),
        ("POST", "/ai/models/test", json!({"modelName": "tiny", "prompt": "hi"})),
        ("POST", "/ai/models/cleanup", Value::Null),
        ("POST", "/ai/models/download", json!({"modelName": "x"})),
        ("POST", "/ai/text/upload-model-api", json!({})),
        ("POST", "/camera/detect", json!({})),
        ("DELETE", "/ai/models/{name}", Value::Null),
    ];
    samples.extend(SHOWN.map(|path| ("GET", path, Value::Null)));
    samples
}

#[tokio::test]
async fn answers_are_as_promised() {
    let server = Server::start().await;
    let document = server.get("/openapi.json").await.json();
    for (method, path, body) in samples() {
        check(&server, &document, (method, path), &body).await;
        if method == "POST" {
            // No body, a wrong one.
            check(&server, &document, (method, path), &Value::Null).await;
            check(&server, &document, (method, path), &json!([])).await;
        }
    }
}

/// Asks, and holds status, type and body of the answer against the document.
async fn check(
    server: &Server,
    document: &Value,
    (method, path): (&str, &str),
    body: &Value,
) -> u16 {
    let sent = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let real = path.replace("{name}", "tiny");
    let response = ask(server.address, method, &real, &[], sent.as_bytes()).await;
    let operation = &document["paths"][path][method.to_ascii_lowercase()];
    let mut promised = &operation["responses"][response.status.to_string()];
    if let Some(shared) = promised["$ref"].as_str() {
        promised = document.pointer(&shared[1..]).expect(shared);
    }
    assert!(
        promised.is_object(),
        "{method} {path} {sent}: {}",
        response.status
    );
    let kind = response.header("content-type").unwrap();
    let kind = kind.split(';').next().unwrap();
    let schema = &promised["content"][kind]["schema"];
    assert!(schema.is_object(), "{method} {path}: {kind}");
    if kind == "application/json" {
        let fault = valid(document, schema, &response.json());
        assert_eq!(fault, Ok(()), "{method} {path} {sent}: {}", response.text());
    }
    response.status
}

/// Any JSON, not deep.
fn values() -> impl Strategy<Value = Value> {
    let words = [
        "", "a", "json", "auto", "user", "text", "function", "-1", "0", "ö\u{0}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3_i64..30).prop_map(Value::from),
        (-3.0_f64..3.0).prop_map(Value::from),
        proptest::sample::select(words.to_vec()).prop_map(Value::from),
    ];
    let names = [
        "type",
        "role",
        "content",
        "text",
        "function",
        "name",
        "5",
        "schema",
        "include_usage",
    ];
    leaf.prop_recursive(3, 12, 3, move |inner| {
        let pair = (proptest::sample::select(names.to_vec()), inner.clone());
        prop_oneof![
            proptest::collection::vec(inner, 0..3).prop_map(Value::from),
            proptest::collection::vec(pair, 0..4).prop_map(|pairs| {
                let pairs = pairs
                    .into_iter()
                    .map(|(name, value)| (name.to_owned(), value));
                pairs.collect::<Map<_, _>>().into()
            }),
        ]
    })
}

/// A body that would be answered, with some of its fields replaced or removed.
fn changed(body: &Value, schema: &Value, runner: &mut TestRunner) -> Value {
    let names: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    let mut changed = body.clone();
    for _ in 0..=pick(2, runner) {
        let name = names[pick(names.len(), runner)];
        if pick(8, runner) == 0 {
            changed.as_object_mut().unwrap().remove(name);
        } else {
            let value = values().new_tree(runner).unwrap().current();
            changed[name.as_str()] = value;
        }
    }
    changed
}

fn pick(most: usize, runner: &mut TestRunner) -> usize {
    (0..most).new_tree(runner).unwrap().current()
}

/// Rules between fields, or on names of models, that a schema does not tell.
fn is_beyond_the_schema(body: &Value) -> bool {
    let has = |name: &str| body.get(name).is_some_and(|value| !value.is_null());
    let forms = ["response_format", "grammar", "json_schema"];
    let forms = forms.iter().filter(|name| has(name)).count();
    has("tools")
        || has("tool_choice")
        || has("messages")
        || has("n")
        || has("best_of")
        || has("max_tokens")
        || has("dimensions")
        || forms > 1
}

#[tokio::test]
async fn whatever_is_sent_the_answer_is_one_of_those_promised() {
    let server = Server::with(|options| options.places = 16).await;
    let document = server.get("/openapi.json").await.json();
    let mut runner = TestRunner::deterministic();
    let (mut answered, mut refused) = (0, 0);
    for (method, path, body) in samples() {
        let operation = &document["paths"][path][method.to_ascii_lowercase()];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if body.is_null() || !schema.is_object() || path == "/ai/models/download" {
            continue;
        }
        for _ in 0..60 {
            let changed = changed(&body, schema, &mut runner);
            let status = check(&server, &document, (method, path), &changed).await;
            assert!(status < 500, "{path} {changed}: {status}");
            answered += u32::from(status == 200);
            refused += u32::from(status == 400);
            match valid(&document, schema, &changed) {
                Err(fault) => assert!((400..500).contains(&status), "{path} {changed}: {fault}"),
                Ok(()) if is_beyond_the_schema(&changed) => {}
                Ok(()) => assert_ne!(status, 400, "{path} {changed}"),
            }
        }
    }
    // Both happened often enough to mean something.
    assert!(answered > 50 && refused > 50, "{answered} {refused}");
}
