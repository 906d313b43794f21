//! What the server tells about its state: probes, `/status`, metrics; and the keys.

use crate::support::client::{Connection, ask};
use crate::support::scripted_worker::{LoadScript, accepted, finished, text};
use crate::support::{PATIENCE, Server, until, within};
use pocket_llm::device::CoreSet;
use pocket_llm::engine::{EngineState, Event, FinishReason};
use pocket_llm::http::{ApiKey, Keys};

#[tokio::test]
async fn readiness_follows_the_model() {
    let server = Server::with(|options| {
        options.load = LoadScript::ByHand;
        options.restart_pause = PATIENCE;
    })
    .await;
    until(|| server.worker.lives()).await;
    let loading = server.get("/readyz").await;
    assert_eq!(loading.status, 503);
    assert_eq!(loading.text(), "the model is being loaded (0 %)\n");
    assert_eq!(server.get("/livez").await.status, 200);
    assert_eq!(server.get("/health").await.status, 503);
    let status = server.get("/status").await.json();
    assert_eq!(status["ai"]["isModelLoading"], true);
    assert!(status["ai"]["modelLoadingStartTime"].is_u64());
    assert!(status["ai"]["currentModel"].is_null());

    server.worker.load();
    server.engine.loaded().await;
    assert_eq!(server.get("/readyz").await.status, 200);
    assert_eq!(server.get("/health").await.json()["status"], "healthy");

    // The second life loads again: whoever asks then is answered after it, so the server stays in.
    server.worker.die();
    until(|| {
        matches!(
            server.engine.state(),
            EngineState::Loading { first: false, .. }
        )
    })
    .await;
    until(|| server.worker.lives()).await;
    assert_eq!(server.get("/readyz").await.status, 200);
    server.worker.fail_to_load("the file\nis gone");
    until(|| !matches!(server.engine.state(), EngineState::Loading { .. })).await;
    let failed = server.get("/readyz").await;
    assert_eq!(failed.status, 503);
    assert_eq!(
        failed.text(),
        "the model can't be loaded: the file is gone\n"
    );
    let response = server.post("/ai/text", r#"{"text":"hi"}"#).await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (503, "NOT_READY")
    );
    assert!(response.header("retry-after").is_some());
}

#[tokio::test]
async fn draining_is_not_ready_but_answers() {
    let mut server = Server::start().await;
    let mut idle = Connection::open(server.address).await;
    let mut kept = Connection::open(server.address).await;
    kept.send("GET", "/livez", &[], b"").await;
    assert_eq!(kept.response().await.header("connection"), None);
    server.lifecycle.drain();
    let ready = server.get("/readyz").await;
    assert_eq!(
        (ready.status, ready.text().as_str()),
        (503, "draining: this server is going down\n")
    );
    assert_eq!(ready.header("connection"), Some("close"));
    let mut busy = Connection::open(server.address).await;
    busy.send(
        "POST",
        "/ai/text",
        &[("Accept", "text/plain")],
        br#"{"text":"hold"}"#,
    )
    .await;
    let (id, _) = server.worker.next_request().await;
    server.worker.emit(id, [accepted(), text("one ")]);
    busy.head().await;
    busy.read_until("one ").await;
    server.stop.take();
    assert!(idle.is_closed().await);
    assert!(kept.is_closed().await);
    server
        .worker
        .emit(id, [text("two"), finished(FinishReason::Stop)]);
    assert_eq!(busy.rest().await, ("two".into(), true));
    assert!(busy.is_closed().await);
    within(server.served).await.unwrap();
}

#[tokio::test]
async fn requests_wait_for_the_first_load() {
    let server = Server::with(|options| {
        options.load = LoadScript::ByHand;
        options.places = 2;
    })
    .await;
    until(|| server.worker.lives()).await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut client = Connection::open(server.address).await;
        client
            .send("POST", "/ai/text", &[], br#"{"text":"hi"}"#)
            .await;
        waiting.push(client);
    }
    // As many wait as there are places; one more is too many.
    let mut refused = ask(server.address, "POST", "/ai/text", &[], br#"{"text":""}"#).await;
    assert_eq!(refused.status, 400, "what can't be used is told at once");
    within(async {
        while refused.status != 429 {
            let one_more = ask(server.address, "POST", "/ai/text", &[], br#"{"text":"hi"}"#);
            refused = one_more.await;
        }
    })
    .await;
    assert!(refused.header("retry-after").is_some());
    server.worker.load();
    for mut client in waiting {
        assert_eq!(client.response().await.status, 200);
    }
}

#[tokio::test]
async fn status_is_true() {
    let server = Server::with(|options| {
        options.settings.pod_name = Some("llm-0".into());
        options.settings.node_name = Some("phone-b".into());
    })
    .await;
    let mut client = Connection::open(server.address).await;
    client
        .send("POST", "/ai/text", &[], br#"{"text":"hold"}"#)
        .await;
    let (id, _) = server.worker.next_request().await;
    let response = server.get("/status").await;
    assert_eq!(response.header("x-served-by"), Some("llm-0"));
    insta::assert_json_snapshot!(response.json(), {
        ".version" => "[version]", ".timestamp" => "[ms]", ".ai.processingStartTime" => "[ms]", ".uptimeSeconds" => "[s]",
        ".machine" => "[machine]",
    });
    let machine = response.json()["machine"].clone();
    let allowed = std::thread::available_parallelism().unwrap().get();
    let cores: CoreSet = serde_json::from_value(machine["allowedCores"].clone()).unwrap();
    assert!(cores.count() as usize >= allowed, "{machine}");
    server
        .worker
        .emit(id, [accepted(), finished(FinishReason::Stop)]);
    client.response().await;
    let ai = server.get("/status").await.json()["ai"].clone();
    assert_eq!(ai["isProcessing"], false);
    assert!(ai["processingStartTime"].is_null());
}

#[tokio::test]
async fn keys_guard_everything_but_the_probes() {
    let server = Server::with(|options| {
        let keys = [ApiKey::new("first".into()), ApiKey::new("second".into())];
        options.settings.keys = Keys::new(&keys, None).unwrap();
    })
    .await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for path in ["/", "/status", "/metrics", "/nothing"] {
        let response = server.get(path).await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (401, "UNAUTHORIZED"),
            "{path}"
        );
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
    }
    let table = [
        ("Bearer first", 200),
        ("bearer second", 200),
        ("Bearer  second ", 200),
        ("Bearer third", 401),
        ("Bearer firs", 401),
        ("Bearer ", 401),
        ("Basic first", 401),
        ("first", 401),
    ];
    for (value, status) in table {
        let headers = [("Authorization", value)];
        let body = br#"{"text":"hi"}"#;
        let response = ask(server.address, "POST", "/ai/text", &headers, body).await;
        assert_eq!(response.status, status, "{value}");
    }
    assert_eq!(format!("{:?}", ApiKey::new("secret".into())), "ApiKey(…)");
}

/// The queue is fair between those who can be told apart.
#[tokio::test]
async fn one_of_several_keys_tells_who_asks() {
    let asked = async |keys: &[&str], shown: &[&str]| {
        let keys: Vec<ApiKey> = keys.iter().map(|key| ApiKey::new((*key).into())).collect();
        let server =
            Server::with(|options| options.settings.keys = Keys::new(&keys, None).unwrap()).await;
        let mut clients = Vec::new();
        for key in shown {
            let key = format!("Bearer {key}");
            let headers = [("Authorization", key.as_str())];
            ask(
                server.address,
                "POST",
                "/ai/text",
                &headers,
                br#"{"text":"hi"}"#,
            )
            .await;
            clients.push(server.worker.next_request().await.1.client);
        }
        clients
    };
    let several = asked(&["first", "second"], &["first", "second", "first"]).await;
    assert_eq!(several[0], several[2]);
    assert_ne!(several[0], several[1]);
    assert!(
        several
            .iter()
            .all(|client| client.starts_with("key-") && !client.contains("first")),
        "{several:?}"
    );
    // A key that all share says nothing.
    assert_eq!(asked(&["only"], &["only"]).await, ["127.0.0.1"]);
}

/// After three answers, while a fourth is being made.
const EXPECTED: &[&str] = &[
    r#"pocket_llm_requests_total{endpoint="/ai/text",outcome="ok"} 2"#,
    r#"pocket_llm_requests_total{endpoint="/ai/text",outcome="length"} 1"#,
    "pocket_llm_prompt_tokens_total 15",
    "pocket_llm_cached_tokens_total 6",
    "pocket_llm_generated_tokens_total 12",
    "pocket_llm_request_places 8",
    "pocket_llm_requests_queued 1",
    "pocket_llm_requests_running 0",
    "pocket_llm_kv_cells 4096",
    "pocket_llm_kv_cells_used 7",
    "pocket_llm_threads_left_out 1",
    "pocket_llm_worker_steps_total 3",
    "pocket_llm_worker_restarts_total 0",
    "pocket_llm_cancellations_total 0",
    "pocket_llm_worker_decode_seconds_total 0.0",
    "pocket_llm_worker_overhead_seconds_total 0.0",
    r#"pocket_llm_model_loaded{model="tiny"} 1"#,
    "pocket_llm_model_loads_total 1",
    "pocket_llm_model_unloads_total 0",
    r#"pocket_llm_limits_hit_total{limit="places"} 0"#,
];

#[tokio::test]
async fn metrics_count() {
    let server = Server::start().await;
    for body in [
        r#"{"text":"hi"}"#,
        r#"{"text":"hi","stream":true}"#,
        r#"{"text":"long"}"#,
    ] {
        assert_eq!(server.post("/ai/text", body).await.status, 200);
    }
    let mut client = Connection::open(server.address).await;
    client
        .send("POST", "/ai/text", &[], br#"{"text":"hold"}"#)
        .await;
    let (id, _) = loop {
        let (id, request) = server.worker.next_request().await;
        if serde_json::to_string(&request).unwrap().contains("hold") {
            break (id, request);
        }
    };
    server.worker.emit(
        id,
        [accepted(), Event::Started { cached_tokens: 2 }, text("a")],
    );
    let response = server.get("/metrics").await;
    assert_eq!(
        response.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    let text = response.text();
    assert!(text.ends_with("# EOF\n"));
    for line in EXPECTED {
        assert!(
            text.lines().any(|found| found == *line),
            "{line} is not in\n{text}"
        );
    }
    for name in [
        "time_to_first_token_seconds",
        "queue_seconds",
        "inter_token_seconds",
    ] {
        assert!(
            text.contains(&format!("# TYPE pocket_llm_{name} histogram")),
            "{name}"
        );
    }
    assert!(text.contains("pocket_llm_build_info{version=\""));
    server.worker.die();
    assert_eq!(client.response().await.status, 502);
    // What the dead worker had counted is not lost.
    server
        .metric_becomes("pocket_llm_worker_steps_total", 3)
        .await;
    let counted = r#"pocket_llm_requests_total{endpoint="/ai/text",outcome="engine_died"}"#;
    assert_eq!(server.metric(counted).await, 1);
}
