//! Limits: what happens at each of them, and that the rest of the server does not notice.

use crate::support::client::{Connection, ask};
use crate::support::scripted_worker::{accepted, finished, text};
use crate::support::{Server, until, within};
use pocket_llm::engine::FinishReason;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn every_place_taken_is_429() {
    let server = Server::with(|options| options.places = 1).await;
    let mut client = Connection::open(server.address).await;
    client
        .send("POST", "/ai/text", &[], br#"{"text":"hold"}"#)
        .await;
    let (id, _) = server.worker.next_request().await;
    let response = server.post("/ai/text", r#"{"text":"hi"}"#).await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (429, "OVERLOADED")
    );
    let seconds: u32 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds));
    assert_eq!(
        server
            .metric(r#"pocket_llm_limits_hit_total{limit="places"}"#)
            .await,
        1
    );
    drop(client);
    server.worker.cancelled(id).await;
    until(|| server.engine.in_flight() == 0).await;
    assert_eq!(
        server.post("/ai/text", r#"{"text":"hi"}"#).await.status,
        200
    );
}

/// A client that writes 20 MiB before it reads, as many do, must find the 413 and not a reset.
#[tokio::test]
async fn a_413_reaches_a_client_that_keeps_sending() {
    let server = Server::start().await;
    let announced = "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20971520\r\n\r\n";
    let chunked = "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1400000\r\n";
    let elsewhere = "POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20971520\r\n\r\n";
    for (head, status) in [(announced, 413), (chunked, 413), (elsewhere, 404)] {
        let mut client = Connection::open(server.address).await;
        let stream = client.stream.get_mut();
        within(stream.write_all(head.as_bytes())).await.unwrap();
        let part = vec![b'a'; MIB];
        for _ in 0..20 {
            within(stream.write_all(&part)).await.unwrap();
        }
        if status == 413 && head == chunked {
            within(stream.write_all(b"\r\n0\r\n\r\n")).await.unwrap();
        }
        let response = client.response().await;
        assert_eq!(response.status, status);
        if status == 413 {
            assert_eq!(response.code(), "PAYLOAD_TOO_LARGE");
            assert_eq!(response.header("connection"), Some("close"));
            assert!(client.is_closed().await);
        }
    }
    assert_eq!(
        server
            .metric(r#"pocket_llm_limits_hit_total{limit="body_size"}"#)
            .await,
        2
    );
}

#[tokio::test]
async fn an_unwanted_body_is_not_read_for_ever() {
    let server = Server::with(|options| options.settings.drain_limit = MIB as u64).await;
    let mut client = Connection::open(server.address).await;
    let head = "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000000\r\n\r\n";
    let stream = client.stream.get_mut();
    stream.write_all(head.as_bytes()).await.unwrap();
    let part = vec![b'a'; MIB];
    let refused = within(async {
        loop {
            if let Err(error) = stream.write_all(&part).await {
                return error;
            }
        }
    });
    refused.await;
}

#[tokio::test]
async fn a_body_that_is_announced_and_waits_for_a_word_is_refused_at_once() {
    let server = Server::start().await;
    let mut client = Connection::open(server.address).await;
    let head = "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20971520\r\nExpect: 100-continue\r\n\r\n";
    client
        .stream
        .get_mut()
        .write_all(head.as_bytes())
        .await
        .unwrap();
    assert_eq!(client.response().await.status, 413);
    let mut client = Connection::open(server.address).await;
    let body = br#"{"text":"hi"}"#;
    let head = format!(
        "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n",
        body.len()
    );
    client
        .stream
        .get_mut()
        .write_all(head.as_bytes())
        .await
        .unwrap();
    assert_eq!(client.head().await.status, 100);
    client.stream.get_mut().write_all(body).await.unwrap();
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test]
async fn a_body_up_to_the_limit_is_taken() {
    let server = Server::with(|options| {
        options.settings.body_limit = MIB;
        options.settings.body_memory = 0;
    })
    .await;
    let body = |length: usize| format!("{{\"text\":\"{}\"}}", "a".repeat(length - 11));
    assert_eq!(server.post("/ai/text", body(MIB)).await.status, 200);
    assert_eq!(server.post("/ai/text", body(MIB + 1)).await.status, 413);
    // A large text holds the memory until the engine has found that it fits, so there is none for another.
    let mut large = Connection::open(server.address).await;
    let held = body(MIB).replacen("aaaaa", "hold ", 1);
    large.send("POST", "/ai/text", &[], held.as_bytes()).await;
    let id = loop {
        let (id, request) = server.worker.next_request().await;
        if format!("{:?}", request.prompt).contains("hold ") {
            break id;
        }
    };
    let refused = server.post("/ai/text", body(MIB)).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (429, "OVERLOADED")
    );
    let small = server.post("/ai/text", r#"{"text":"hi"}"#).await;
    assert_eq!(small.status, 200);
    server.worker.emit(id, [accepted()]);
    within(async { while server.post("/ai/text", body(MIB)).await.status != 200 {} }).await;
    server.worker.emit(id, [finished(FinishReason::Stop)]);
    assert_eq!(large.response().await.status, 200);
}

#[tokio::test]
async fn slow_senders_are_cut_off() {
    let server = Server::with(|options| {
        options.settings.body_pause = Duration::from_millis(50);
        options.settings.header_timeout = Duration::from_millis(50);
        options.settings.drain_time = Duration::from_millis(50);
    })
    .await;
    let mut body = Connection::open(server.address).await;
    let head = b"POST /ai/text HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{";
    body.stream.get_mut().write_all(head).await.unwrap();
    let response = body.response().await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (408, "REQUEST_TIMEOUT")
    );
    assert!(body.is_closed().await);
    let mut head = Connection::open(server.address).await;
    head.stream
        .get_mut()
        .write_all(b"POST /ai/te")
        .await
        .unwrap();
    assert!(head.is_closed().await);
    let mut silent = Connection::open(server.address).await;
    assert!(silent.is_closed().await);
    let mut idle = Connection::open(server.address).await;
    idle.send("GET", "/livez", &[], b"").await;
    assert_eq!(idle.response().await.status, 200);
    assert!(idle.is_closed().await);
}

/// Who sends a byte now and then is never silent for long, and is cut off by the time for the whole.
#[tokio::test]
async fn dripping_heads_and_bodies_end_and_hold_up_nobody() {
    let server = Server::with(|options| {
        options.settings.body_time = Duration::from_millis(300);
        options.settings.header_timeout = Duration::from_millis(300);
        options.settings.drain_time = Duration::from_millis(50);
    })
    .await;
    let body = "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n";
    let drips = (0..32).map(|number| {
        let address = server.address;
        let head = if number % 2 == 0 { body } else { "GET /" };
        tokio::spawn(async move {
            let mut client = Connection::open(address).await;
            client
                .stream
                .get_mut()
                .write_all(head.as_bytes())
                .await
                .unwrap();
            while client.stream.get_mut().write_all(b"a").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            client
        })
    });
    let drips: Vec<_> = drips.collect();
    for _ in 0..20 {
        let answer = server.post("/ai/text", r#"{"text":"hi"}"#).await;
        assert_eq!(answer.status, 200);
    }
    for drip in drips {
        within(drip).await.unwrap();
    }
    server
        .metric_becomes(r#"pocket_llm_limits_hit_total{limit="body_time"}"#, 16)
        .await;
}

/// A few bytes may unpack to gigabytes, so nothing is unpacked.
#[tokio::test]
async fn compressed_bodies_are_refused() {
    let server = Server::start().await;
    for path in ["/ai/text", "/v1/chat/completions", "/tokenize"] {
        for encoding in ["gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP"] {
            let headers = [("Content-Encoding", encoding)];
            let body = b"\x1f\x8b\x08\x00\x00\x00\x00\x00";
            let refused = ask(server.address, "POST", path, &headers, body).await;
            assert_eq!(refused.status, 400, "{path} {encoding}");
            let text = refused.text();
            assert!(text.contains("compressed bodies are not read"), "{text}");
        }
    }
    let plain = [("Content-Encoding", "identity")];
    let answer = ask(
        server.address,
        "POST",
        "/ai/text",
        &plain,
        br#"{"text":"hi"}"#,
    )
    .await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn more_is_refused_than_the_api_has_room_for() {
    let server = Server::start().await;
    let chat = |rest: &str| format!(r#"{{"messages":[{{"role":"user","content":"a"}}],{rest}}}"#);
    let many = |item: &str, count: usize| vec![item; count].join(",");
    let deep = format!(r#""stop":{}{}"#, "[".repeat(129), "]".repeat(129));
    let table = [
        ("choices", chat(r#""n":9"#)),
        (
            "stop strings",
            chat(&format!(r#""stop":[{}]"#, many("\"a\"", 17))),
        ),
        ("levels", chat(&deep)),
        ("alternatives", chat(r#""logprobs":true,"top_logprobs":21"#)),
        ("no prompt", r#"{"messages":[]}"#.to_owned()),
    ];
    for (what, body) in table {
        let refused = server.post("/v1/chat/completions", &body).await;
        assert_eq!(refused.status, 400, "{what}: {}", refused.text());
    }
    let inputs = format!(r#"{{"input":[{}]}}"#, many("\"a\"", 2049));
    assert_eq!(server.post("/v1/embeddings", inputs).await.status, 400);
}

#[tokio::test]
async fn too_many_headers_end_their_connection_only() {
    let server = Server::start().await;
    let names: Vec<String> = (0..200)
        .map(|number| format!("X-Header-{number}"))
        .collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "a")).collect();
    let refused = ask(server.address, "GET", "/livez", &headers, b"").await;
    assert_eq!(refused.status, 431);
    assert_eq!(server.get("/livez").await.status, 200);
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_place() {
    let server =
        Server::with(|options| options.settings.send_timeout = Duration::from_millis(100)).await;
    let mut client = Connection::open(server.address).await;
    client
        .send(
            "POST",
            "/ai/text",
            &[("Accept", "text/plain")],
            br#"{"text":"hold"}"#,
        )
        .await;
    let (id, _) = server.worker.next_request().await;
    server.worker.emit(id, [accepted()]);
    let part = "a".repeat(MIB);
    for _ in 0..32 {
        server.worker.emit(id, [text(&part)]);
    }
    server.worker.cancelled(id).await;
    until(|| server.engine.in_flight() == 0).await;
    assert_eq!(
        server
            .metric(r#"pocket_llm_limits_hit_total{limit="send_time"}"#)
            .await,
        1
    );
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let server = Server::with(|options| options.settings.max_connections = 1).await;
    let mut first = Connection::open(server.address).await;
    first.send("GET", "/livez", &[], b"").await;
    assert_eq!(first.response().await.status, 200);
    let mut second = Connection::open(server.address).await;
    second
        .send("GET", "/metrics", &[("Connection", "close")], b"")
        .await;
    // The second one is not served while the first is open.
    first.send("GET", "/livez", &[], b"").await;
    assert_eq!(first.response().await.status, 200);
    drop(first);
    let metrics = second.response().await.text();
    assert!(metrics.contains("pocket_llm_connections 1\n"));
    assert!(metrics.contains("pocket_llm_limits_hit_total{limit=\"connections\"} 1\n"));
}

#[tokio::test]
async fn too_long_a_head_ends_its_connection_only() {
    let server = Server::start().await;
    let mut client = Connection::open(server.address).await;
    let head = format!(
        "GET / HTTP/1.1\r\nX-Long: {}\r\n\r\n",
        "a".repeat(1_000_000)
    );
    // The server may have closed before all of it was sent.
    let _ = within(client.stream.get_mut().write_all(head.as_bytes())).await;
    let mut answer = Vec::new();
    let _ = within(client.stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "));
    assert_eq!(server.get("/livez").await.status, 200);
}
