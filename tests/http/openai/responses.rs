//! `POST /v1/responses`.

use super::{post, stable};
use crate::support::Server;
use crate::support::client::Connection;
use crate::support::scripted_worker::{accepted, text};
use pocket_llm::engine::{EngineError, Event};
use serde_json::{Value, json};

const PATH: &str = "/v1/responses";

fn tools() -> Value {
    json!([{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": true}])
}

/// The events of a stream, each with its name, in order.
fn events(stream: &str) -> Vec<Value> {
    let events = stream.split("\n\n").filter(|event| !event.is_empty());
    let mut objects: Vec<Value> = Vec::new();
    for event in events {
        let (name, data) = event.split_once('\n').expect(event);
        let name = name.strip_prefix("event: ").expect(event);
        let object: Value =
            serde_json::from_str(data.strip_prefix("data: ").expect(event)).unwrap();
        assert_eq!(object["type"], name);
        assert_eq!(object["sequence_number"], objects.len());
        objects.push(object);
    }
    objects
}

#[tokio::test]
async fn an_answer_is_one_object() {
    let server = Server::start().await;
    let thinks = post(
        &server,
        PATH,
        &json!({"input": "think", "temperature": 0.5}),
    )
    .await;
    assert_eq!(thinks.status, 200, "{}", thinks.text());
    insta::assert_json_snapshot!("response", stable(thinks.json()));
    let calls =
        json!({"input": "calls", "tools": tools(), "tool_choice": "auto", "metadata": {"a": "b"}});
    let calls = post(&server, PATH, &calls).await;
    insta::assert_json_snapshot!("response_calls", stable(calls.json()));
    let long = post(&server, PATH, &json!({"input": "long"})).await.json();
    assert_eq!(long["status"], "incomplete");
    assert_eq!(long["incomplete_details"]["reason"], "max_output_tokens");
}

#[tokio::test]
async fn a_stream_is_named_events() {
    let server = Server::start().await;
    for (name, body) in [
        ("response_stream", json!({"input": "think", "stream": true})),
        (
            "response_stream_calls",
            json!({"input": "calls", "stream": true, "tools": tools()}),
        ),
    ] {
        let stream = post(&server, PATH, &body).await.text();
        let mut events = events(&stream);
        let last = events.last().unwrap().clone();
        assert_eq!(last["type"], "response.completed");
        // The response itself is in another snapshot.
        for event in &mut events {
            if event.get("response").is_some() {
                event["response"] = event["response"]["status"].take();
            }
        }
        insta::assert_json_snapshot!(name, stable(events.into()));
    }
    let cut = post(&server, PATH, &json!({"input": "long", "stream": true}))
        .await
        .text();
    assert_eq!(events(&cut).last().unwrap()["type"], "response.incomplete");
}

#[tokio::test]
async fn a_stream_that_goes_wrong_says_so_and_ends() {
    let server = Server::start().await;
    let mut client = Connection::open(server.address).await;
    client
        .send("POST", PATH, &[], br#"{"input":"hold","stream":true}"#)
        .await;
    let (id, _) = server.worker.next_request().await;
    server.worker.emit(id, [accepted(), text("one ")]);
    assert_eq!(client.head().await.status, 200);
    let error = EngineError::EngineDied("it was killed".into());
    server.worker.emit(id, [Event::Failed(error)]);
    let (stream, whole) = client.rest().await;
    assert!(whole);
    let last = events(&stream).pop().unwrap();
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["status"], "failed");
    assert_eq!(last["response"]["error"]["code"], "server_error");
}

#[tokio::test]
async fn items_become_a_chat() {
    let server = Server::start().await;
    let body = json!({
        "instructions": "Be brief.", "max_output_tokens": 9, "seed": 5, "store": true, "parallel_tool_calls": false,
        "input": [
            {"role": "user", "content": "a"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}], "id": "msg_1", "status": "completed"},
            {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}", "id": "fc_1"},
            {"type": "function_call", "call_id": "call_2", "name": "weather", "arguments": "{\"a\":1}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
            {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "sun"}]},
            {"role": "user", "content": "d"},
        ],
        "tools": tools(), "tool_choice": {"type": "function", "name": "weather"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": true}},
    });
    let answer = post(&server, PATH, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (_, request) = server.worker.next_request().await;
    insta::assert_json_snapshot!("response_request", request);
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let server = Server::start().await;
    let mut told = Vec::new();
    for body in [
        json!({}),
        json!({"input": ""}),
        json!({"input": []}),
        json!({"input": [{"type": "item_reference", "id": "x"}]}),
        json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
        json!({"input": "a", "previous_response_id": "resp_1"}),
        json!({"input": "a", "conversation": "conv_1"}),
        json!({"input": "a", "max_output_tokens": 0}),
        json!({"input": "a", "tools": [{"type": "web_search"}]}),
        json!({"input": "a", "tool_choice": "required"}),
        json!({"input": "a", "text": {"format": {"type": "json_schema"}}}),
    ] {
        let response = post(&server, PATH, &body).await;
        assert_eq!(response.status, 400, "{body}");
        let error = response.json()["error"].clone();
        told.push(format!(
            "{}: {}",
            error["param"],
            error["message"].as_str().unwrap()
        ));
    }
    insta::assert_json_snapshot!("response_wrong_fields", told);
}
