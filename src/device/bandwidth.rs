//! How many bytes per second the cores read from memory: decoding reads all weights for every token, so this is its limit.
//!
//! A sum over a buffer that no cache holds, by one thread and by more. Bounded in time and in memory.

use super::memory::Free;
use super::topology::text;
use serde::Serialize;
use std::hint::black_box;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Where the system says nothing about its caches, they are taken to be smaller than this.
const USUAL_CACHE: u64 = 16 << 20;
/// The buffer is so many times the largest cache …
const CACHES: u64 = 4;
/// … and no larger than this.
const MOST_BYTES: u64 = 512 << 20;
/// A smaller buffer proves nothing.
const LEAST_BYTES: u64 = 8 << 20;
/// The part of the free memory that is used at most.
const FREE_PART: u64 = 4;

/// What was measured with so many threads.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bandwidth {
    /// Threads that read.
    pub threads: u32,
    /// Bytes per second, the best of several passes.
    pub bytes_per_second: u64,
}

/// Reads with each of these numbers of threads for about `each`; nothing if there is too little memory for it. Blocks.
pub fn measure(threads: impl Iterator<Item = u32>, each: Duration) -> Vec<Bandwidth> {
    let free = Free::here().map_or(u64::MAX, |free| free.bytes);
    let bytes = (largest_cache(Path::new("/")) * CACHES).clamp(4 * LEAST_BYTES, MOST_BYTES);
    let bytes = bytes.min(free / FREE_PART);
    if bytes < LEAST_BYTES {
        return Vec::new();
    }
    // Not zeros: those would all be one page until somebody writes.
    let words: Vec<u64> = (0..bytes / 8).collect();
    let measured = threads
        .filter(|threads| *threads > 0)
        .map(|threads| Bandwidth {
            threads,
            bytes_per_second: best(&words, threads, each),
        });
    measured.collect()
}

/// The largest cache of the first core, if the system tells.
fn largest_cache(root: &Path) -> u64 {
    let folder = root.join("sys/devices/system/cpu/cpu0/cache");
    let sizes = (0..8).filter_map(|index| {
        let size = text(&folder.join(format!("index{index}/size")))?;
        kibibytes(size.trim())
    });
    sizes.max().unwrap_or(USUAL_CACHE)
}

/// `512K`, `32M`
fn kibibytes(size: &str) -> Option<u64> {
    let unit = match size.chars().last()? {
        'K' => 1 << 10,
        'M' => 1 << 20,
        _ => return None,
    };
    let number: u64 = size[..size.len() - 1].parse().ok()?;
    number.checked_mul(unit)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "bytes of a buffer over a time that is not zero"
)]
fn best(words: &[u64], threads: u32, each: Duration) -> u64 {
    let end = Instant::now() + each;
    let mut best = 0.0_f64;
    loop {
        let took = pass(words, threads).as_secs_f64().max(1e-9);
        best = best.max(size_of_val(words) as f64 / took);
        if Instant::now() >= end {
            return best as u64;
        }
    }
}

/// The time from the first thread's start to the last one's end. Starting threads costs some ten microseconds, reading 32 MiB a
/// millisecond or more.
fn pass(words: &[u64], threads: u32) -> Duration {
    let part = words.len().div_ceil(threads as usize).max(1);
    let began = Instant::now();
    thread::scope(|scope| {
        for part in words.chunks(part) {
            scope.spawn(move || black_box(sum(part)));
        }
    });
    began.elapsed()
}

/// Plain on purpose: compilers make vectors of this, and of nothing that is cleverer.
fn sum(words: &[u64]) -> u64 {
    words.iter().fold(0, |sum, word| sum.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cgroup::tests::tree;

    #[test]
    fn the_largest_cache_counts() {
        let cache = |index: u32| format!("sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let root = tree(&[
            (&cache(0), "32K\n"),
            (&cache(2), "512K\n"),
            (&cache(3), "8M\n"),
        ]);
        assert_eq!(largest_cache(root.path()), 8 << 20);
        let root = tree(&[(&cache(0), "large\n")]);
        assert_eq!(largest_cache(root.path()), USUAL_CACHE);
    }

    #[test]
    fn each_number_of_threads_is_measured() {
        let measured = measure([0, 1, 2].into_iter(), Duration::from_millis(5));
        let threads: Vec<u32> = measured.iter().map(|measured| measured.threads).collect();
        assert_eq!(threads, [1, 2]);
        // The slowest memory of a phone reads more than 100 MB/s, the fastest of any machine less than 10 TB/s.
        let sound = |measured: &Bandwidth| {
            (100_000_000..10_000_000_000_000).contains(&measured.bytes_per_second)
        };
        assert!(measured.iter().all(sound), "{measured:?}");
    }
}
