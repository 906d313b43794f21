//! What it costs to find out what need not be computed: guesses at the next tokens, plans, and where a prompt can begin.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pocket_llm::engine::Token;
use pocket_llm::worker::cache::{Cache, Facts, Rules, Wanted};
use pocket_llm::worker::decoder::{SeqId, Vocab};
use pocket_llm::worker::speculation::{Costs, Drafter, Outlook, Pool, plan, plan_model};
use std::hint::black_box;

#[path = "../tests/support/scripted.rs"]
mod scripted;

/// Tokens that look random, of a vocabulary of so many.
fn text(seed: u32, length: usize, vocabulary: u32) -> Vec<Token> {
    let mut state = seed;
    let token = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Token((state >> 8) % vocabulary)
    };
    (0..length).map(token).collect()
}

/// Passes that take 10 ms, and a tenth of that for each further row.
fn costs() -> Costs {
    let mut costs = Costs::default();
    costs.observe(1, 10.0);
    costs.observe(128, 10.0 + 127.0);
    costs
}

/// Each token of an answer: what was said is taken in, and the next ones are guessed, behind a prompt of 1,500 tokens and beside a full pool.
fn guesses(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("drafts");
    // Words that hardly come again, and few words, where each guess has many places to come from.
    for (name, vocabulary) in [("many_words", 49_152), ("few_words", 64)] {
        let mut pool = Pool::new(false);
        for seed in 0..64 {
            pool.learn("a", &text(seed, 512, vocabulary), 0);
        }
        let prompt = text(99, 1500, vocabulary);
        let said = text(100, 4096, vocabulary);
        let mut drafter = Drafter::new("a", &prompt, 8192);
        let mut at = 0;
        group.bench_function(BenchmarkId::new("token", name), |bencher| {
            bencher.iter(|| {
                at = (at + 1) % said.len();
                drafter.said(&said[at..=at], &mut pool);
                drafter.guess(&pool, 31, |_| false)
            });
        });
    }
    for streams in [1_usize, 8] {
        let chances: Vec<Vec<f32>> = (0..streams)
            .map(|_| (0..31).map(|length| 0.9_f32.powi(length)).collect())
            .collect();
        group.bench_function(BenchmarkId::new("plan", streams), |bencher| {
            let costs = costs();
            let seqs: Vec<u32> = (0..8).take(streams).collect();
            bencher.iter(|| plan(black_box(&chances), &seqs, &costs, 0.0, 32));
        });
        let usual = vec![0.8; streams];
        group.bench_function(BenchmarkId::new("plan_model", streams), |bencher| {
            let costs = costs();
            let outlook = Outlook {
                speaking: streams,
                chances: &usual,
                costs: &costs,
                model: &costs,
                prefill_ms: 0.0,
                most_rows: 32,
            };
            bencher.iter(|| plan_model(black_box(&outlook), 0.01));
        });
    }
}

fn wanted(prompt: &[Token]) -> Wanted<'_> {
    Wanted {
        client: "a",
        prompt,
        reuse: true,
        longest: 2047,
    }
}

/// Where a prompt of 1,500 tokens can begin, with eight sequences that hold as much.
fn beginnings(criterion: &mut Criterion) {
    let rules = Rules {
        bytes: 64 << 20,
        bytes_per_token: 1,
        apart: false,
        forgets: false,
    };
    let vocab = scripted::ByteVocab::new();
    let vocab: &dyn Vocab = &vocab;
    let mut cache = Cache::new(8, rules);
    let common = text(7, 1000, 250);
    let prompt = |seed: u32| [common.clone(), text(seed, 500, 250)].concat();
    let facts = || Facts {
        cuttable: &|_| 0..=1500,
        bytes: &|_| 1500,
        vocab,
    };
    for seed in 0..8 {
        let prompt = prompt(seed);
        let Some(choice) = cache.choose(wanted(&prompt), facts()) else {
            return;
        };
        cache.begin("a", &prompt, &choice);
        cache.got(choice.seq, 0);
        cache.advance(choice.seq, prompt.len());
    }
    for seq in 0..8 {
        cache.release(SeqId(seq));
    }
    let mut group = criterion.benchmark_group("cache");
    for (name, asked) in [
        ("known", prompt(3)),
        ("begins_alike", prompt(20)),
        ("new", text(21, 1500, 250)),
    ] {
        let cache = &cache;
        group.bench_function(BenchmarkId::new("choose", name), move |bencher| {
            bencher.iter(|| cache.choose(wanted(black_box(&asked)), facts()));
        });
    }
}

criterion_group!(benches, guesses, beginnings);
criterion_main!(benches);
