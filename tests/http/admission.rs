//! Who gets a place, what a request learns of the queue, and which deadlines are refused at once.

use crate::support::client::{self, Connection};
use crate::support::scripted_worker::{finished, text};
use crate::support::{Options, Server, until};
use pocket_llm::engine::wire::RequestId;
use pocket_llm::engine::{Event, FinishReason, WorkerStats};
use pocket_llm::http::{ApiKey, Keys};

const HOLD: &str = r#"{"text":"hold"}"#;
const CHAT: &str = r#"{"messages":[{"role":"user","content":"hold"}],"stream":true}"#;

fn accepted(position: u32) -> Event {
    Event::Accepted {
        prompt_tokens: 5,
        position,
    }
}

/// A worker whose two sequences are taken.
fn full() -> WorkerStats {
    WorkerStats {
        running: 2,
        queued: 3,
        ..WorkerStats::default()
    }
}

/// Eight answers, so that their time is believed.
async fn served(server: &Server) {
    for _ in 0..8 {
        assert_eq!(
            server.post("/ai/text", r#"{"text":"hi"}"#).await.status,
            200
        );
        server.worker.next_request().await;
    }
    until(|| server.engine.load().served == 8).await;
}

/// Hands in a request that the worker holds.
async fn held(server: &Server, path: &str, body: &str) -> (Connection, RequestId) {
    let mut client = Connection::open(server.address).await;
    client.send("POST", path, &[], body.as_bytes()).await;
    let (id, _) = server.worker.next_request().await;
    (client, id)
}

#[tokio::test]
async fn a_stream_begins_with_its_place_in_the_queue() {
    let server = Server::start().await;
    for (path, body) in [
        ("/v1/chat/completions", CHAT),
        ("/ai/text", r#"{"text":"hold","stream":true}"#),
    ] {
        let (mut client, id) = held(&server, path, body).await;
        // 100 rows took 2 s.
        let stats = WorkerStats {
            prefill_rows: 50,
            decode_rows: 50,
            decode_us: 2_000_000,
            ..full()
        };
        server.worker.tell(id, accepted(3), stats);
        let head = client.head().await;
        assert_eq!(head.header("x-queue-position"), Some("3"), "{path}");
        let wait: u64 = head.header("x-estimated-wait-ms").unwrap().parse().unwrap();
        // A request that may take 1,024 rows or more is done in 20 s, and it is the fourth.
        assert!((80_000..400_000).contains(&wait), "{path}: {wait}");
        server.worker.emit(id, [finished(FinishReason::Stop)]);
        client.rest().await;
    }
}

#[tokio::test]
async fn nothing_is_guessed_before_anything_was_measured() {
    let server = Server::start().await;
    let (mut client, id) = held(&server, "/v1/chat/completions", CHAT).await;
    server.worker.tell(id, accepted(7), full());
    let head = client.head().await;
    assert_eq!(head.header("x-queue-position"), Some("7"));
    assert_eq!(head.header("x-estimated-wait-ms"), None);
}

#[tokio::test]
async fn who_need_not_wait_is_told_so_in_whole_answers_too() {
    let server = Server::start().await;
    served(&server).await;
    for path in ["/ai/text", "/v1/chat/completions"] {
        let body = r#"{"text":"hi","messages":[{"role":"user","content":"hi"}]}"#;
        let answer = server.post(path, body).await;
        assert_eq!(answer.header("x-queue-position"), Some("0"), "{path}");
        assert_eq!(answer.header("x-estimated-wait-ms"), Some("0"), "{path}");
    }
    // What asks no model has no place in a queue.
    assert_eq!(server.get("/livez").await.header("x-queue-position"), None);
}

#[tokio::test]
async fn pages_may_read_their_place_in_the_queue() {
    let server = Server::with(|options| {
        let origins = ["http://page.example".to_owned()];
        options.settings.origins = pocket_llm::http::Origins::new(&origins).unwrap();
    })
    .await;
    let page = [("Origin", "http://page.example")];
    let answer = client::ask(server.address, "GET", "/status", &page, b"").await;
    let exposed = answer.header("access-control-expose-headers").unwrap();
    for name in ["X-Queue-Position", "X-Estimated-Wait-Ms", "Retry-After"] {
        assert!(exposed.contains(name), "{exposed}");
    }
}

/// One client floods; another one's request still gets a place, and so does a third one's.
#[tokio::test]
async fn a_flood_of_one_client_leaves_places_to_others() {
    let server = Server::with(|options: &mut Options| {
        options.places = 8;
        let keys = ["flood", "modest"].map(|key| ApiKey::new(key.into()));
        options.settings.keys = Keys::new(&keys, None).unwrap();
    })
    .await;
    let flood = [("Authorization", "Bearer flood")];
    let modest = [("Authorization", "Bearer modest")];
    let mut clients = Vec::new();
    for _ in 0..7 {
        let mut client = Connection::open(server.address).await;
        client
            .send("POST", "/ai/text", &flood, HOLD.as_bytes())
            .await;
        server.worker.next_request().await;
        clients.push(client);
    }
    let refused = client::ask(server.address, "POST", "/ai/text", &flood, HOLD.as_bytes()).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "OVERLOADED")
    );
    assert!(
        refused.text().contains("7 requests of yours"),
        "{}",
        refused.text()
    );
    let seconds: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds));
    for path in ["/tokenize", "/v1/embeddings"] {
        let body = r#"{"content":"a","input":"a"}"#;
        let refused = client::ask(server.address, "POST", path, &flood, body.as_bytes()).await;
        assert_eq!(refused.status, 429, "{path}");
        let answered = client::ask(server.address, "POST", path, &modest, body.as_bytes()).await;
        assert_eq!(answered.status, 200, "{path}");
    }
    let answered = client::ask(
        server.address,
        "POST",
        "/ai/text",
        &modest,
        br#"{"text":"hi"}"#,
    )
    .await;
    assert_eq!(answered.status, 200);
    // The counters, which a key opens like everything else.
    let metrics = client::ask(server.address, "GET", "/metrics", &modest, b"").await;
    let counted = "pocket_llm_limits_hit_total{limit=\"client_share\"} 3\n";
    assert!(metrics.text().contains(counted), "{}", metrics.text());
    // What was taken is given back.
    drop(clients);
    until(|| server.engine.in_flight() == 0).await;
    let again = client::ask(
        server.address,
        "POST",
        "/ai/text",
        &flood,
        br#"{"text":"hi"}"#,
    )
    .await;
    assert_eq!(again.status, 200);
}

#[tokio::test]
async fn a_deadline_that_would_pass_in_the_queue_is_refused_at_once() {
    let server = Server::start().await;
    served(&server).await;
    for (path, field) in [
        ("/ai/text", r#""text":"hold","deadlineMs":20000"#),
        (
            "/v1/chat/completions",
            r#""messages":[{"role":"user","content":"hold"}],"stream":true,"deadline_ms":20000"#,
        ),
    ] {
        let (mut client, id) = held(&server, path, &format!("{{{field}}}")).await;
        server.worker.tell(id, accepted(u32::MAX), full());
        let refused = client.response().await;
        assert_eq!(refused.status, 504, "{path}");
        let text = refused.text();
        assert!(text.to_uppercase().contains("DEADLINE_EXCEEDED"), "{text}");
        assert!(
            refused.text().contains("would wait about"),
            "{}",
            refused.text()
        );
        assert!(refused.header("retry-after").is_some());
        server.worker.cancelled(id).await;
        until(|| server.engine.in_flight() == 0).await;
    }
    assert_eq!(
        server
            .metric(r#"pocket_llm_limits_hit_total{limit="deadline"}"#)
            .await,
        2
    );
}

#[tokio::test]
async fn deadlines_are_not_refused_for_a_guess_or_on_an_idle_server() {
    let server = Server::start().await;
    let body = r#"{"text":"hold","deadlineMs":20000}"#;
    // Nothing was measured: whatever the queue is like, the request may try.
    let (mut guess, id) = held(&server, "/ai/text", body).await;
    server.worker.tell(id, accepted(u32::MAX), full());
    server
        .worker
        .emit(id, [text("a"), finished(FinishReason::Stop)]);
    assert_eq!(guess.response().await.status, 200);
    served(&server).await;
    // A sequence is idle: its turn is now.
    let (mut idle, id) = held(&server, "/ai/text", body).await;
    server
        .worker
        .tell(id, accepted(u32::MAX), WorkerStats::default());
    server
        .worker
        .emit(id, [text("a"), finished(FinishReason::Stop)]);
    assert_eq!(idle.response().await.status, 200);
}
