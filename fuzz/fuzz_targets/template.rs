//! See the harness; `cargo test` replays its corpus.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../harness/template.rs"]
mod template;

fuzz_target!(|bytes: &[u8]| template::check(bytes));
