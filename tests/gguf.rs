//! The GGUF reader against files that are right, cut, damaged and made to hurt; in `gguf/` the memory plan and
//! what `show` prints.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/gguf_file.rs"]
mod gguf_file;
#[path = "gguf/memory.rs"]
mod memory;
#[path = "support/models.rs"]
mod models;
#[path = "gguf/show.rs"]
mod show;

use gguf_file::{ARRAY, BOOL, GgufFile, STRING, Tensor, U16, U32};
use models::test_model;
use pocket_llm::models::gguf::{Gguf, GgufError, TensorType};
use pocket_llm::models::memory::{Asked, Kernels, plan};
use proptest::prelude::*;
use std::io::Cursor;
use std::path::Path;

const F32: (u32, u64, u64) = (0, 1, 4);
const Q4_0: (u32, u64, u64) = (2, 32, 18);

fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
    Gguf::parse(Cursor::new(bytes), bytes.len() as u64, Path::new("a.gguf"))
}

fn refusal(file: &GgufFile) -> String {
    parse(&file.whole()).unwrap_err().to_string()
}

/// A small model: a vocabulary, a template, some tensors.
fn small() -> GgufFile {
    GgufFile::new("llama")
        .text("general.name", "Small")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 512)
        .array("llama.attention.head_count_kv", U32, 1, &4u32.to_le_bytes())
        .texts("tokenizer.ggml.tokens", &["<s>", "a", "b", "ab"])
        .text("tokenizer.chat_template", "{{ messages }}")
        .tensor("token_embd.weight", &[32, 4], Q4_0)
        .tensor("blk.0.attn_q.weight", &[32, 32], Q4_0)
        .tensor("output_norm.weight", &[32], F32)
}

#[test]
fn a_right_file_is_read() {
    for version in [2, 3] {
        let mut file = small();
        file.version = version;
        let gguf = parse(&file.whole()).unwrap();
        assert_eq!(gguf.architecture(), "llama");
        assert_eq!(gguf.text("general.name"), Some("Small"));
        assert_eq!(gguf.number("llama.context_length"), Some(512));
        assert_eq!(gguf.layer_setting("attention.head_count_kv", 0), Some(4));
        assert_eq!(gguf.layer_setting("attention.head_count_kv", 1), None);
        assert_eq!(
            (gguf.vocab_size(), gguf.array_bytes("tokenizer.ggml.tokens")),
            (4, Some(7))
        );
        assert_eq!(gguf.chat_template(), Some("{{ messages }}"));
        let q = gguf.tensor("blk.0.attn_q.weight").unwrap();
        assert_eq!(
            (q.kind, q.dims, q.bytes, q.elements()),
            (TensorType::Q4_0, [32, 32, 1, 1], 576, 1024)
        );
        assert_eq!(q.layer(), Some((0, "attn_q.weight")));
        assert_eq!(q.offset % 32, 0);
        // No output matrix: the embedding is read whole.
        assert_eq!(gguf.bytes_per_decoded_token(), 72 + 576 + 128);
        let info = gguf.model_info();
        assert_eq!(
            (info.parameters, info.size_bytes),
            (128 + 1024 + 32, 72 + 576 + 128)
        );
        assert_eq!(info.quantisation.as_deref(), Some("Q4_0"));
    }
}

#[test]
fn what_one_token_reads_leaves_out_other_rows_and_other_experts() {
    let file = GgufFile::new("x")
        .u32("x.block_count", 2)
        .u32("x.nextn_predict_layers", 1)
        .u32("x.expert_count", 8)
        .u32("x.expert_used_count", 2)
        .tensor("token_embd.weight", &[32, 100], F32)
        .tensor("output.weight", &[32, 100], Q4_0)
        .tensor("blk.0.ffn_up_exps.weight", &[32, 32, 8], Q4_0)
        .tensor("blk.1.eh_proj.weight", &[32, 32], F32);
    let gguf = parse(&file.whole()).unwrap();
    assert_eq!(gguf.bytes_per_decoded_token(), 32 * 4 + 1800 + 2 * 576);
}

/// What is expected of a file: its refusal contains the words.
type Case = (GgufFile, &'static str);

fn check(cases: Vec<Case>) {
    for (file, expected) in cases {
        let sentence = refusal(&file);
        assert!(
            sentence.starts_with("a.gguf ") && sentence.contains(expected),
            "{expected}: {sentence}"
        );
        assert!(!sentence.contains('\n'), "{sentence}");
    }
}

const CUT: &str = "ends in the middle of its header";

#[test]
fn every_fault_of_an_entry_has_its_sentence() {
    check(vec![
        (
            small().u32("general.name", 1),
            "\"general.name\" is in its header twice",
        ),
        (
            small().u32("general.alignment", 0),
            "general.alignment must be",
        ),
        (
            small().u32("general.alignment", 4),
            "general.alignment must be",
        ),
        (
            small().u32("general.alignment", 48),
            "general.alignment must be",
        ),
        (
            small().raw(b"general.alignment", U16, &[32, 0]),
            "general.alignment must be",
        ),
        (small().raw(b"split.count", U16, &[3, 0]), "one of 3 parts"),
        (
            small().raw(b"", U32, &[0; 4]),
            "the name of entry 7 is empty",
        ),
        (
            small().raw(&[b'k'; 70_000], U32, &[0; 4]),
            "the name of entry 7",
        ),
        (
            small().raw(b"\xff\xfe", U32, &[0; 4]),
            "the name of entry 7",
        ),
        (
            small().raw(b"odd", 13, &[0; 8]),
            "\"odd\" has a value of unknown type 13",
        ),
        (
            small().array("deep", ARRAY, 1, &[0; 32]),
            "\"deep\" has a value of unknown type 9",
        ),
        (
            small().array("odd", 77, 0, &[]),
            "\"odd\" has a value of unknown type 77",
        ),
        (small().array("long", STRING, u64::MAX, &[]), CUT),
        (small().array("long", BOOL, 1 << 60, &[]), CUT),
        (small().array("long", 12, u64::MAX / 4, &[]), CUT),
        (small().raw(b"long", STRING, &u64::MAX.to_le_bytes()), CUT),
        (
            GgufFile::new("").tensor("t", &[32], F32),
            "does not name its architecture",
        ),
    ]);
}

#[test]
fn every_fault_of_a_tensor_has_its_sentence() {
    let entry = |dims: &[u64], offset| {
        small().entry(Tensor {
            name: "t".into(),
            dims: dims.to_vec(),
            kind: 0,
            bytes: 4,
            offset,
        })
    };
    check(vec![
        (
            small().tensor("output_norm.weight", &[32], F32),
            "\"output_norm.weight\" is in its header twice",
        ),
        (
            small().tensor(&"t".repeat(64), &[32], F32),
            "the name of tensor 3",
        ),
        (small().tensor("", &[32], F32), "the name of tensor 3"),
        (small().tensor("t", &[], F32), "\"t\" has 0 dimensions"),
        (small().tensor("t", &[1; 5], F32), "\"t\" has 5 dimensions"),
        (small().tensor("t", &[0], F32), "\"t\" has no elements"),
        (
            small().tensor("t", &[48], Q4_0),
            "\"t\" has rows of 48 elements, which is no multiple of 32",
        ),
        (
            small().tensor("t", &[32], (4, 32, 18)),
            "\"t\" is of type 4",
        ),
        (
            small().tensor("t", &[32], (999, 1, 1)),
            "\"t\" is of type 999",
        ),
        (GgufFile::new("llama"), "holds no weights"),
        // The tensors before it take 832 bytes of data.
        (entry(&[1], Some(0)), "begins at byte 0"),
        (entry(&[1], Some(833)), "begins at byte 833"),
        (entry(&[1], Some(864)), "begins at byte 864"),
        (
            entry(&[u64::MAX, 2], None),
            "\"t\" has no elements, or more",
        ),
        (
            entry(&[1 << 60, 1], None),
            "bytes shorter than its tensor table says",
        ),
    ]);
}

#[test]
fn every_fault_of_the_first_bytes_has_its_sentence() {
    let with = |change: fn(&mut GgufFile)| {
        let mut file = small();
        change(&mut file);
        file
    };
    check(vec![
        (with(|file| file.version = 1), "version 1"),
        (with(|file| file.version = 4), "version 4"),
        (with(|file| file.version = 0), "version 0"),
        (with(|file| file.version = 3 << 24), "big-endian"),
        (
            with(|file| file.pairs_announced = Some(u64::MAX)),
            "announces 18446744073709551615 entries",
        ),
        (with(|file| file.pairs_announced = Some(1000)), CUT),
        (
            with(|file| file.tensors_announced = Some(u64::MAX)),
            "tensors, and 65536 are the most",
        ),
        (with(|file| file.tensors_announced = Some(60_000)), CUT),
    ]);
    for (bytes, expected) in [
        (&b"GGU"[..], "is too short for a GGUF file"),
        (b"GGML", "is not a GGUF file"),
    ] {
        assert!(parse(bytes).unwrap_err().to_string().contains(expected));
    }
}

#[test]
fn a_file_that_lacks_bytes_is_told_how_many() {
    let whole = small().whole();
    for missing in [1, 127] {
        let sentence = parse(&whole[..whole.len() - missing])
            .unwrap_err()
            .to_string();
        assert!(
            sentence.contains(&format!("it is {missing} bytes shorter")),
            "{sentence}"
        );
    }
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    for (path, expected) in [
        (folder.path().to_owned(), "is a directory, not a GGUF file"),
        (pipe, "is not a regular file"),
        (folder.path().join("none"), "can't be opened"),
    ] {
        let sentence = Gguf::read(&path).unwrap_err().to_string();
        assert!(sentence.contains(expected), "{sentence}");
    }
}

/// What fuzzing found to be different: no panic, and no tensor outside of the file. `fuzz/fuzz_targets/gguf.rs` counts memory too.
#[test]
fn the_fuzzers_corpus_does_no_harm() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/gguf");
    let (mut files, mut read, mut bytes) = (0, 0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = std::fs::read(entry.unwrap().path()).unwrap();
        files += 1;
        bytes += file.len();
        for told in [file.len() as u64, 1 << 40] {
            let Ok(gguf) = Gguf::parse(Cursor::new(&file), told, Path::new("a")) else {
                continue;
            };
            read += 1;
            assert!(gguf.kept_bytes() < file.len() as u64, "{}", file.len());
            assert!(
                gguf.tensors()
                    .all(|tensor| tensor.offset + tensor.bytes <= told)
            );
            assert!(gguf.bytes_per_decoded_token() <= gguf.model_info().size_bytes);
            // An answer or a sentence.
            let _ = plan(&gguf, &Asked::default(), Kernels::here(), Some(1 << 30));
        }
    }
    assert!(
        files > 50 && read > 20 && bytes < 200_000,
        "{files} files, {read} read, {bytes} bytes"
    );
}

#[test]
fn real_files_are_read() {
    for (name, architecture, vocabulary, template) in [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "llama", 49_152, true),
        ("gemma3-tiny.gguf", "gemma3", 262_144, true),
        ("qwen2.5-tiny.gguf", "qwen2", 151_936, true),
    ] {
        let gguf = Gguf::read(&test_model(name)).unwrap();
        assert_eq!(
            (gguf.architecture(), gguf.vocab_size()),
            (architecture, vocabulary)
        );
        assert_eq!(gguf.chat_template().is_some(), template);
        // Vocabularies are not kept.
        assert!(gguf.kept_bytes() < 100_000, "{}", gguf.kept_bytes());
        let all: u64 = gguf.tensors().map(|tensor| tensor.bytes).sum();
        assert!(all <= gguf.file_bytes() && all > gguf.file_bytes() / 4);
        assert!(gguf.bytes_per_decoded_token() <= all);
    }
}

/// Cut at every byte: the header is found to be cut by the reader's own counting, whatever length the system tells, and the data
/// by the tensor table. The same with a whole real header is beside the reader, in `src/models/gguf/cuts.rs`.
#[test]
fn a_file_that_is_cut_anywhere_is_refused() {
    let texts: Vec<String> = (0..200).map(|n| format!("token{n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let made = small().texts("tokenizer.ggml.merges", &texts);
    let (made_header, _) = made.header();
    let whole = made.whole();
    for cut in 0..whole.len() {
        assert!(parse(&whole[..cut]).is_err(), "{cut}");
    }
    for cut in 0..made_header.len() {
        let lied = Gguf::parse(Cursor::new(&made_header[..cut]), 1 << 40, Path::new("a"));
        assert!(lied.is_err(), "{cut}");
    }
}

proptest! {
    /// Random changes of a right file: an answer or an error, and what is answered lies within the file.
    #[test]
    fn changed_bytes_do_no_harm(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = small().whole();
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        if let Ok(gguf) = parse(&bytes) {
            for tensor in gguf.tensors() {
                prop_assert!(tensor.offset + tensor.bytes <= bytes.len() as u64);
            }
            gguf.model_info();
            gguf.bytes_per_decoded_token();
        }
    }
}
