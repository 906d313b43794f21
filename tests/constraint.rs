//! Answers in a form, through the whole worker: whatever the model's logits are, an answer that ends by itself parses and validates.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/schemas.rs"]
mod schemas;
#[path = "support/scripted.rs"]
mod scripted;

use pocket_llm::engine::{
    EngineError, EngineHandle, Event, FinishReason, Format, Request, Sampling, Token,
};
use schemas::{Random, schema};
use scripted::{END, Script, Told, engine, read, request};
use serde_json::{Value, json};
use std::sync::Arc;

/// A request whose logits are noise.
fn noise(format: Format, seed: u64) -> Request {
    Request {
        sampling: Sampling {
            temperature: 2.0,
            seed,
            ..Sampling::GREEDY
        },
        format: Some(format),
        ..request(&format!("{seed} noise|"))
    }
}

async fn ask(engine: &EngineHandle, request: Request) -> Told {
    read(engine.submit(request).unwrap()).await
}

/// The error of a request that fails, and nothing else.
async fn refusal(engine: &EngineHandle, request: Request) -> String {
    let told = ask(engine, request).await;
    assert_eq!(told.events.len(), 1, "{told:?}");
    match told.events.into_iter().next() {
        Some(Event::Failed(EngineError::BadRequest(why))) => why,
        other => panic!("{other:?}"),
    }
}

fn validator(schema: &Value) -> jsonschema::Validator {
    jsonschema::options()
        .should_validate_formats(true)
        .build(schema)
        .unwrap()
}

/// The answer as JSON, if it is complete.
fn complete(told: &Told) -> Option<Value> {
    match told.outcome().reason {
        FinishReason::Stop => Some(serde_json::from_str(&told.text).unwrap_or_else(|error| {
            panic!("{error}: {}", told.text);
        })),
        FinishReason::Length => None,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_gives_valid_answers_to_two_hundred_schemas() {
    let script = Arc::new(Script::silent());
    let engine = engine(&script, 4, 60).await;
    let mut finished = 0;
    for seed in 0..200 {
        let schema = schema(&mut Random::new(seed));
        let told = ask(&engine, noise(Format::JsonSchema(schema.clone()), seed)).await;
        if let Some(answer) = complete(&told) {
            finished += 1;
            let validator = validator(&schema);
            if let Err(error) = validator.validate(&answer) {
                panic!(
                    "{error}\n{}\ndoes not validate against\n{schema}",
                    told.text
                );
            }
        }
    }
    // Noise goes on and on where it may (objects and strings without bounds), and then ends at the context's end.
    assert!(
        finished >= 120,
        "only {finished} of 200 answers were completed"
    );
    engine.shutdown().await;
}
