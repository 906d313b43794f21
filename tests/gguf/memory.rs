//! The memory plan: what is counted, what is reduced, and what is refused. Whether the counts are true is tested in `llama.rs`, against
//! what llama.cpp reports.

use crate::gguf_file::{BOOL, GgufFile, STRING, U32};
use pocket_llm::engine::CacheType;
use pocket_llm::models::gguf::Gguf;
use pocket_llm::models::memory::{
    Asked, Bytes, DoesNotFit, Kernels, Needs, Plan, cache_bytes_read, logit_rows, plan,
};
use proptest::prelude::*;
use std::io::Cursor;
use std::path::Path;

const F32: (u32, u64, u64) = (0, 1, 4);
const Q4_0: (u32, u64, u64) = (2, 32, 18);
const Q6_K: (u32, u64, u64) = (14, 256, 210);

const AVX2: Kernels = Kernels {
    avx2: true,
    avx512: false,
    dotprod: false,
    i8mm: false,
};
const ARM: Kernels = Kernels {
    avx2: false,
    avx512: false,
    dotprod: true,
    i8mm: true,
};
const NONE: Kernels = Kernels {
    avx2: false,
    avx512: false,
    dotprod: false,
    i8mm: false,
};

const NOTHING: Asked = Asked {
    ctx_size: None,
    parallel: None,
    batch_size: None,
    cache_type: CacheType::F16,
    cache_bytes: Some(0),
    no_drafts: true,
};

/// The header alone: its data is only announced.
fn read(file: &GgufFile) -> Gguf {
    let (header, length) = file.header();
    Gguf::parse(Cursor::new(header), length, Path::new("m.gguf")).unwrap()
}

/// A shape: layers, width, heads, heads of the cache, length of a head.
fn shape(architecture: &str, [layers, width, heads, kv_heads, length]: [u32; 5]) -> GgufFile {
    let key = |name: &str| format!("{architecture}.{name}");
    GgufFile::new(architecture)
        .u32(&key("block_count"), layers)
        .u32(&key("context_length"), 32_768)
        .u32(&key("embedding_length"), width)
        .u32(&key("feed_forward_length"), 4 * width)
        .u32(&key("attention.head_count"), heads)
        .u32(&key("attention.head_count_kv"), kv_heads)
        .u32(&key("attention.key_length"), length)
        .u32(&key("attention.value_length"), length)
}

/// 1,000 tokens of vocabulary, one tensor.
fn finished(file: GgufFile) -> GgufFile {
    let tokens = [0u8; 8 * 1000];
    file.array("tokenizer.ggml.tokens", STRING, 1000, &tokens)
        .tensor("output_norm.weight", &[64], F32)
}

fn planned(file: &GgufFile, asked: Asked, kernels: Kernels) -> Plan {
    plan(&read(file), &asked, kernels, None).unwrap()
}

fn sizes(cells: u32, sequences: u32, rows: u32) -> Asked {
    Asked {
        ctx_size: Some(cells),
        parallel: Some(sequences),
        batch_size: Some(rows),
        ..NOTHING
    }
}

/// KV bytes per architecture with 2 sequences of 4,096 tokens and 128 rows; every layer has one head of 128 numbers, so a
/// cell of a layer takes 512 bytes.
#[test]
fn windows_follow_the_architecture() {
    let window = |architecture: &str, layers, width| {
        shape(architecture, [layers, 64, 1, 1, 128])
            .u32(&format!("{architecture}.attention.sliding_window"), width)
    };
    let flags = |file: GgufFile, architecture: &str, flags: &[u8]| {
        let key = format!("{architecture}.attention.sliding_window_pattern");
        file.array(&key, BOOL, flags.len() as u64, flags)
    };
    // (file, layers with all 4,096 cells, windowed layers, their cells)
    let cases = [
        (window("llama", 12, 512), 12, 0, 0),
        (window("gemma3", 26, 512), 4, 22, 768),
        (window("gemma3", 5, 512), 0, 5, 768),
        (window("gemma3", 6, 0), 6, 0, 0),
        (shape("gemma3", [6, 64, 1, 1, 128]), 6, 0, 0),
        (shape("gemma2", [26, 64, 1, 1, 128]), 13, 13, 4096),
        (window("gemma2", 26, 1024), 13, 13, 1280),
        (window("gpt-oss", 24, 128), 12, 12, 256),
        (window("cohere2", 32, 256), 8, 24, 512),
        (window("phi3", 32, 256), 32, 0, 0),
        (window("gemma3n", 30, 512), 4, 16, 768),
        (window("smallthinker", 8, 1), 2, 6, 4096),
        (window("exaone4", 30, 256), 30, 0, 0),
        (window("exaone4", 64, 256), 16, 48, 512),
        (shape("llama4", [8, 64, 1, 1, 128]), 2, 6, 4096),
        (window("unknown-new", 7, 256), 7, 0, 0),
        (
            flags(window("gemma3", 3, 512), "gemma3", &[1, 0, 1]),
            1,
            2,
            768,
        ),
        (
            window("gemma3", 8, 512).u32("gemma3.attention.sliding_window_pattern", 2),
            4,
            4,
            768,
        ),
        (
            flags(
                window("gemma4", 4, 512).u32("gemma4.attention.shared_kv_layers", 1),
                "gemma4",
                &[1, 0, 1, 0],
            ),
            1,
            2,
            768,
        ),
    ];
    for (index, (file, full, windowed, cells)) in cases.into_iter().enumerate() {
        let plan = planned(&finished(file), sizes(8192, 2, 128), NONE);
        let expected = 2 * 512 * (full * 4096 + windowed * cells);
        assert_eq!(plan.needs.kv, expected, "case {index}");
    }
}

#[test]
fn cells_come_in_256_and_heads_by_layer() {
    let heads: Vec<u8> = [1u32, 0, 4].iter().flat_map(|n| n.to_le_bytes()).collect();
    let file = GgufFile::new("x")
        .u32("x.block_count", 3)
        .u32("x.embedding_length", 512)
        .u32("x.context_length", 4096)
        .u32("x.attention.head_count", 4)
        .array("x.attention.head_count_kv", U32, 3, &heads);
    let kv = |cells, sequences| {
        planned(&finished(file.clone()), sizes(cells, sequences, 8), NONE)
            .needs
            .kv
    };
    // Five heads of 128 numbers, keys and values, 2 bytes each.
    assert_eq!(kv(256, 1), 256 * 5 * 128 * 2 * 2);
    assert_eq!(kv(257, 1), 512 * 5 * 128 * 2 * 2);
    assert_eq!(kv(4 * 100, 4), 4 * 256 * 5 * 128 * 2 * 2);
}

#[test]
fn states_of_recurrent_layers_are_counted() {
    let file = GgufFile::new("mamba")
        .u32("mamba.block_count", 24)
        .u32("mamba.embedding_length", 768)
        .u32("mamba.ssm.conv_kernel", 4)
        .u32("mamba.ssm.inner_size", 1536)
        .u32("mamba.ssm.state_size", 16);
    let plan = planned(&finished(file), sizes(1024, 2, 32), NONE);
    assert_eq!(plan.needs.kv, 2 * 24 * 4 * (3 * 1536 + 16 * 1536));
}

/// Which weights are copied, on which CPU.
#[test]
fn copies_follow_type_rows_and_cpu() {
    let untied = || shape("x", [1, 512, 4, 4, 128]).tensor("token_embd.weight", &[512, 1024], Q4_0);
    let embedding = 1024 * 16 * 18;
    let file = finished(
        untied()
            .tensor("blk.0.attn_q.weight", &[512, 64], Q4_0)
            .tensor("blk.0.attn_k.weight", &[512, 12], Q4_0)
            .tensor("blk.0.attn_q.bias", &[512, 64], Q4_0)
            .tensor("blk.0.ffn_down.weight", &[512, 64], Q6_K)
            .tensor("blk.0.ffn_up_exps.weight", &[512, 64, 4], Q4_0)
            .tensor("blk.0.attn_k_b.weight", &[512, 64, 4], Q4_0)
            .tensor("output.weight", &[512, 1024], Q4_0),
    );
    let matrix = 64 * 16 * 18;
    let copied = |kernels| planned(&file, NOTHING, kernels).needs.repacked;
    assert_eq!(copied(NONE), 0);
    assert_eq!(copied(AVX2), matrix + 4 * matrix + embedding);
    let small = 12 * 16 * 18;
    let six = 64 * 2 * 210;
    assert_eq!(
        copied(ARM),
        matrix + u64::next_multiple_of(small, 32) + six + 4 * matrix + embedding
    );
    // An embedding that is the output matrix too is copied, and stays in the file for its rows.
    let tied = planned(&finished(untied()), NOTHING, AVX2).needs;
    assert_eq!((tied.repacked, tied.weights), (embedding, 256));
    assert_eq!(tied.cold, embedding, "all of the mapping but the norm");
}

/// What is not asked for shrinks in the documented order while memory does.
#[test]
fn the_cheapest_loss_comes_first() {
    let file = finished(shape("x", [8, 256, 4, 4, 64]));
    let model = read(&file);
    let mut seen = Vec::new();
    let mut available = planned(&file, NOTHING, NONE).needs.total();
    let mut last = u64::MAX;
    while let Ok(plan) = plan(&model, &NOTHING, NONE, Some(available)) {
        let total = plan.needs.total();
        assert!(total <= available && total < last);
        seen.push((
            plan.batch_size,
            plan.ctx_size / plan.parallel,
            plan.parallel,
        ));
        (last, available) = (total, total - 1);
    }
    let expected = [
        (512, 2048, 4),
        (256, 2048, 4),
        (128, 2048, 4),
        (64, 2048, 4),
        (32, 2048, 4),
        (32, 1024, 4),
        (32, 512, 4),
        (32, 512, 2),
        (32, 512, 1),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn what_was_asked_for_is_honoured_or_refused() {
    let model = read(&finished(shape("x", [8, 256, 4, 4, 64])));
    let asked = Asked {
        ctx_size: Some(65_536),
        ..NOTHING
    };
    let needs = plan(&model, &asked, NONE, None).unwrap().needs;
    let refused = plan(&model, &asked, NONE, Some(needs.total() / 2)).unwrap_err();
    let sentence = refused.to_string();
    assert!(
        sentence.starts_with("m.gguf with --ctx-size 65536 does not fit into memory: weights"),
        "{sentence}"
    );
    let cells: u32 = sentence
        .split("use --ctx-size ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let less = Asked {
        ctx_size: Some(cells),
        ..NOTHING
    };
    plan(&model, &less, NONE, Some(needs.total() / 2)).unwrap();
    let more = Asked {
        ctx_size: Some(cells + 4 * 256),
        ..NOTHING
    };
    assert!(plan(&model, &more, NONE, Some(needs.total() / 2)).is_err());
    // Nothing would do.
    let tiny = plan(&model, &asked, NONE, Some(1000))
        .unwrap_err()
        .to_string();
    assert!(
        tiny.ends_with("use a smaller model, or the same one with fewer bits per weight"),
        "{tiny}"
    );
    // A batch that was asked for stays, and what would do names another.
    let rows = Asked {
        batch_size: Some(8192),
        ..NOTHING
    };
    let sentence = plan(&model, &rows, NONE, Some(30 << 20))
        .unwrap_err()
        .to_string();
    assert!(
        sentence.contains("with --batch-size 8192") && sentence.ends_with("--batch-size 32"),
        "{sentence}"
    );
}

#[test]
fn settings_that_can_not_be_used_say_what_would_do() {
    let model = read(&finished(shape("x", [1, 256, 4, 4, 64])));
    let cases = [
        (sizes(65_536, 0, 128), "--parallel 0: use 1 to 256"),
        (sizes(65_536, 300, 512), "--parallel 300: use 1 to 256"),
        (
            sizes(65_537, 1, 128),
            "--ctx-size 65537 gives each of 1 sequences 65537 tokens, but the model was trained for 32768: use --ctx-size 32768 or less",
        ),
        (sizes(3, 4, 128), "--ctx-size is too small or too large"),
        (
            sizes(1024, 8, 4),
            "--batch-size 4: a step needs a row for each of 8 sequences; use 8 to 8192",
        ),
        (sizes(1024, 8, 9000), "--batch-size 9000"),
    ];
    for (asked, expected) in cases {
        match plan(&model, &asked, NONE, None) {
            Err(DoesNotFit::Setting(sentence)) => {
                assert!(sentence.contains(expected), "{sentence}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A row of these shapes takes 68 bytes for each number of the width, and a mask of 4 KiB.
#[test]
fn more_rows_are_usual_where_they_cost_little() {
    let rows = |width: u32, asked: Asked| {
        let file = shape("x", [2, width, 4, 4, 64]);
        planned(&finished(file), asked, NONE).batch_size
    };
    let widest = |rows: u32| ((16 << 20) / (rows - 128) - 4096) / 68;
    let usual = [
        128,
        widest(512),
        widest(512) + 1,
        widest(256),
        widest(256) + 1,
    ];
    assert_eq!(
        usual.map(|width| rows(width, NOTHING)),
        [512, 512, 256, 256, 128]
    );
    // What was asked for is what it is, and many sequences have a row each.
    assert_eq!(rows(128, sizes(4096, 2, 100)), 100);
    let many = Asked {
        parallel: Some(200),
        ..NOTHING
    };
    assert_eq!([rows(128, many), rows(8192, many)], [512, 200]);
}

/// Logits of rows that nobody asks for take addresses, and no memory.
#[test]
fn logits_are_counted_for_the_rows_that_ask_for_them() {
    let vocabulary = 100_000_u64;
    let tokens = vec![0; 8 * 100_000];
    let file = shape("x", [2, 256, 4, 4, 64])
        .array("tokenizer.ggml.tokens", STRING, vocabulary, &tokens)
        .tensor("output_norm.weight", &[64], F32);
    let needs = |asked| planned(&file, asked, NONE).needs;
    let [few, many] = [2, 8].map(|sequences| needs(sizes(1024 * sequences, sequences, 128)));
    assert_eq!(many.compute - few.compute, 6 * 4 * vocabulary);
    assert_eq!(
        few.compute + few.reserved,
        128 * (4 * (vocabulary + 5 * 256) + 2 * 1024),
        "llama.cpp reserves logits of all rows"
    );
    assert_eq!(
        few.buffers() - few.total(),
        few.reserved + few.cold - few.process
    );
    let drafting = Asked {
        no_drafts: false,
        ..sizes(2048, 2, 128)
    };
    assert_eq!(needs(drafting).compute - few.compute, 16 * 4 * vocabulary);
}

#[test]
fn the_prompt_cache_takes_what_is_left_over() {
    let model = read(&finished(shape("x", [1, 256, 4, 4, 64])));
    let free = Asked {
        cache_bytes: None,
        ..NOTHING
    };
    let without = plan(&model, &NOTHING, NONE, None).unwrap().needs;
    let cache = |available: u64| {
        plan(&model, &free, NONE, Some(available))
            .unwrap()
            .needs
            .prompt_cache
    };
    assert_eq!(cache(without.total()), 0);
    assert_eq!(cache(without.total() + 1000), 1000);
    assert_eq!(cache(without.total() + (1 << 30)), 64 << 20);
    // What was asked for counts like everything else.
    let asked = Asked {
        cache_bytes: Some(100 << 20),
        ..NOTHING
    };
    let plenty = plan(&model, &asked, NONE, Some(without.total() + (100 << 20))).unwrap();
    assert_eq!(plenty.needs.prompt_cache, 100 << 20);
    assert_eq!(
        plenty.needs.buffers(),
        without.buffers(),
        "llama.cpp knows nothing of it"
    );
    let refused = plan(&model, &asked, NONE, Some(100 << 20))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("prompt cache 100 MiB") && refused.contains("with --cache-mib 100"),
        "{refused}"
    );
}

#[test]
fn drafts_are_counted_by_the_vocabulary() {
    assert_eq!(
        [49_152, 151_936, 262_144, 0].map(logit_rows),
        [32, 32, 16, 32]
    );
    let model = read(&finished(shape("x", [1, 256, 4, 4, 64])));
    let drafting = Asked {
        no_drafts: false,
        ..NOTHING
    };
    let [with, without] =
        [drafting, NOTHING].map(|asked| plan(&model, &asked, NONE, None).unwrap().needs);
    assert_eq!(with.total() - without.total(), with.drafts);
    assert!(with.drafts > 0 && without.drafts == 0);
}

#[test]
fn bytes_are_readable() {
    let shown =
        [0, 1023, 1 << 20, 1_600_000_000, 27 << 20, u64::MAX].map(|bytes| Bytes(bytes).to_string());
    assert_eq!(
        shown,
        [
            "0 B",
            "1023 B",
            "1.0 MiB",
            "1.5 GiB",
            "27 MiB",
            "16777216 TiB"
        ]
    );
    let needs = Needs {
        weights: 92 << 20,
        kv: 180 << 20,
        process: 19 << 20,
        ..Needs::default()
    };
    assert_eq!(
        needs.to_string(),
        "weights 92 MiB + KV cache 180 MiB + process 19 MiB = 291 MiB"
    );
}

proptest! {
    /// Any numbers in a file and in the settings: a plan that fits, or a sentence.
    #[test]
    fn no_number_is_too_wild(
        settings in proptest::collection::vec(prop_oneof![any::<u64>(), 0u64..1000], 14),
        architecture in prop_oneof![Just("gemma3"), Just("llama4"), Just("gemma4"), Just("mamba")],
        asked in (any::<Option<u32>>(), proptest::option::of(0u32..300), proptest::option::of(0u32..9000)),
        available in any::<Option<u64>>(),
    ) {
        let names = [
            "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
            "attention.head_count_kv", "attention.key_length", "attention.value_length_swa", "attention.sliding_window",
            "attention.sliding_window_pattern", "ssm.inner_size", "ssm.state_size", "expert_used_count", "expert_feed_forward_length",
        ];
        let mut file = GgufFile::new(architecture);
        for (name, value) in names.iter().zip(&settings) {
            file = file.raw(format!("{architecture}.{name}").as_bytes(), 10, &value.to_le_bytes());
        }
        let asked = Asked { ctx_size: asked.0, parallel: asked.1, batch_size: asked.2, ..NOTHING };
        if let Ok(plan) = plan(&read(&finished(file)), &asked, ARM, available) {
            prop_assert!(available.is_none_or(|available| plan.needs.total() <= available));
            prop_assert!(asked.ctx_size.is_none_or(|cells| plan.ctx_size <= cells && plan.ctx_size > cells - plan.parallel));
            prop_assert_eq!(asked.parallel.unwrap_or(plan.parallel), plan.parallel);
            prop_assert_eq!(asked.batch_size.unwrap_or(plan.batch_size), plan.batch_size);
        }
    }
}

/// Blocks of 32 numbers with a scale of two bytes: 34 bytes instead of 64. They don't reach over the ends of heads.
#[test]
fn a_cache_of_eight_bits_takes_less_or_is_refused() {
    let q8 = Asked {
        cache_type: CacheType::Q8_0,
        ..sizes(8192, 2, 128)
    };
    let file = finished(shape("llama", [12, 256, 4, 2, 64]));
    let (full, small) = (
        planned(&file, sizes(8192, 2, 128), NONE).needs,
        planned(&file, q8, NONE).needs,
    );
    assert_eq!(small.kv * 32, full.kv * 17);
    assert_eq!(
        full.total() - small.total(),
        full.kv - small.kv,
        "nothing else changes"
    );
    let model = read(&file);
    let read_at = |cache_type, depth| cache_bytes_read(&model, cache_type, depth);
    assert_eq!(read_at(CacheType::F16, 4096) * 2, full.kv);
    assert_eq!(read_at(CacheType::Q8_0, 4096) * 2, small.kv);
    assert_eq!(read_at(CacheType::F16, 0), 0);

    let uneven = read(&finished(shape("llama", [12, 80, 1, 1, 80])));
    let refused = plan(&uneven, &q8, NONE, None).unwrap_err().to_string();
    assert_eq!(
        refused,
        "--cache-type q8_0: this model's heads have 80 numbers, which is no multiple of 32: use f16"
    );
}

/// A window is all that those layers read.
#[test]
fn a_window_bounds_what_is_read() {
    let file = shape("gemma3", [6, 64, 1, 1, 128]).u32("gemma3.attention.sliding_window", 512);
    let model = read(&finished(file));
    let read_at = |depth| cache_bytes_read(&model, CacheType::F16, depth);
    // Six layers up to the window, one beyond it.
    assert_eq!(read_at(512), 6 * 512 * 512);
    assert_eq!(read_at(1512), read_at(512) + 1000 * 512);
}
