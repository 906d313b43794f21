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
    // It may grow by steps of 2 MiB.
    assert!(held[11] < held[1] + (6 << 10), "KiB: {held:?}");
}

/// Whether the system gives huge pages of 2 MiB to who asks, and has some for so many KiB.
fn gives_huge_pages(kib: u64) -> bool {
    let setting = |name| {
        fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{name}"))
            .unwrap_or_default()
    };
    let asked =
        setting("enabled").contains("[madvise]") && setting("hpage_pmd_size") == "2097152\n";
    let free = fs::read_to_string("/proc/buddyinfo").unwrap_or_default();
    // Each line ends with how many free pieces there are of 2^9 and of 2^10 pages.
    let pieces = free.lines().filter_map(|zone| {
        let mut counts = zone.split_whitespace().rev();
        let mut next = || counts.next()?.parse::<u64>().ok();
        Some(2 * next()? + next()?)
    });
    let free: u64 = pieces.sum();
    asked && std::env::var_os("GLIBC_TUNABLES").is_none() && free * 2048 > 2 * kib
}

/// KiB of a process that lie in huge pages.
fn huge(pid: u32) -> u64 {
    let sums = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = sums.lines().find(|line| line.starts_with("AnonHugePages:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse().unwrap()
}

/// Cells and repacked weights are read for each token, and the more pages they lie in the longer that takes. What comes with requests stays
/// in small ones: states of prompts are large enough for huge ones here, and so is what a long prompt is computed in.
#[tokio::test]
async fn the_cells_lie_in_huge_pages_and_nothing_of_a_request() {
    let cells = 8192 * 45 / 2; // KiB, 22.5 for each
    if !gives_huge_pages(cells) {
        return;
    }
    let server = Server::start(&["--parallel", "2", "--ctx-size", "8192"]).await;
    let worker = server.worker().await;
    let held = huge(worker);
    assert!(held > cells / 2, "{held} KiB of {cells}");
    for number in 0..4 {
        server
            .answer(json!({"text": words(number, 250), "maxTokens": 2}))
            .await;
    }
    let saved = server.metric("pocket_llm_prompt_cache_bytes").await;
    assert!(saved > 8 << 20, "states are kept: {saved}");
    let later = huge(worker);
    assert!(later <= held, "{later} KiB instead of {held}");
}
