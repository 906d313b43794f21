//! What choosing a token costs, for vocabularies of the size of Gemma's and of `SmolLM`'s.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pocket_llm::engine::{Sampling, Token};
use pocket_llm::worker::sampling::Sampler;
use std::hint::black_box;

/// Sum of twelve uniform numbers, close to normal: mean 0, standard deviation 3. A model's logits are about that wide, and
/// a few tokens stand out.
fn logits(n_vocab: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap_or_default()) / 65_536.0
    };
    let normal = |_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 3.0;
    let mut logits: Vec<f32> = (0..n_vocab).map(normal).collect();
    for rank in 0_u16..8 {
        logits[usize::from(rank) * 5_003 + 17] = 18.0 - f32::from(rank);
    }
    logits
}

fn settings() -> [(&'static str, Sampling); 6] {
    let greedy = Sampling {
        seed: 1,
        ..Sampling::GREEDY
    };
    let temperature = Sampling {
        temperature: 0.8,
        ..greedy.clone()
    };
    let top_p = Sampling {
        top_p: 0.95,
        ..temperature.clone()
    };
    let chain = Sampling {
        top_k: 40,
        min_p: 0.05,
        ..top_p.clone()
    };
    let penalties = Sampling {
        repeat_penalty: 1.1,
        ..chain.clone()
    };
    let top_k = Sampling {
        top_k: 1024,
        ..temperature.clone()
    };
    [
        ("greedy", greedy),
        ("chain", chain),
        ("chain_penalties", penalties),
        ("top_k_1024", top_k),
        ("top_p", top_p),
        ("temperature", temperature),
    ]
}

fn sampling(criterion: &mut Criterion) {
    for n_vocab in [262_144_usize, 49_152] {
        let logits = logits(n_vocab);
        let prompt: Vec<Token> = (0..64).map(|index| Token(index * 601)).collect();
        let mut group = criterion.benchmark_group("sampling");
        for (name, sampling) in settings() {
            let mut sampler = Sampler::new(&sampling, &prompt);
            let mut position = 0;
            group.bench_function(BenchmarkId::new(name, n_vocab), |bencher| {
                bencher.iter(|| {
                    position += 1;
                    let token = sampler.sample(black_box(&logits), position);
                    // Always the same window, for numbers that can be compared.
                    sampler.accept(prompt[position as usize % prompt.len()]);
                    token
                });
            });
        }
    }
}

/// The second draw of an answer in a form: one token in four may come.
fn among(criterion: &mut Criterion) {
    for n_vocab in [262_144_usize, 49_152] {
        let logits = logits(n_vocab);
        let mask = vec![0x1111_1111; n_vocab / 32];
        let mut group = criterion.benchmark_group("among");
        for (name, sampling) in settings() {
            let mut sampler = Sampler::new(&sampling, &[]);
            let mut position = 0;
            group.bench_function(BenchmarkId::new(name, n_vocab), |bencher| {
                bencher.iter(|| {
                    position += 1;
                    sampler.sample_among(black_box(&logits), position, black_box(&mask))
                });
            });
        }
    }
}

criterion_group!(benches, sampling, among);
criterion_main!(benches);
