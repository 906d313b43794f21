//! `POST /v1/chat/completions`.

use super::{objects, post, stable};
use crate::support::client::Connection;
use crate::support::scripted_worker::{accepted, finished, text};
use crate::support::{Server, until};
use pocket_llm::engine::wire::ToWorker;
use pocket_llm::engine::{EngineError, Event, FinishReason, Format, Role, ToolChoice};
use serde_json::{Value, json};

const PATH: &str = "/v1/chat/completions";

fn asks(word: &str) -> Value {
    json!({"messages": [{"role": "user", "content": word}], "seed": 7})
}

fn with(word: &str, more: &Value) -> Value {
    let mut body = asks(word);
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn tools(choice: &Value) -> Value {
    let tool = |name| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    json!({"tools": [tool("weather"), tool("clock")], "tool_choice": choice})
}

#[tokio::test]
async fn an_answer_is_one_object() {
    let server = Server::start().await;
    let response = post(&server, PATH, &asks("hi")).await;
    assert_eq!(response.status, 200);
    assert_eq!(
        response.header("content-type"),
        Some("application/json; charset=utf-8")
    );
    assert!(response.header("x-request-id").unwrap().starts_with("req_"));
    insta::assert_json_snapshot!("chat", stable(response.json()));
    let thinks = post(&server, PATH, &asks("think")).await.json();
    insta::assert_json_snapshot!("chat_thinks", stable(thinks));
    let long = post(&server, PATH, &asks("long")).await.json();
    assert_eq!(long["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn a_stream_is_chunks() {
    let server = Server::start().await;
    for (name, more) in [
        ("chat_stream", json!({"stream": true})),
        (
            "chat_stream_usage",
            json!({"stream": true, "stream_options": {"include_usage": true}}),
        ),
    ] {
        let response = post(&server, PATH, &with("think", &more)).await;
        assert_eq!(
            response.header("content-type"),
            Some("text/event-stream; charset=utf-8")
        );
        let (chunks, done) = objects(&response.text());
        assert!(done);
        insta::assert_json_snapshot!(name, stable(chunks.into()));
    }
}

#[tokio::test]
async fn several_answers_have_seeds_in_a_row() {
    let server = Server::start().await;
    let answer = post(&server, PATH, &with("hi", &json!({"n": 3}))).await;
    insta::assert_json_snapshot!("chat_n", stable(answer.json()));
    let mut seeds = Vec::new();
    for _ in 0..3 {
        seeds.push(server.worker.next_request().await.1.sampling.seed);
    }
    assert_eq!(seeds, [7, 8, 9]);
    let more = json!({"n": 2, "stream": true, "stream_options": {"include_usage": true}});
    let stream = post(&server, PATH, &with("hi", &more)).await.text();
    let (chunks, done) = objects(&stream);
    assert!(done);
    for choice in [0, 1] {
        let of_choice = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"].get(0))
            .filter(|found| found["index"] == choice);
        let said: String = of_choice
            .filter_map(|found| found["delta"]["content"].as_str())
            .collect();
        assert_eq!(said, " Hello, \"wörld\"\n");
    }
    let usage = &chunks.last().unwrap()["usage"];
    assert_eq!(usage["prompt_tokens"], 5, "the prompt counts once");
    assert_eq!(usage["completion_tokens"], 8);
    let counted = r#"pocket_llm_requests_total{endpoint="/v1/chat/completions",outcome="ok"}"#;
    assert_eq!(server.metric(counted).await, 2);
    assert_eq!(server.metric("pocket_llm_generated_tokens_total").await, 20);
}

#[tokio::test]
async fn more_answers_than_places_are_refused() {
    let server = Server::with(|options| options.places = 2).await;
    let refused = post(&server, PATH, &with("hi", &json!({"n": 3}))).await;
    assert_eq!(refused.status, 400, "asking again would not help");
}

#[tokio::test]
async fn log_probabilities_are_those_of_the_answer() {
    let server = Server::start().await;
    let more = json!({"logprobs": true, "top_logprobs": 3});
    let answer = post(&server, PATH, &with("hi", &more)).await;
    insta::assert_json_snapshot!("chat_logprobs", stable(answer.json()));
    let more = json!({"logprobs": true, "stream": true});
    let stream = post(&server, PATH, &with("hi", &more)).await.text();
    insta::assert_json_snapshot!("chat_stream_logprobs", stable(objects(&stream).0.into()));
}

#[tokio::test]
async fn calls_of_tools() {
    let server = Server::start().await;
    let one = post(&server, PATH, &with("call", &tools(&json!("auto")))).await;
    insta::assert_json_snapshot!("chat_call", stable(one.json()));
    let two = post(&server, PATH, &with("calls", &tools(&json!("required")))).await;
    insta::assert_json_snapshot!("chat_calls", stable(two.json()));
    let choice = json!({"type": "function", "function": {"name": "weather"}});
    let named = post(&server, PATH, &with("call", &tools(&choice))).await;
    assert_eq!(named.json()["choices"][0]["finish_reason"], "stop");
    let mut body = with("calls", &tools(&json!("auto")));
    body["stream"] = true.into();
    let stream = post(&server, PATH, &body).await.text();
    insta::assert_json_snapshot!("chat_stream_calls", stable(objects(&stream).0.into()));
}

#[tokio::test]
async fn what_was_asked_reaches_the_engine() {
    let server = Server::start().await;
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{\"place\":\"Köln\"}"}});
    let cut = json!({"id": "call_2", "type": "function", "function": {"name": "clock", "arguments": "{\"zo"}});
    let body = json!({
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
            {"role": "assistant", "content": null, "tool_calls": [call, cut]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": "hi"},
        ],
        "model": "GEMMA_3_1B_IT", "temperature": 0, "top_k": -1, "top_p": 1, "min_p": 0.05, "max_completion_tokens": 9, "max_tokens": 5,
        "seed": -2, "repeat_penalty": 1.1, "repeat_last_n": 0, "frequency_penalty": -0.5, "presence_penalty": 0.5,
        "stop": ["END", "\n\n"], "ignore_eos": true, "cache_prompt": false, "logit_bias": {"5": -100, "7": 1.5},
        "logprobs": true, "top_logprobs": 2, "parallel_tool_calls": false, "user": "somebody", "n": 1, "stream": false,
        "tools": [{"type": "function", "function": {"name": "weather", "description": "It tells the weather.", "parameters": {"type": "object"}, "strict": true}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": {"type": "object"}}},
        "unknown": [1], "store": true, "metadata": {"a": "b"},
    });
    let answer = post(&server, PATH, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["model"], "tiny", "what really answered");
    let (_, request) = server.worker.next_request().await;
    insta::assert_json_snapshot!("chat_request", request);
    let nulls = json!({"messages": [{"role": "user", "content": "hi"}], "model": null, "stream": null, "stop": null, "n": null,
        "tools": null, "tool_choice": null, "response_format": null, "logit_bias": null, "max_tokens": null});
    assert_eq!(post(&server, PATH, &nulls).await.status, 200);
    let (_, request) = server.worker.next_request().await;
    assert_eq!(request.max_tokens, None);
    let Some(last) = (match request.prompt {
        pocket_llm::engine::Prompt::Messages(chat) => chat.into_iter().last(),
        _ => None,
    }) else {
        panic!("a chat")
    };
    assert_eq!((last.role, last.content.as_str()), (Role::User, "hi"));
}

#[tokio::test]
async fn forms_by_every_name() {
    let server = Server::start().await;
    let schema = json!({"type": "object"});
    let table = [
        (json!({"response_format": {"type": "text"}}), None),
        (
            json!({"response_format": {"type": "json_object"}}),
            Some(Format::JsonObject),
        ),
        (
            json!({"response_format": {"type": "json_object", "schema": schema}}),
            Some(Format::JsonSchema(schema.clone())),
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
            Some(Format::JsonSchema(schema.clone())),
        ),
        (
            json!({"json_schema": schema}),
            Some(Format::JsonSchema(schema.clone())),
        ),
        (
            json!({"response_format": {"type": "regex", "pattern": "a+"}}),
            Some(Format::Regex("a+".into())),
        ),
        (
            json!({"response_format": {"type": "lark", "grammar": "start: \"a\""}}),
            Some(Format::Lark("start: \"a\"".into())),
        ),
        (
            json!({"response_format": {"type": "gbnf", "grammar": "root ::= \"a\""}}),
            Some(Format::Gbnf("root ::= \"a\"".into())),
        ),
        (
            json!({"grammar": "root ::= \"a\""}),
            Some(Format::Gbnf("root ::= \"a\"".into())),
        ),
    ];
    for (more, format) in table {
        let answer = post(&server, PATH, &with("hi", &more)).await;
        assert_eq!(answer.status, 200, "{more}: {}", answer.text());
        assert_eq!(
            server.worker.next_request().await.1.format,
            format,
            "{more}"
        );
    }
}

#[tokio::test]
async fn a_stream_that_goes_wrong_says_so_and_ends() {
    let server = Server::start().await;
    let mut client = Connection::open(server.address).await;
    let body = with("hold", &json!({"stream": true})).to_string();
    client.send("POST", PATH, &[], body.as_bytes()).await;
    let (id, _) = server.worker.next_request().await;
    server.worker.emit(id, [accepted(), text("one ")]);
    assert_eq!(client.head().await.status, 200);
    client.read_until("one ").await;
    let error = EngineError::EngineDied("it was killed".into());
    server.worker.emit(id, [Event::Failed(error)]);
    let (rest, whole) = client.rest().await;
    assert!(whole);
    let (objects, done) = objects(&rest);
    assert!(!done, "no [DONE] after an error");
    insta::assert_json_snapshot!("chat_stream_error", objects);
}

#[tokio::test]
async fn what_goes_wrong_before_a_stream_has_a_status() {
    let server = Server::start().await;
    let mut client = Connection::open(server.address).await;
    let body = with("hold", &json!({"stream": true, "n": 2})).to_string();
    client.send("POST", PATH, &[], body.as_bytes()).await;
    let (first, _) = server.worker.next_request().await;
    let (second, _) = server.worker.next_request().await;
    let too_long = EngineError::PromptTooLong {
        prompt_tokens: 5000,
        limit: 2048,
    };
    server.worker.emit(first, [accepted()]);
    server.worker.emit(second, [Event::Failed(too_long)]);
    let response = client.response().await;
    assert_eq!(response.status, 400);
    assert_eq!(response.json()["error"]["code"], "context_length_exceeded");
    server.worker.cancelled(first).await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_all_its_answers() {
    let server = Server::start().await;
    for stream in [false, true] {
        let mut client = Connection::open(server.address).await;
        let body = with("hold", &json!({"stream": stream, "n": 3})).to_string();
        client.send("POST", PATH, &[], body.as_bytes()).await;
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(server.worker.next_request().await.0);
        }
        for id in &ids {
            server.worker.emit(*id, [accepted(), text("a")]);
        }
        if stream {
            client.head().await;
            client.read_until("\"a\"").await;
        }
        // One of them is done already: the others are cancelled.
        server.worker.emit(ids[0], [finished(FinishReason::Stop)]);
        until(|| server.engine.in_flight() == 2).await;
        drop(client);
        let mut cancelled = [
            server.worker.next_frame().await,
            server.worker.next_frame().await,
        ];
        cancelled.sort_by_key(|frame| format!("{frame:?}"));
        let expected = [ids[1], ids[2]].map(|id| ToWorker::Cancel { id });
        assert_eq!(cancelled, expected);
        until(|| server.engine.in_flight() == 0).await;
    }
    server
        .metric_becomes(
            r#"pocket_llm_requests_total{endpoint="/v1/chat/completions",outcome="cancelled"}"#,
            2,
        )
        .await;
}

#[tokio::test]
async fn some_of_the_tools_can_be_allowed() {
    let server = Server::start().await;
    let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
    let allow = |mode: &str, names: &[&str]| {
        let allowed: Vec<Value> = names.iter().map(|name| tool(name)).collect();
        let allowed = json!({"mode": mode, "tools": allowed});
        let choice = json!({"type": "allowed_tools", "allowed_tools": allowed});
        let more = json!({"tools": [tool("weather"), tool("clock")], "tool_choice": choice});
        with("hi", &more)
    };
    for (mode, choice) in [
        ("auto", ToolChoice::Auto),
        ("required", ToolChoice::Required),
    ] {
        let answer = post(&server, PATH, &allow(mode, &["clock"])).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let (_, request) = server.worker.next_request().await;
        let tools = request.tools.unwrap();
        assert_eq!((tools.tools.len(), tools.choice), (2, choice));
        assert_eq!(tools.allowed, Some(vec!["clock".into()]));
    }
    for (body, param) in [
        (allow("auto", &["clock", "b"]), "tool_choice"),
        (allow("auto", &[]), "tool_choice.allowed_tools.tools"),
        (allow("none", &["clock"]), "tool_choice.allowed_tools.mode"),
    ] {
        let refused = post(&server, PATH, &body).await;
        assert_eq!(refused.status, 400, "{body}");
        assert_eq!(
            refused.json()["error"]["param"],
            param,
            "{}",
            refused.text()
        );
    }
}
