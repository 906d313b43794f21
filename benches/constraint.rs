//! What a format costs with a real model: tokens per second with one and without, in turns, so that both see the same machine.
//!
//!   cargo bench --bench constraint -- [threads] [rounds]
//!
//! The decisive number is the share of a step that is not decoding, because it does not depend on who else computes.

#![expect(clippy::print_stdout, reason = "it is what it is for")]
#![expect(clippy::unwrap_used, reason = "a benchmark ends at the first surprise")]

#[path = "../tests/support/models.rs"]
mod models;

use pocket_llm::engine::{
    CacheScope, EngineHandle, EngineOptions, EngineState, Event, Format, Launch, Message, Prompt,
    Request, Role, Sampling, Speculate, WorkerConfig,
};
use serde_json::json;
use std::time::Duration;

const TOKENS: u32 = 128;

fn options(threads: u32) -> EngineOptions {
    EngineOptions {
        config: WorkerConfig {
            model: models::test_model("SmolLM2-135M-Instruct.Q4_1.gguf"),
            ctx_size: Some(1024),
            parallel: 1,
            threads,
            threads_batch: threads,
            batch_size: 128,
            step_ms: 300,
            places: 8,
            chat_template: None,
            cache_bytes: None,
            cache_scope: CacheScope::Server,
            speculate: Speculate::Off,
            ..WorkerConfig::default()
        },
        launch: Launch::Process(vec![env!("CARGO_BIN_EXE_pocket-llm").into()]),
        stall: Duration::from_mins(2),
        load_stall: Duration::from_mins(2),
        restart_pause: Duration::from_millis(500),
    }
}

/// A form that does not end within the tokens.
fn format() -> Format {
    Format::JsonSchema(json!({
        "type": "array",
        "minItems": 100,
        "items": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 40},
                "age": {"type": "integer", "minimum": 0, "maximum": 120},
                "about": {"type": "string"},
                "likes": {"type": "array", "items": {"enum": ["tea", "coffee", "water"]}, "maxItems": 3},
            },
            "required": ["name", "age", "about", "likes"],
            "additionalProperties": false,
        },
    }))
}

#[derive(Clone, Copy)]
struct Cost {
    tokens_per_second: f64,
    /// Of the time of all steps.
    overhead: f64,
}

async fn answer(
    engine: &EngineHandle,
    format: Option<Format>,
    temperature: f32,
    seed: u64,
) -> Cost {
    let words = "List people as a JSON array of objects with name, age, about and likes.";
    let before = engine.load().worker;
    let mut generation = engine
        .submit(Request {
            sampling: Sampling {
                temperature,
                seed,
                ..Sampling::GREEDY
            },
            max_tokens: Some(TOKENS),
            ignore_eos: true,
            format,
            ..Request::new(
                "bench",
                Prompt::Messages(vec![Message::new(Role::User, words)]),
            )
        })
        .unwrap();
    let mut speed = 0.0;
    while let Some(event) = generation.next().await {
        match event {
            Event::Finished(outcome) => {
                let usage = outcome.usage;
                assert_eq!(usage.completion_tokens, TOKENS);
                speed = f64::from(TOKENS - 1) / usage.predicted_ms * 1000.0;
            }
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    let after = engine.load().worker;
    #[expect(clippy::cast_precision_loss, reason = "microseconds of seconds")]
    let micros = |micros: u64| micros as f64;
    let overhead = micros(after.overhead_us - before.overhead_us);
    let decode = micros(after.decode_us - before.decode_us);
    Cost {
        tokens_per_second: speed,
        overhead: overhead / (overhead + decode),
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

#[tokio::main(flavor = "multi_thread", worker_threads = 1)]
async fn main() {
    let numbers: Vec<u32> = std::env::args()
        .filter_map(|word| word.parse().ok())
        .collect();
    let threads = numbers.first().copied().unwrap_or(1);
    let rounds = numbers.get(1).copied().unwrap_or(9);
    let engine = EngineHandle::start(options(threads)).unwrap();
    let state = engine.loaded().await;
    assert!(matches!(state, EngineState::Ready(_)), "{state:?}");
    // Builds what formats need, and warms up.
    answer(&engine, Some(format()), 0.0, 0).await;
    for temperature in [0.0, 0.8, 2.0] {
        let (mut plain, mut held) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            plain.push(answer(&engine, None, temperature, round.into()).await);
            held.push(answer(&engine, Some(format()), temperature, round.into()).await);
        }
        let speed =
            |costs: &[Cost]| median(costs.iter().map(|cost| cost.tokens_per_second).collect());
        let overhead = |costs: &[Cost]| median(costs.iter().map(|cost| cost.overhead).collect());
        let pairs = plain.iter().zip(&held);
        let ratio = pairs.map(|(plain, held)| held.tokens_per_second / plain.tokens_per_second);
        println!(
            "temperature {temperature}: plain {:.1} tokens/s, {:.2} % beside decoding; in a format {:.1}, {:.2} %; median ratio {:.3}",
            speed(&plain),
            100.0 * overhead(&plain),
            speed(&held),
            100.0 * overhead(&held),
            median(ratio.collect()),
        );
    }
    engine.shutdown().await;
}
