//! Clients that leave, and clients that stay and do not read.

use crate::client::Connection;
use crate::server::{NDJSON, Server, greedy, long};
use serde_json::json;

const RUNNING: &str = "pocket_llm_requests_running";
const CANCELLATIONS: &str = "pocket_llm_cancellations_total";
const CANCELLED: &str = r#"pocket_llm_requests_total{endpoint="/ai/text",outcome="cancelled"}"#;

#[tokio::test]
async fn a_client_that_leaves_frees_its_sequence() {
    let server = Server::start(&["--ctx-size", "8192"]).await;
    let mut stream = server
        .stream(NDJSON, &long("Tell me a story.", 100_000))
        .await;
    stream.speaks().await;
    assert_eq!(server.metric(RUNNING).await, 1);
    drop(stream);
    server.metric_becomes(CANCELLATIONS, 1).await;
    server.metric_becomes(RUNNING, 0).await;
    // One that waits for its whole answer may leave too.
    let mut connection = Connection::open(server.address).await;
    let body = long("Tell me another story.", 100_000).to_string();
    connection
        .send("POST", "/ai/text", &[], body.as_bytes())
        .await;
    server.metric_becomes(RUNNING, 1).await;
    drop(connection);
    server.metric_becomes(CANCELLATIONS, 2).await;
    server.metric_becomes(RUNNING, 0).await;
    server.metric_becomes(CANCELLED, 2).await;
    let status = server.status().await;
    assert_eq!(status["queue"]["inFlight"], 0, "{status}");
    assert_eq!(status["ai"]["isProcessing"], false);
}

/// What it does not read waits for it in the server; nobody else does.
#[tokio::test]
async fn a_client_that_does_not_read_stops_nobody() {
    let server = Server::start(&["--parallel", "2", "--ctx-size", "2048"]).await;
    let slow = server.stream(NDJSON, &long("Tell me a story.", 400)).await;
    for _ in 0..4 {
        server.answer(greedy("Say hello.", 8)).await;
    }
    server.metric_becomes(RUNNING, 0).await;
    let objects = slow.objects().await;
    let (last, tokens) = objects.split_last().unwrap();
    assert_eq!(
        (&last["type"], &last["metadata"]["tokenCount"]),
        (&json!("complete"), &json!(400))
    );
    let text: String = tokens
        .iter()
        .map(|token| token["token"].as_str().unwrap())
        .collect();
    assert_eq!(last["fullText"], text);
    assert_eq!(server.metric(CANCELLATIONS).await, 0);
}
