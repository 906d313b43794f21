//! What turning a token's bytes into text costs.

use criterion::{Criterion, criterion_group, criterion_main};
use pocket_llm::worker::text::{TextStream, Think};
use std::hint::black_box;

const TOKENS: usize = 8;

fn text(criterion: &mut Criterion) {
    let stops: Vec<String> = ["<|im_end|>", "<|endoftext|>", "\n\nUser:", "###"]
        .map(String::from)
        .into();
    let plain: [&[u8]; TOKENS] = [
        b"The", b" answer", b" is", b",", b" of", b" course", b" 42", b".",
    ];
    let korean: [&[u8]; TOKENS] = [
        b"\xed\x95",
        b"\x9c\xea",
        b"\xb5\xad",
        b"\xec\x96",
        b"\xb4",
        b" ",
        b"\xed\x95\x9c",
        b"!",
    ];
    let mut group = criterion.benchmark_group("text");
    for (name, stop, think, tokens) in [
        ("plain", &[][..], Think::Off, plain),
        ("split_characters", &[][..], Think::Off, korean),
        ("stops", &stops[..], Think::Off, plain),
        ("stops_thinking", &stops[..], Think::Inside, plain),
    ] {
        let mut stream = TextStream::new(stop, think);
        let mut pieces = Vec::new();
        let mut turn = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                turn = (turn + 1) % TOKENS;
                pieces.clear();
                stream.push(black_box(tokens[turn]), &mut pieces)
            });
        });
    }
}

criterion_group!(benches, text);
criterion_main!(benches);
