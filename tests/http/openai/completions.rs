//! `POST /v1/completions`.

use super::{objects, post, stable};
use crate::support::Server;
use pocket_llm::engine::{Prompt, Token};
use serde_json::{Value, json};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn an_answer_is_one_object() {
    let server = Server::start().await;
    let answer = post(&server, PATH, &json!({"prompt": "Once", "seed": 1})).await;
    assert_eq!(answer.status, 200);
    insta::assert_json_snapshot!("completion", stable(answer.json()));
    let (_, request) = server.worker.next_request().await;
    assert_eq!(request.max_tokens, Some(16), "OpenAI's default");
    assert_eq!(request.prompt, Prompt::Text("Once".into()));
}

#[tokio::test]
async fn a_stream_is_chunks() {
    let server = Server::start().await;
    let body = json!({"prompt": "Once", "stream": true, "stream_options": {"include_usage": true}});
    let (chunks, done) = objects(&post(&server, PATH, &body).await.text());
    assert!(done);
    insta::assert_json_snapshot!("completion_stream", stable(chunks.into()));
}

#[tokio::test]
async fn prompts_by_every_shape() {
    let server = Server::start().await;
    let tokens = |ids: &[u32]| Prompt::Tokens(ids.iter().copied().map(Token).collect());
    let text = |text: &str| Prompt::Text(text.into());
    let table = [
        (json!("a"), vec![text("a")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([5, 6]), vec![tokens(&[5, 6])]),
        (json!([[5], [6, 7]]), vec![tokens(&[5]), tokens(&[6, 7])]),
    ];
    for (prompt, prompts) in table {
        let body = json!({"prompt": prompt, "n": 2, "seed": 3});
        let answer = post(&server, PATH, &body).await.json();
        let choices = answer["choices"].as_array().unwrap();
        assert_eq!(choices.len(), 2 * prompts.len());
        let of_prompts = 5 * prompts.len();
        assert_eq!(
            answer["usage"]["prompt_tokens"], of_prompts,
            "each prompt counts once"
        );
        for (index, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], index);
            let (_, request) = server.worker.next_request().await;
            assert_eq!(request.prompt, prompts[index / 2]);
            assert_eq!(request.sampling.seed, 3 + index as u64);
        }
    }
}

#[tokio::test]
async fn log_probabilities_in_the_older_form() {
    let server = Server::start().await;
    let body = json!({"prompt": "gö", "logprobs": 2, "echo": true, "max_tokens": 4});
    let answer = post(&server, PATH, &body).await.json();
    insta::assert_json_snapshot!("completion_logprobs", stable(answer));
    let none = json!({"prompt": "gö", "logprobs": 0});
    let answer = post(&server, PATH, &none).await.json();
    assert!(answer["choices"][0]["logprobs"]["top_logprobs"].is_null());
    let scored = json!({"prompt": "gö", "logprobs": 1, "echo": true, "max_tokens": 0});
    let answer = post(&server, PATH, &scored).await.json();
    assert_eq!(answer["choices"][0]["text"], "gö");
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.25]));
    assert_eq!(logprobs["text_offset"], json!([0, 1]));
    // The pieces of a stream make up the same lists.
    let mut body = json!({"prompt": "gö", "logprobs": 2, "echo": true});
    let whole = post(&server, PATH, &body).await.json()["choices"][0]["logprobs"].clone();
    body["stream"] = true.into();
    let (chunks, _) = objects(&post(&server, PATH, &body).await.text());
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let pieces = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["logprobs"][name].as_array());
        let joined: Vec<Value> = pieces.flatten().cloned().collect();
        assert_eq!(Value::Array(joined), whole[name], "{name}");
    }
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let server = Server::start().await;
    let bodies = [
        json!({}),
        json!({"prompt": []}),
        json!({"prompt": [[]]}),
        json!({"prompt": ["a", 5]}),
        json!({"prompt": [5, "a"]}),
        json!({"prompt": [-1]}),
        json!({"prompt": {}}),
        json!({"prompt": vec!["a"; 9]}),
        json!({"prompt": ["a", "b", "c"], "n": 3}),
        json!({"prompt": "a", "max_tokens": 0}),
        json!({"prompt": "a", "suffix": "b"}),
        json!({"prompt": "a", "best_of": 2}),
        json!({"prompt": "a", "logprobs": 21}),
        json!({"prompt": "a", "echo": 1}),
    ];
    let mut told = Vec::new();
    for body in bodies {
        let response = post(&server, PATH, &body).await;
        assert_eq!(response.status, 400, "{body}");
        let error = response.json()["error"].clone();
        told.push(format!(
            "{}: {}",
            error["param"],
            error["message"].as_str().unwrap()
        ));
    }
    insta::assert_json_snapshot!("completion_wrong_fields", told);
}

#[tokio::test]
async fn empty_texts_are_prompts_and_no_suffixes() {
    let server = Server::start().await;
    for body in [
        json!({"prompt": ""}),
        json!({"prompt": [""], "suffix": ""}),
        json!({"prompt": "", "suffix": null}),
    ] {
        let answer = post(&server, PATH, &body).await;
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        let (_, request) = server.worker.next_request().await;
        assert_eq!(request.prompt, Prompt::Text(String::new()));
    }
}
