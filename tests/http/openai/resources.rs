//! Models, embeddings, tokens.

use super::{post, stable};
use crate::support::Server;
use crate::support::scripted_worker::LoadScript;
use pocket_llm::engine::wire::ToWorker;
use pocket_llm::engine::{Prompt, Question, Work};
use serde_json::{Value, json};

#[tokio::test]
async fn models_that_can_be_asked() {
    let server = Server::start().await;
    let listed = server.get("/v1/models").await;
    assert_eq!(listed.status, 200);
    insta::assert_json_snapshot!("models", listed.json(), {".data[].created" => "[seconds]"});
    for name in ["tiny", "GEMMA_3_1B_IT"] {
        let one = server.get(&format!("/v1/models/{name}")).await;
        assert_eq!(one.json(), listed.json()["data"][0], "{name}");
    }
    for name in ["nobody", "a%2Fb", "%ff", "gemma-3-4b"] {
        let response = server.get(&format!("/v1/models/{name}")).await;
        assert_eq!(response.status, 404, "{name}");
        assert_eq!(
            response.json()["error"]["code"],
            "model_not_found",
            "{name}"
        );
    }
}

#[tokio::test]
async fn embeddings_as_numbers_and_as_bytes() {
    let server = Server::start().await;
    let body = json!({"input": ["ab", "c"], "model": "tiny"});
    let answer = post(&server, "/v1/embeddings", &body).await;
    assert_eq!(answer.status, 200);
    insta::assert_json_snapshot!("embeddings", answer.json());
    let body = json!({"input": [[1, 2], [3]], "encoding_format": "base64", "dimensions": 4});
    let answer = post(&server, "/v1/embeddings", &body).await;
    insta::assert_json_snapshot!("embeddings_base64", answer.json());
    for (input, count) in [
        (json!("a"), 1),
        (json!([5, 6]), 1),
        (json!(["a", "b", "c"]), 3),
    ] {
        let answer = post(&server, "/v1/embeddings", &json!({"input": input}))
            .await
            .json();
        assert_eq!(answer["data"].as_array().unwrap().len(), count);
    }
    let counted = r#"pocket_llm_requests_total{endpoint="/v1/embeddings",outcome="ok"}"#;
    assert_eq!(server.metric(counted).await, 5);
    for (body, param) in [
        (json!({"input": "a", "dimensions": 5}), "dimensions"),
        (json!({"input": ""}), "input"),
        (json!({"input": ["a", ""]}), "input[1]"),
        (json!({"input": []}), "input"),
        (json!({"input": [5.5]}), "input[0]"),
        (
            json!({"input": "a", "encoding_format": "int8"}),
            "encoding_format",
        ),
        (json!({}), "input"),
    ] {
        let response = post(&server, "/v1/embeddings", &body).await;
        assert_eq!(response.status, 400, "{body}");
        assert_eq!(response.json()["error"]["param"], param, "{body}");
    }
}

#[tokio::test]
async fn texts_tokens_and_prompts() {
    let server = Server::start().await;
    let answer = |path: &'static str, body: Value| {
        let server = &server;
        async move { post(server, path, &body).await.json() }
    };
    let plain = answer("/tokenize", json!({"content": "hö", "add_special": true})).await;
    assert_eq!(plain, json!({"tokens": [104, 246]}));
    let ToWorker::Submit {
        work: Work::Ask(question),
        ..
    } = server.worker.next_frame().await
    else {
        panic!("a question")
    };
    let asked = Question::Tokenize {
        text: "hö".into(),
        add_special: true,
        parse_special: true,
    };
    assert_eq!(*question, asked);
    let pieces = answer("/tokenize", json!({"content": "hö", "with_pieces": true})).await;
    let expected = json!({"tokens": [{"id": 104, "piece": "h"}, {"id": 246, "piece": [195]}]});
    assert_eq!(pieces, expected);
    let text = answer("/detokenize", json!({"tokens": [104, 246]})).await;
    assert_eq!(text, json!({"content": "hö"}));
    assert_eq!(
        answer("/detokenize", json!({"tokens": []})).await,
        json!({"content": ""})
    );
    let chat = json!({"messages": [{"role": "developer", "content": "Be."}, {"role": "user", "content": "hi"}]});
    let prompt = answer("/apply-template", chat).await;
    assert_eq!(prompt, json!({"prompt": "<system>Be.<user>hi"}));
    for (path, body) in [
        ("/tokenize", json!({"content": 5})),
        ("/tokenize", json!({})),
        ("/detokenize", json!({"tokens": ["a"]})),
        ("/detokenize", json!({"tokens": [-1]})),
        ("/apply-template", json!({"messages": []})),
    ] {
        let response = post(&server, path, &body).await;
        assert_eq!(response.status, 400, "{path} {body}");
        let error = stable(response.json());
        assert_eq!(
            error["error"]["type"], "invalid_request_error",
            "{path} {body}"
        );
    }
}

#[tokio::test]
async fn the_phone_api_has_forms_too() {
    let server = Server::start().await;
    for (format, expected) in [
        (json!("json"), json!("json_object")),
        (
            json!({"type": "object"}),
            json!({"json_schema": {"type": "object"}}),
        ),
    ] {
        let body = json!({"text": "hi", "format": format});
        assert_eq!(post(&server, "/ai/text", &body).await.status, 200);
        let (_, request) = server.worker.next_request().await;
        assert_eq!(serde_json::to_value(&request.format).unwrap(), expected);
    }
    let wrong = post(&server, "/ai/text", &json!({"text": "hi", "format": "xml"})).await;
    assert_eq!(
        (wrong.status, wrong.code().as_str()),
        (400, "AI_SERVICE_ERROR")
    );
}

#[tokio::test]
async fn embeddings_have_a_deadline_as_answers_have() {
    let server = Server::start().await;
    let body = json!({"input": "ab", "deadline_ms": 60_000});
    assert_eq!(post(&server, "/v1/embeddings", &body).await.status, 200);
    let ToWorker::Submit {
        work: Work::Ask(question),
        ..
    } = server.worker.next_frame().await
    else {
        panic!("a question")
    };
    let Question::Embed {
        inputs,
        deadline_ms: Some(left),
        client,
    } = *question
    else {
        panic!("{question:?}")
    };
    assert_eq!(inputs, [Prompt::Text("ab".into())]);
    assert!(left <= 60_000 && !client.is_empty(), "{left} {client}");
    // Late already while the model is not there.
    let loading = Server::with(|options| options.load = LoadScript::ByHand).await;
    for (path, body) in [
        ("/v1/embeddings", json!({"input": "ab", "deadline_ms": 1})),
        ("/v1/completions", json!({"prompt": "ab", "deadline_ms": 1})),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "a"}], "deadline_ms": 1}),
        ),
        ("/v1/responses", json!({"input": "ab", "deadline_ms": 1})),
    ] {
        let late = post(&loading, path, &body).await;
        assert_eq!(late.status, 504, "{path}: {}", late.text());
        assert_eq!(late.json()["error"]["code"], "deadline_exceeded", "{path}");
    }
}

#[tokio::test]
async fn many_tokens_are_written_as_they_are() {
    let server = Server::start().await;
    let content = "aö".repeat(5000);
    let body = json!({"content": content, "with_pieces": true});
    let answer = post(&server, "/tokenize", &body).await.text();
    let expected = r#"{"tokens":[{"id":97,"piece":"a"},{"id":246,"piece":[195]},{"id":97,"piece":"a"},{"id":246,"piece":"ö"},"#;
    assert!(answer.starts_with(expected), "{answer:.200}");
    let tokens: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(tokens["tokens"].as_array().unwrap().len(), 10_000);
}
