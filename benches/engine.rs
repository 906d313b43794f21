//! What a step costs us beside the model's own computing: the loop, scheduling, sampling, text, frames and routing, over a
//! decoder that takes no time. Elements are tokens.

#[path = "../tests/support/scripted.rs"]
mod scripted;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pocket_llm::engine::EngineHandle;
use scripted::{Script, options, read, request};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const TOKENS: u32 = 500;

/// `sequences` streams of 500 tokens each, from submission to the last event.
fn step_overhead(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step_overhead");
    for sequences in [1, 4, 8] {
        let runtime = Runtime::new().expect("a runtime");
        let engine = runtime.block_on(async {
            let engine = EngineHandle::start(options(&Arc::new(Script::silent()), sequences, 0))
                .expect("an engine");
            engine.loaded().await;
            engine
        });
        group.throughput(Throughput::Elements(u64::from(sequences * TOKENS)));
        group.bench_function(BenchmarkId::from_parameter(sequences), |bencher| {
            bencher.iter_custom(|rounds| runtime.block_on(streams(&engine, sequences, rounds)));
        });
        runtime.block_on(engine.shutdown());
    }
    group.finish();
}

async fn streams(engine: &EngineHandle, sequences: u32, rounds: u64) -> Duration {
    let began = Instant::now();
    for _ in 0..rounds {
        let submitted = (0..sequences).map(|_| {
            let mut request = request("loop:token |");
            request.max_tokens = Some(TOKENS);
            engine.submit(request).expect("a place")
        });
        let reading: Vec<_> = submitted
            .map(|generation| tokio::spawn(read(generation)))
            .collect();
        for told in reading {
            told.await.expect("a whole answer");
        }
    }
    began.elapsed()
}

criterion_group!(benches, step_overhead);
criterion_main!(benches);
