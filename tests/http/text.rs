//! `POST /ai/text` with one object as the answer.

use crate::support::client::{Connection, ask};
use crate::support::scripted_worker::{accepted, finished, text};
use crate::support::{MODEL, Server};
use pocket_llm::engine::{EngineError, Event, FinishReason, Message, Prompt, Role};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn an_answer_is_one_object() {
    let server = Server::start().await;
    let response = server.post("/ai/text", r#"{"text":"hi","seed":7}"#).await;
    assert_eq!(response.status, 200);
    assert_eq!(
        response.header("content-type"),
        Some("application/json; charset=utf-8")
    );
    assert_eq!(response.header("cache-control"), Some("no-store"));
    insta::assert_json_snapshot!(response.json(), {
        ".timings.queue_ms" => "[ms]",
        ".timings.ttft_ms" => "[ms]",
    });
}

#[tokio::test]
async fn the_talks_commands_work_to_the_letter() {
    let server = Server::start().await;
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let json = [("Content-Type", "application/json")];
    let commands: [(&[(&str, &str)], &str); 3] = [
        (&form, r#"{"text":"why?","model":"GEMMA_3_1B_IT"}"#),
        (
            &json,
            r#"{"prompt":"why?","model":"gemma-3n-e2b-it","maxTokens":150,"temperature":0.7,"topK":40,"topP":0.95}"#,
        ),
        (
            &form,
            "{\"text\":\"two\nlines, C:\\path\",\"model\":\"GEMMA_3_1B_IT\"}",
        ),
    ];
    for (headers, body) in commands {
        let response = ask(server.address, "POST", "/ai/text", headers, body.as_bytes()).await;
        assert_eq!(response.status, 200, "{body}");
        assert_eq!(response.json()["response"], " Hello, \"wörld\"\n");
        assert_eq!(response.json()["model"], MODEL);
    }
    for path in ["/status", "/help", "/ai/models", "/"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    let tried = r#"{"modelName":"tiny","prompt":"hello"}"#.as_bytes();
    let tried = ask(server.address, "POST", "/ai/models/test", &json, tried).await;
    assert_eq!(tried.json()["response"], " Hello, \"wörld\"\n");
    let wish = br#"{"modelName":"x"}"#;
    let wish = ask(server.address, "POST", "/ai/models/download", &json, wish).await;
    assert_eq!((wish.status, wish.code().as_str()), (400, "INVALID_MODEL"));
    let absent = [
        (
            "POST",
            "/ai/object_detection",
            r#"{"side":"rear","threshold":0.6,"maxResults":5,"returnImage":false}"#,
        ),
        ("GET", "/orientation", ""),
        ("GET", "/capture?side=rear&zoom=1.0", ""),
    ];
    for (method, path, body) in absent {
        let response = ask(server.address, method, path, &json, body.as_bytes()).await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (501, "NOT_IMPLEMENTED")
        );
    }
}

#[tokio::test]
async fn what_was_asked_reaches_the_engine() {
    let server = Server::start().await;
    let body = json!({
        "system": "Be brief.", "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
        "prompt": "why?", "temperature": 0, "topK": 1.0, "topP": 1, "minP": 0.05, "maxTokens": 9, "seed": 3,
        "repeatPenalty": 1.1, "repeatLastN": 0, "frequencyPenalty": -0.5, "presencePenalty": 0.5, "stop": ["END", "\n\n"],
        "ignoreEos": true, "cachePrompt": false, "deadlineMs": 1500, "returnImage": false, "imageScaling": "NONE",
    });
    server.post("/ai/text", body.to_string()).await;
    let (_, request) = server.worker.next_request().await;
    insta::assert_json_snapshot!(request, {".deadline_ms" => "[about 1500]"});
}

#[tokio::test]
async fn the_models_family_gives_the_defaults() {
    let server = Server::start().await;
    let metadata = server.post("/ai/text", r#"{"text":"hi"}"#).await.json()["metadata"].clone();
    let (_, request) = server.worker.next_request().await;
    assert_eq!(request.client, "127.0.0.1");
    assert_eq!(request.max_tokens, Some(1024));
    assert_eq!(
        request.prompt,
        Prompt::Messages(vec![Message::new(Role::User, "hi")])
    );
    let sampling = request.sampling;
    assert_eq!(
        (sampling.temperature, sampling.top_k, sampling.top_p),
        (1.0, 64, 0.95)
    );
    assert_eq!(metadata["topK"], 64);
    assert_eq!(metadata["seed"], sampling.seed);
    server.post("/ai/text", r#"{"text":"hi"}"#).await;
    let (_, again) = server.worker.next_request().await;
    assert_ne!(
        again.sampling.seed, sampling.seed,
        "each request has its own seed"
    );
}

#[tokio::test]
async fn thinking_is_split_off_and_the_limit_is_told() {
    let server = Server::start().await;
    let thinking = server.post("/ai/text", r#"{"text":"think"}"#).await.json();
    assert_eq!(thinking["response"], "Done!");
    assert_eq!(thinking["thinking"], "Let me see.");
    let long = server.post("/ai/text", r#"{"text":"long"}"#).await.json();
    assert_eq!(long["metadata"]["finishReason"], "length");
}

#[tokio::test]
async fn unusable_requests_are_told_why() {
    let server = Server::start().await;
    let deep = format!("{{\"text\":{}{}}}", "[".repeat(200), "]".repeat(200));
    let many = json!({"text": "a", "stop": vec!["x"; 17]}).to_string();
    let bodies = [
        "",
        "text=hello",
        "[]",
        "{\"text\":\"hi\"",
        &deep,
        "{}",
        r#"{"text":""}"#,
        r#"{"text":null}"#,
        r#"{"text":5}"#,
        r#"{"text":"a","prompt":["b"]}"#,
        r#"{"text":"a","model":5}"#,
        r#"{"text":"a","temperature":-0.1}"#,
        r#"{"text":"a","temperature":"0.7"}"#,
        r#"{"text":"a","temperature":1e300}"#,
        r#"{"text":"a","topP":1.01}"#,
        r#"{"text":"a","topP":-1}"#,
        r#"{"text":"a","topK":-1}"#,
        r#"{"text":"a","topK":40.5}"#,
        r#"{"text":"a","maxTokens":0}"#,
        r#"{"text":"a","maxTokens":-5}"#,
        r#"{"text":"a","maxTokens":0.5}"#,
        r#"{"text":"a","maxTokens":true}"#,
        r#"{"text":"a","minP":2}"#,
        r#"{"text":"a","seed":-2}"#,
        r#"{"text":"a","seed":"x"}"#,
        r#"{"text":"a","repeatPenalty":0}"#,
        r#"{"text":"a","stop":5}"#,
        r#"{"text":"a","stop":[""]}"#,
        r#"{"text":"a","stop":["a",null]}"#,
        &many,
        r#"{"text":"a","stream":"yes"}"#,
        r#"{"text":"a","deadlineMs":0}"#,
        r#"{"text":"a","image":"aGk="}"#,
        r#"{"text":"a","captureConfig":{"camera":"rear"}}"#,
        r#"{"messages":"hi"}"#,
        r#"{"messages":[{"role":"tool","content":"x"}]}"#,
        r#"{"messages":[{"role":"user"}]}"#,
        r#"{"messages":[{"role":"assistant","content":"x"}]}"#,
        r#"{"text":"a","system":"s","messages":[{"role":"system","content":"x"}]}"#,
    ];
    let mut told: Vec<Value> = Vec::new();
    for body in bodies {
        let response = server.post("/ai/text", body).await;
        assert_eq!(response.status, 400, "{body}");
        assert_eq!(response.code(), "AI_SERVICE_ERROR");
        let body = if body.len() < 100 { body } else { "(long)" };
        told.push(json!({"body": body, "answer": response.json()}));
    }
    insta::assert_json_snapshot!(told);
    let latin1 = server.post("/ai/text", b"{\"text\":\"\xe9\"}").await;
    assert_eq!(latin1.json()["error"], "the body is not UTF-8");
    let counted = r#"pocket_llm_requests_total{endpoint="/ai/text",outcome="bad_request"}"#;
    server
        .metric_becomes(counted, bodies.len() as u64 + 1)
        .await;
}

#[tokio::test]
async fn unknown_models_are_not_replaced() {
    let server = Server::start().await;
    let response = server
        .post("/ai/text", r#"{"text":"hi","model":"gpt-4o"}"#)
        .await;
    assert_eq!(response.status, 404);
    insta::assert_json_snapshot!(response.json());
    for model in ["", "tiny", "Tiny", "gemma_3_1b_it", "GEMMA-3N-E2B-IT"] {
        let body = json!({"text": "hi", "model": model});
        let response = server.post("/ai/text", body.to_string()).await;
        assert_eq!(response.json()["model"], MODEL, "{model}");
    }
}

#[tokio::test]
async fn each_engine_error_has_its_status() {
    let server = Server::start().await;
    let too_long = EngineError::PromptTooLong {
        prompt_tokens: 9,
        limit: 8,
    };
    let table = [
        (
            EngineError::BadRequest("no".into()),
            400,
            "AI_SERVICE_ERROR",
        ),
        (too_long, 400, "AI_SERVICE_ERROR"),
        (EngineError::DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
        (EngineError::NotReady("not now".into()), 503, "NOT_READY"),
        (
            EngineError::Refused("you again".into()),
            422,
            "REQUEST_REFUSED",
        ),
        (EngineError::Internal("secret".into()), 500, "AI_ERROR"),
        (
            EngineError::EngineDied("signal 9".into()),
            502,
            "ENGINE_DIED",
        ),
        (EngineError::ShuttingDown, 503, "SHUTTING_DOWN"),
    ];
    for accept in ["*/*", "text/event-stream", "text/plain"] {
        for (error, status, code) in &table {
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
            server.worker.emit(id, [Event::Failed(error.clone())]);
            let response = client.response().await;
            assert_eq!(
                (response.status, response.code().as_str()),
                (*status, *code)
            );
            assert_eq!(response.header("retry-after").is_some(), *status == 503);
            assert!(!response.text().contains("secret"));
        }
    }
    assert_eq!(
        server
            .metric(r#"pocket_llm_limits_hit_total{limit="context"}"#)
            .await,
        3
    );
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_request() {
    let server = Server::start().await;
    let mut client = Connection::open(server.address).await;
    client
        .send("POST", "/ai/text", &[], br#"{"text":"hold"}"#)
        .await;
    let (id, _) = server.worker.next_request().await;
    server.worker.emit(
        id,
        [accepted(), Event::Started { cached_tokens: 0 }, text("a")],
    );
    drop(client);
    server.worker.cancelled(id).await;
    let counted = r#"pocket_llm_requests_total{endpoint="/ai/text",outcome="cancelled"}"#;
    server.metric_becomes(counted, 1).await;
}

#[tokio::test]
async fn a_client_that_leaves_behind_unread_bytes_cancels_its_request() {
    let server = Server::start().await;
    let mut client = Connection::open(server.address).await;
    client
        .send("POST", "/ai/text", &[], br#"{"text":"hold"}"#)
        .await;
    // The start of a second request, which is not looked at before the first is answered.
    let more = client.stream.get_mut().write_all(b"GET / HTTP/1.1\r\n");
    more.await.unwrap();
    let (id, _) = server.worker.next_request().await;
    server.worker.emit(id, [accepted()]);
    drop(client);
    server.worker.cancelled(id).await;
}

#[tokio::test]
async fn a_dead_engine_is_told_and_the_next_request_is_answered() {
    let server = Server::start().await;
    let mut client = Connection::open(server.address).await;
    client
        .send("POST", "/ai/text", &[], br#"{"text":"hold"}"#)
        .await;
    let (id, _) = server.worker.next_request().await;
    server.worker.emit(
        id,
        [accepted(), Event::Started { cached_tokens: 0 }, text("a")],
    );
    server.worker.die();
    let response = client.response().await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (502, "ENGINE_DIED")
    );
    // The same connection is good for more.
    client
        .send("POST", "/ai/text", &[], br#"{"text":"hi"}"#)
        .await;
    assert_eq!(client.response().await.status, 200);
    server
        .metric_becomes("pocket_llm_worker_restarts_total", 1)
        .await;
}

#[tokio::test]
async fn a_deadline_in_the_middle_keeps_the_text() {
    let server = Server::start().await;
    let mut client = Connection::open(server.address).await;
    client
        .send("POST", "/ai/text", &[], br#"{"text":"hold"}"#)
        .await;
    let (id, _) = server.worker.next_request().await;
    server.worker.emit(
        id,
        [accepted(), text("so far"), finished(FinishReason::Deadline)],
    );
    let response = client.response().await;
    assert_eq!(response.status, 200);
    assert_eq!(response.json()["response"], "so far");
    assert_eq!(response.json()["metadata"]["finishReason"], "deadline");
}
