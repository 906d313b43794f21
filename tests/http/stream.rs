//! `POST /ai/text` as a stream, byte for byte.

use crate::support::Server;
use crate::support::client::{Connection, Response};
use crate::support::scripted_worker::{accepted, finished, text};
use pocket_llm::engine::wire::RequestId;
use pocket_llm::engine::{EngineError, Event, FinishReason};
use serde_json::Value;
use std::time::Duration;

const SSE: &str = "text/event-stream";
const NDJSON: &str = "application/x-ndjson";
const PLAIN: &str = "text/plain";

/// Sends a prompt and accepts an answer of a type.
async fn ask(server: &Server, accept: &str, body: &str) -> (Connection, Response) {
    let mut client = Connection::open(server.address).await;
    client
        .send("POST", "/ai/text", &[("Accept", accept)], body.as_bytes())
        .await;
    let head = client.head().await;
    (client, head)
}

/// Begins a stream that the test goes on with.
async fn hold(server: &Server, accept: &str) -> (Connection, RequestId) {
    let mut client = Connection::open(server.address).await;
    client
        .send(
            "POST",
            "/ai/text",
            &[("Accept", accept)],
            br#"{"text":"hold"}"#,
        )
        .await;
    let (id, _) = server.worker.next_request().await;
    server.worker.emit(id, [accepted()]);
    assert_eq!(client.head().await.status, 200);
    (client, id)
}

/// Replaces the times that the front measures.
fn redact(text: &str) -> String {
    let mut text = text.to_owned();
    for name in ["\"elapsedTime\":", "\"queue_ms\":", "\"ttft_ms\":"] {
        if let Some(at) = text.find(name) {
            let from = at + name.len();
            let to = from + text[from..].find([',', '}']).unwrap();
            text.replace_range(from..to, "0");
        }
    }
    text
}

const TOKENS: [&str; 2] = [
    r#"{"type":"token","token":" Hello","model":"tiny"}"#,
    r#"{"type":"token","token":", \"wörld\"\n","model":"tiny"}"#,
];
const COMPLETE: &str = concat!(
    r#"{"type":"complete","fullText":" Hello, \"wörld\"\n","success":true,"elapsedTime":0,"model":"tiny","#,
    r#""metadata":{"model":"tiny","inferenceTime":50,"tokenCount":4,"temperature":1.0,"topK":64,"topP":0.95,"#,
    r#""backend":"CPU","isMultimodal":false,"promptTokens":5,"cachedTokens":2,"maxTokens":1024,"seed":7,"#,
    r#""finishReason":"stop"},"usage":{"promptTokens":5,"cachedTokens":2,"completionTokens":4,"totalTokens":9},"#,
    r#""timings":{"cache_n":2,"prompt_n":3,"prompt_ms":30.0,"prompt_per_token_ms":10.0,"#,
    r#""prompt_per_second":100.0,"predicted_n":4,"predicted_ms":20.0,"predicted_per_token_ms":5.0,"#,
    r#""predicted_per_second":200.0,"draft_n":0,"draft_n_accepted":0,"queue_ms":0,"ttft_ms":0},"thinking":null,"#,
    r#""license":"Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"}"#,
);

#[tokio::test]
async fn streams_have_three_formats() {
    let server = Server::start().await;
    let objects = [TOKENS[0], TOKENS[1], COMPLETE];
    let sse = objects.map(|object| format!("data: {object}\n\n")).concat();
    let ndjson = objects.map(|object| format!("{object}\n")).concat();
    let table = [
        (SSE, sse),
        (NDJSON, ndjson),
        (PLAIN, " Hello, \"wörld\"\n".to_owned()),
    ];
    for (accept, expected) in table {
        let (mut client, head) = ask(&server, accept, r#"{"text":"hi","seed":7}"#).await;
        assert_eq!(head.status, 200);
        let content_type = format!("{accept}; charset=utf-8");
        assert_eq!(head.header("content-type"), Some(content_type.as_str()));
        assert_eq!(head.header("cache-control"), Some("no-store"));
        assert_eq!(head.header("x-accel-buffering"), Some("no"));
        let (text, complete) = client.rest().await;
        assert!(complete);
        assert_eq!(redact(&text), expected);
        // The connection is kept.
        client.send("GET", "/livez", &[], b"").await;
        assert_eq!(client.response().await.status, 200);
    }
}

#[tokio::test]
async fn the_body_decides_before_accept() {
    let server = Server::start().await;
    let (_, head) = ask(&server, "*/*", r#"{"text":"hi","stream":true}"#).await;
    assert_eq!(
        head.header("content-type"),
        Some("text/event-stream; charset=utf-8")
    );
    let (_, head) = ask(&server, SSE, r#"{"text":"hi","stream":false}"#).await;
    assert_eq!(
        head.header("content-type"),
        Some("application/json; charset=utf-8")
    );
}

#[tokio::test]
async fn reasoning_has_its_own_objects_and_is_left_out_of_bare_text() {
    let server = Server::start().await;
    let (mut client, _) = ask(&server, NDJSON, r#"{"text":"think"}"#).await;
    let (lines, _) = client.rest().await;
    let objects: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = objects
        .iter()
        .map(|object| object["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["thinking", "thinking", "token", "token", "complete"]
    );
    assert_eq!(objects[4]["fullText"], "Done!");
    assert_eq!(objects[4]["thinking"], "Let me see.");
    let (mut client, _) = ask(&server, PLAIN, r#"{"text":"think"}"#).await;
    assert_eq!(client.rest().await, ("Done!".into(), true));
}

#[tokio::test]
async fn keep_alives_flow_while_nothing_else_does() {
    let server = Server::with(|options| {
        options.settings.keep_alive = Duration::from_millis(20);
    })
    .await;
    let (mut client, id) = hold(&server, SSE).await;
    assert_eq!(client.read_until("\n\n").await, ": keep-alive\n\n");
    assert_eq!(client.read_until("\n\n").await, ": keep-alive\n\n");
    server.worker.emit(id, [text("now")]);
    let token = client.read_until("data: ").await;
    assert!(token.ends_with("data: {\"type\":\"token\",\"token\":\"now\",\"model\":\"tiny\"}\n\n"));

    let (mut client, id) = hold(&server, NDJSON).await;
    assert_eq!(client.read_until("\n").await, "\n");
    server.worker.emit(id, [finished(FinishReason::Stop)]);
    let (rest, complete) = client.rest().await;
    assert!(complete && rest.trim_start().starts_with(r#"{"type":"complete""#));

    let (mut client, id) = hold(&server, PLAIN).await;
    // In the time of two keep-alives of a neighbour, bare text gets none.
    let (mut neighbour, _) = hold(&server, SSE).await;
    neighbour.read_until(": keep-alive\n\n").await;
    neighbour.read_until(": keep-alive\n\n").await;
    server
        .worker
        .emit(id, [text("bare"), finished(FinishReason::Stop)]);
    assert_eq!(client.rest().await, ("bare".into(), true));
}

#[tokio::test]
async fn tokens_flow_as_they_are_made() {
    let server = Server::start().await;
    let (mut client, id) = hold(&server, PLAIN).await;
    for piece in ["one ", "two ", "three"] {
        server.worker.emit(id, [text(piece)]);
        assert_eq!(client.chunk().await, Ok(Some(piece.as_bytes().to_vec())));
    }
    server.worker.emit(id, [finished(FinishReason::Stop)]);
    assert_eq!(client.chunk().await, Ok(None));
}

#[tokio::test]
async fn a_reader_that_leaves_cancels_its_request() {
    let server = Server::start().await;
    for accept in [SSE, NDJSON, PLAIN] {
        let (mut client, id) = hold(&server, accept).await;
        server.worker.emit(id, [text("a")]);
        client.read_until("a").await;
        drop(client);
        server.worker.cancelled(id).await;
    }
    let counted = r#"pocket_llm_requests_total{endpoint="/ai/text",outcome="cancelled"}"#;
    server.metric_becomes(counted, 3).await;
}

#[tokio::test]
async fn an_engine_that_dies_ends_each_format_in_its_way() {
    let server = Server::start().await;
    let (mut sse, sse_id) = hold(&server, SSE).await;
    let (mut ndjson, ndjson_id) = hold(&server, NDJSON).await;
    let (mut plain, plain_id) = hold(&server, PLAIN).await;
    for (client, id) in [
        (&mut sse, sse_id),
        (&mut ndjson, ndjson_id),
        (&mut plain, plain_id),
    ] {
        server
            .worker
            .emit(id, [Event::Started { cached_tokens: 0 }, text("so far")]);
        client.read_until("so far").await;
    }
    server.worker.die();
    let error = r#"{"type":"error","error":"the model's process ended while it answered (it ended by itself with status 0): ask again","code":"ENGINE_DIED","model":"tiny"}"#;
    assert_eq!(sse.rest().await, (format!("data: {error}\n\n"), true));
    assert_eq!(ndjson.rest().await, (format!("{error}\n"), true));
    assert_eq!(plain.rest().await, (String::new(), false));
    let counted = r#"pocket_llm_requests_total{endpoint="/ai/text",outcome="engine_died"}"#;
    server.metric_becomes(counted, 3).await;
}

#[tokio::test]
async fn text_before_an_error_still_goes_out() {
    let server = Server::start().await;
    let (mut client, id) = hold(&server, PLAIN).await;
    let error = EngineError::Internal("secret".into());
    server
        .worker
        .emit(id, [text("so far"), Event::Failed(error)]);
    assert_eq!(client.rest().await, ("so far".into(), false));
}
