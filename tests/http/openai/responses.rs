//! `POST /v1/responses`.

use super::{post, stable};
use crate::support::Server;
use crate::support::client::Connection;
use crate::support::scripted_worker::{accepted, text};
use pocket_llm::engine::{EngineError, Event, Prompt, ToolChoice};
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

#[tokio::test]
async fn log_probabilities_are_in_parts_and_deltas() {
    let server = Server::start().await;
    let logprobs = "message.output_text.logprobs";
    for (more, alternatives) in [
        (
            json!({"include": [logprobs, "reasoning.encrypted_content"]}),
            0,
        ),
        (json!({"include": [logprobs], "top_logprobs": 2}), 2),
        (json!({"top_logprobs": 3}), 3),
    ] {
        let mut body = json!({"input": "think"});
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let whole = post(&server, PATH, &body).await;
        assert_eq!(whole.status, 200, "{body}: {}", whole.text());
        let whole = whole.json();
        assert_eq!(whole["top_logprobs"], alternatives);
        let part = &whole["output"][1]["content"][0];
        assert_eq!(part["text"], "Höh");
        let tokens = part["logprobs"].as_array().unwrap();
        let bytes: Vec<&Value> = tokens.iter().map(|token| &token["bytes"]).collect();
        assert_eq!(
            bytes,
            [&json!([72]), &json!([195]), &json!([182]), &json!([104])]
        );
        for token in tokens {
            assert_eq!(token["logprob"], -0.25);
            assert_eq!(
                token["top_logprobs"].as_array().unwrap().len(),
                alternatives
            );
        }
        body["stream"] = true.into();
        let stream = events(&post(&server, PATH, &body).await.text());
        let of = |kind: &str| {
            let events = stream.iter().filter(|event| event["type"] == kind);
            let lists = events.map(|event| event["logprobs"].as_array().unwrap().clone());
            Value::Array(lists.flatten().collect())
        };
        assert_eq!(of("response.output_text.delta"), part["logprobs"]);
        assert_eq!(of("response.output_text.done"), part["logprobs"]);
        let last = stream.last().unwrap();
        assert_eq!(last["response"]["output"][1]["content"][0], *part);
    }
    // Nobody asked.
    let plain = json!({"input": "hi", "include": ["file_search_call.results"]});
    let plain = post(&server, PATH, &plain).await.json();
    assert_eq!(plain["output"][0]["content"][0]["logprobs"], json!([]));
}

#[tokio::test]
async fn reasoning_that_comes_back_is_not_told_again() {
    let server = Server::start().await;
    let first = post(&server, PATH, &json!({"input": "think"})).await.json();
    assert_eq!(
        first["usage"]["output_tokens_details"]["reasoning_tokens"],
        2
    );
    server.worker.next_request().await;
    let mut input = vec![json!({"role": "user", "content": "think"})];
    input.extend(first["output"].as_array().unwrap().clone());
    input.push(json!({"role": "user", "content": "again"}));
    let again = post(&server, PATH, &json!({"input": input})).await;
    assert_eq!(again.status, 200, "{}", again.text());
    let (_, request) = server.worker.next_request().await;
    let Prompt::Messages(chat) = request.prompt else {
        panic!("a chat")
    };
    let said: Vec<_> = chat.iter().map(|turn| turn.content.as_str()).collect();
    assert_eq!(said, ["think", "Done!", "again"]);
}

#[tokio::test]
async fn some_of_the_tools_can_be_allowed() {
    let server = Server::start().await;
    let tool = |name: &str| json!({"type": "function", "name": name});
    let body = json!({
        "input": "hi", "tools": [tool("weather"), tool("clock")],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [tool("clock")]},
    });
    let answer = post(&server, PATH, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["tool_choice"], body["tool_choice"]);
    let (_, request) = server.worker.next_request().await;
    let tools = request.tools.unwrap();
    assert_eq!(
        (tools.tools.len(), &tools.choice),
        (2, &ToolChoice::Required)
    );
    assert_eq!(tools.allowed, Some(vec!["clock".into()]));
}
