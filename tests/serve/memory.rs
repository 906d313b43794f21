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

/// Lines of `smaps` about one range of addresses.
struct Range {
    kib: u64,
    /// May lie in huge pages, says the kernel.
    huge: bool,
}

/// The large ranges that belong to no file.
fn large_ranges(pid: u32) -> Vec<Range> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut ranges, mut of_a_file, mut kib) = (Vec::new(), false, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") => kib = words.next().unwrap().parse().unwrap(),
            Some("VmFlags:") if !of_a_file && kib > 8 << 10 => {
                let huge = words.any(|flag| flag == "hg");
                ranges.push(Range { kib, huge });
            }
            Some(key) if !key.ends_with(':') => of_a_file = words.nth(4).is_some(),
            _ => {}
        }
    }
    ranges
}

/// Cells and repacked weights are read for each token, and the more pages they lie in the longer that takes. What comes with requests
/// stays in small ones.
#[tokio::test]
async fn the_cells_may_lie_in_huge_pages_and_nothing_of_a_request() {
    if !fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap() {
        return;
    }
    let server = Server::start(&["--parallel", "2", "--ctx-size", "4096"]).await;
    let worker = server.worker().await;
    let ranges = large_ranges(worker);
    let huge: u64 = ranges.iter().filter(|r| r.huge).map(|r| r.kib).sum();
    let cells = 4096 * 22 + 4096 / 2; // KiB: 22.5 a token
    assert!(huge >= cells, "{huge} KiB may, of them cells {cells}");
    let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
    assert!(status.contains("THP_enabled:\t0"), "from now on no others");
}
