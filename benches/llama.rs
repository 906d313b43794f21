//! Prefill and decode speed of a real model through the whole engine (frames, scheduling, sampling and text included).
//! Elements are tokens. The model is `$POCKET_LLM_BENCH_MODEL`, by default the small one of the tests.

#[path = "../tests/support/models.rs"]
mod models;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use models::test_model;
use pocket_llm::engine::{
    CacheScope, EngineHandle, EngineOptions, EngineState, Event, Launch, Prompt, Request,
    Speculate, Usage, WorkerConfig,
};
use pocket_llm::worker;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const PROMPT_TOKENS: u32 = 512;
const ANSWER_TOKENS: u32 = 64;

fn model() -> PathBuf {
    let chosen = std::env::var_os("POCKET_LLM_BENCH_MODEL").map(PathBuf::from);
    chosen.unwrap_or_else(|| test_model("SmolLM2-135M-Instruct.Q4_1.gguf"))
}

async fn start(parallel: u32) -> EngineHandle {
    let threads = pocket_llm::device::default_threads();
    let engine = EngineHandle::start(EngineOptions {
        config: WorkerConfig {
            model: model(),
            ctx_size: Some(1024 * parallel),
            parallel,
            threads,
            threads_batch: threads,
            batch_size: 128,
            step_ms: 300,
            places: parallel,
            chat_template: None,
            cache_bytes: None,
            cache_scope: CacheScope::Server,
            speculate: Speculate::Off,
            ..WorkerConfig::default()
        },
        launch: Launch::Thread(Arc::new(|stream| {
            worker::serve(stream, &worker::llama::Llama, || {});
        })),
        stall: Duration::from_mins(1),
        load_stall: Duration::from_mins(2),
        restart_pause: Duration::from_millis(500),
    })
    .expect("an engine");
    match engine.loaded().await {
        EngineState::Ready(_) => engine,
        other => panic!("{other:?}"),
    }
}

fn request(prompt: String, max_tokens: u32) -> Request {
    Request {
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        cache_prompt: false,
        ..Request::new("bench", Prompt::Text(prompt))
    }
}

async fn ask(engine: &EngineHandle, request: Request) -> Usage {
    let mut generation = engine.submit(request).expect("a place");
    while let Some(event) = generation.next().await {
        match event {
            Event::Finished(outcome) => return outcome.usage,
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    panic!("no terminal event")
}

/// A text of about as many tokens: a common short word is one token in every vocabulary.
fn words(count: u32) -> String {
    "the ".repeat(count as usize)
}

fn prefill(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let engine = runtime.block_on(start(1));
    let usage = runtime.block_on(ask(&engine, request(words(PROMPT_TOKENS), 1)));
    let mut group = criterion.benchmark_group("prefill");
    group.throughput(Throughput::Elements(usage.prompt_tokens.into()));
    group.bench_function(format!("{} tokens", usage.prompt_tokens), |bencher| {
        bencher.iter_custom(|rounds| {
            runtime.block_on(async {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    let began = Instant::now();
                    ask(&engine, request(words(PROMPT_TOKENS), 1)).await;
                    time += began.elapsed();
                }
                time
            })
        });
    });
    group.finish();
    runtime.block_on(engine.shutdown());
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for sequences in [1, 4, 8] {
        let runtime = Runtime::new().expect("a runtime");
        let engine = runtime.block_on(start(sequences));
        group.throughput(Throughput::Elements(u64::from(sequences * ANSWER_TOKENS)));
        group.bench_function(format!("{sequences} streams"), |bencher| {
            bencher.iter_custom(|rounds| {
                runtime.block_on(async {
                    let mut time = Duration::ZERO;
                    for _ in 0..rounds {
                        let asked = (0..sequences).map(|_| {
                            let engine = engine.clone();
                            tokio::spawn(async move {
                                ask(
                                    &engine,
                                    request("Once upon a time".into(), ANSWER_TOKENS + 1),
                                )
                                .await
                            })
                        });
                        let asked: Vec<_> = asked.collect();
                        let mut slowest = 0.0f64;
                        for usage in asked {
                            slowest = slowest.max(usage.await.expect("an answer").predicted_ms);
                        }
                        // From the first sampled token to the last: the prompt is not counted.
                        time += Duration::from_secs_f64(slowest / 1000.0);
                    }
                    time
                })
            });
        });
        runtime.block_on(engine.shutdown());
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_secs(3));
    targets = prefill, decode
}
criterion_main!(benches);
