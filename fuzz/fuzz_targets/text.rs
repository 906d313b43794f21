//! See the harness; `cargo test` replays its corpus.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../harness/text.rs"]
mod text;

fuzz_target!(|bytes: &[u8]| text::check(bytes));
