//! See the harness; `cargo test` replays its corpus.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../harness/scheduler.rs"]
mod scheduler;
#[path = "../../tests/support/scripted.rs"]
mod scripted;

fuzz_target!(|bytes: &[u8]| scheduler::check(bytes));
