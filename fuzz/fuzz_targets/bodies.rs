//! See the harness; `cargo test` replays its corpus.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../harness/bodies.rs"]
mod bodies;

fuzz_target!(|bytes: &[u8]| bodies::check(bytes));
