//! Errors in OpenAI's shape, wherever they come from.

use super::post;
use crate::support::client::{Connection, ask};
use crate::support::scripted_worker::{LoadScript, accepted, text};
use crate::support::{Server, until};
use pocket_llm::http::{ApiKey, Keys};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

/// The error's four fields.
fn error(body: &Value) -> &Value {
    let error = &body["error"];
    assert!(error["message"].is_string(), "{body}");
    for name in ["type", "param", "code"] {
        assert!(error.get(name).is_some(), "{body}");
    }
    error
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let server = Server::start().await;
    let say = |more: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        body
    };
    let part = |part: Value| json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]});
    let tool = json!({"type": "function", "function": {"name": "a b"}});
    let twice = json!({"type": "function", "function": {"name": "a"}});
    let bodies = [
        json!({}),
        json!({"messages": []}),
        json!({"messages": "hi"}),
        json!({"messages": ["hi"]}),
        json!({"messages": [{"content": "hi"}]}),
        json!({"messages": [{"role": "robot", "content": "hi"}]}),
        json!({"messages": [{"role": "user"}]}),
        json!({"messages": [{"role": "user", "content": 5}]}),
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}),
        json!({"messages": [{"role": "tool", "content": "a"}]}),
        part(json!({"type": "image_url", "image_url": {"url": "data:"}})),
        part(json!({"type": "input_audio", "input_audio": {}})),
        part(json!({"type": "text"})),
        say(json!({"temperature": 2.5})),
        say(json!({"temperature": "hot"})),
        say(json!({"top_p": -0.1})),
        say(json!({"max_tokens": 0})),
        say(json!({"max_tokens": 1.5})),
        say(json!({"n": 0})),
        say(json!({"n": 9})),
        say(json!({"stop": ["a", ""]})),
        say(json!({"stop": vec!["a"; 17]})),
        say(json!({"stop": 5})),
        say(json!({"seed": "x"})),
        say(json!({"logit_bias": {"5": 101}})),
        say(json!({"logit_bias": {"five": 1}})),
        say(json!({"top_logprobs": 2})),
        say(json!({"logprobs": true, "top_logprobs": 21})),
        say(json!({"stream": "yes"})),
        say(json!({"stream_options": {"include_usage": 1}})),
        say(json!({"tools": [tool]})),
        say(json!({"tools": [twice, twice]})),
        say(json!({"tools": [{"type": "web_search"}]})),
        say(json!({"tool_choice": "required"})),
        say(json!({"tool_choice": {"type": "function", "function": {"name": "b"}}})),
        say(json!({"response_format": {"type": "xml"}})),
        say(json!({"response_format": {"type": "json_schema"}})),
        say(json!({"response_format": "json"})),
        say(json!({"grammar": "a", "json_schema": {}})),
        say(json!({"model": 5})),
    ];
    let mut told = Vec::new();
    for body in bodies {
        let response = post(&server, CHAT, &body).await;
        assert_eq!(response.status, 400, "{body}");
        let json = response.json();
        let error = error(&json);
        assert_eq!(error["type"], "invalid_request_error");
        told.push(format!(
            "{}: {}",
            error["param"].as_str().unwrap_or("-"),
            error["message"].as_str().unwrap()
        ));
    }
    insta::assert_json_snapshot!("openai_wrong_fields", told);
}

#[tokio::test]
async fn every_path_under_v1_has_the_shape() {
    let server = Server::start().await;
    let table = [
        ("GET", "/v1", "", 404, "not_found"),
        ("GET", "/v1/nothing", "", 404, "not_found"),
        ("GET", CHAT, "", 405, "invalid_request_error"),
        ("POST", CHAT, "", 400, "invalid_request_error"),
        ("POST", CHAT, "{", 400, "invalid_request_error"),
        ("POST", CHAT, "[]", 400, "invalid_request_error"),
        ("POST", CHAT, "\u{7f}", 400, "invalid_request_error"),
        (
            "POST",
            CHAT,
            r#"{"model":"nobody","messages":[{"role":"user","content":"hi"}]}"#,
            404,
            "not_found",
        ),
    ];
    for (method, path, body, status, kind) in table {
        let response = ask(server.address, method, path, &[], body.as_bytes()).await;
        assert_eq!(response.status, status, "{method} {path} {body}");
        let json = response.json();
        assert_eq!(error(&json)["type"], kind, "{method} {path} {body}");
        assert!(response.header("x-request-id").is_some());
    }
    let unknown = json!({"model": "nobody", "messages": [{"role": "user", "content": "hi"}]});
    let unknown = post(&server, CHAT, &unknown).await.json();
    assert_eq!(error(&unknown)["code"], "model_not_found");
    assert_eq!(error(&unknown)["param"], "model");
    let phone = server.get("/ai/nothing").await;
    assert_eq!(phone.code(), "NOT_FOUND", "the phone API keeps its own");
    let headers = [("X-Request-Id", "mine-1")];
    let own = ask(server.address, "GET", "/v1/x", &headers, b"").await;
    assert_eq!(own.header("x-request-id"), Some("mine-1"));
}

#[tokio::test]
async fn limits_and_keys_have_the_shape() {
    let server = Server::with(|options| {
        options.settings.keys = Keys::new(&[ApiKey::new("key".into())], None).unwrap();
        options.settings.body_limit = 1000;
        options.places = 1;
    })
    .await;
    let refused = server.get("/v1/models").await;
    assert_eq!(refused.status, 401);
    assert_eq!(error(&refused.json())["type"], "authentication_error");
    assert_eq!(error(&refused.json())["code"], "invalid_api_key");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let headers = [("Authorization", "Bearer key")];
    let large = ask(server.address, "POST", CHAT, &headers, &[b' '; 1001]).await;
    assert_eq!(large.status, 413);
    assert_eq!(error(&large.json())["code"], "payload_too_large");
    let hold = br#"{"messages":[{"role":"user","content":"hold"}]}"#;
    let mut first = Connection::open(server.address).await;
    first.send("POST", CHAT, &headers, hold).await;
    let (id, _) = server.worker.next_request().await;
    server.worker.emit(id, [accepted(), text("a")]);
    let full = ask(server.address, "POST", CHAT, &headers, hold).await;
    assert_eq!(full.status, 429);
    assert_eq!(error(&full.json())["type"], "rate_limit_error");
    assert!(full.header("retry-after").is_some());
    until(|| server.engine.in_flight() == 1).await;
    server.worker.die();
    let died = first.response().await;
    assert_eq!(died.status, 502);
    assert_eq!(error(&died.json())["code"], "engine_died");
    let unready = Server::with(|options| options.load = LoadScript::ByHand).await;
    until(|| unready.worker.lives()).await;
    unready.worker.fail_to_load("no memory");
    let hi = json!({"messages": [{"role": "user", "content": "hi"}]});
    let response = post(&unready, CHAT, &hi).await;
    assert_eq!(response.status, 503);
    assert_eq!(error(&response.json())["type"], "server_error");
    assert!(response.header("retry-after").is_some());
}
