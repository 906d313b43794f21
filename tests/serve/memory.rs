//! What requests leave in the memory of the worker.

use crate::server::Server;
use serde_json::json;
use std::fmt::Write;
use std::fs;

/// KiB that malloc's heap has of the address space.
fn heap(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let line = maps.lines().find(|line| line.ends_with("[heap]")).unwrap();
    let (begin, end) = line
        .split_once(' ')
        .and_then(|(range, _)| range.split_once('-'))
        .unwrap();
    let address = |text| u64::from_str_radix(text, 16).unwrap();
    (address(end) - address(begin)) >> 10
}

/// A text of this many words.
fn words(number: u32, count: u32) -> String {
    (0..count).fold(String::new(), |mut text, word| {
        write!(text, "{} ", (number * 31 + word * 7) % 10).unwrap();
        text
    })
}

/// Saved states come and go in all sizes. In malloc's heap they leave holes, and it grows with the number of requests.
#[tokio::test]
async fn saved_states_leave_no_holes_in_the_heap() {
    let server = Server::start(&["--parallel", "1", "--cache-mib", "8"]).await;
    let worker = server.worker().await;
    let mut held = Vec::new();
    for number in 0..12 {
        server
            .answer(json!({"text": words(number, 30 + 10 * (number % 4)), "maxTokens": 1}))
            .await;
        held.push(heap(worker));
    }
    let saved = server.metric("pocket_llm_prompt_cache_bytes").await;
    assert!(saved > 4 << 20, "states are kept: {saved}");
    assert!(held[11] < held[1] + (1 << 10), "KiB: {held:?}");
}
