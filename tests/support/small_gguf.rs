//! Writes GGUF files that have everything but a language: a header that our reader accepts, and weights of zero. Scripted workers
//! "load" them. Layout: the GGUF specification, version 3.

use std::path::Path;

const TEXT: u32 = 8;
const U32: u32 = 4;
const ARRAY: u32 = 9;
const F32: u32 = 0;
const ALIGNMENT: usize = 32;
const WIDTH: u64 = 32;
const TOKENS: u64 = 8;

/// Writes a model of `architecture` that is called `name`, with weights of about `kib` KiB.
pub(crate) fn write(path: &Path, architecture: &str, name: &str, kib: u64) {
    let rows = (kib * 1024 / (WIDTH * 4)).max(TOKENS);
    let numbers = [
        ("block_count", 1),
        ("context_length", 32_768),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
    ];
    let mut file = Vec::new();
    file.extend(b"GGUF");
    file.extend(3u32.to_le_bytes());
    file.extend(2u64.to_le_bytes());
    file.extend((4 + numbers.len() as u64).to_le_bytes());
    for (key, value) in [
        ("general.architecture", architecture),
        ("general.name", name),
        ("general.license", "gemma"),
    ] {
        text(&mut file, key);
        file.extend(TEXT.to_le_bytes());
        text(&mut file, value);
    }
    for (key, value) in numbers {
        text(&mut file, &format!("{architecture}.{key}"));
        file.extend(U32.to_le_bytes());
        file.extend(u32::to_le_bytes(value));
    }
    text(&mut file, "tokenizer.ggml.tokens");
    file.extend(ARRAY.to_le_bytes());
    file.extend(TEXT.to_le_bytes());
    file.extend(TOKENS.to_le_bytes());
    for token in 0..TOKENS {
        text(&mut file, &format!("t{token}"));
    }
    let mut offset = 0u64;
    for (tensor, rows) in [("token_embd.weight", TOKENS), ("blk.0.ffn_up.weight", rows)] {
        text(&mut file, tensor);
        file.extend(2u32.to_le_bytes());
        file.extend(WIDTH.to_le_bytes());
        file.extend(rows.to_le_bytes());
        file.extend(F32.to_le_bytes());
        file.extend(offset.to_le_bytes());
        offset += WIDTH * rows * 4;
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    let length = file.len() as u64 + offset;
    std::fs::write(path, file).unwrap();
    // Weights of zero need no blocks on the disk.
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(length).unwrap();
}

fn text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}
