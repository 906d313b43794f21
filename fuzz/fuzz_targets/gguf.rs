//! Any bytes as a GGUF file: no panic, no hang, and no more memory than the file is long, beside a buffer.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pocket_llm::models::gguf::Gguf;
use pocket_llm::models::memory::{Asked, Kernels, plan};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts what is allocated now, and the most since the last reset.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes everything on to the system's allocator; the counters do not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The buffer, which has 32 KiB, the path, and what a sentence quotes.
const FIXED: usize = 40 << 10;

fuzz_target!(|bytes: &[u8]| {
    read(bytes, bytes.len() as u64);
    // The file was cut after its length was asked for, or its data is not here: gets past the check of the length.
    read(bytes, 1 << 40);
});

fn read(bytes: &[u8], told: u64) {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let gguf = Gguf::parse(Cursor::new(bytes), told, Path::new("fuzz.gguf"));
    let most = MOST.load(Ordering::Relaxed) - before;
    assert!(
        most <= bytes.len() + FIXED,
        "{most} bytes allocated for a file of {}",
        bytes.len()
    );
    let drop_by_drop = Drops(Cursor::new(bytes));
    let again = Gguf::parse(drop_by_drop, told, Path::new("fuzz.gguf"));
    assert_eq!(
        gguf.as_ref().err().map(ToString::to_string),
        again.err().map(|error| error.to_string())
    );
    match gguf {
        Ok(gguf) => use_it(&gguf, told),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Gives a few bytes at a time, so that everything lies across the end of what was read.
struct Drops<'a>(Cursor<&'a [u8]>);

impl Read for Drops<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(29);
        self.0.read(&mut buffer[..length])
    }
}

impl Seek for Drops<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

fn use_it(gguf: &Gguf, told: u64) {
    for tensor in gguf.tensors() {
        assert!(
            tensor
                .offset
                .checked_add(tensor.bytes)
                .is_some_and(|end| end <= told)
        );
    }
    let info = gguf.model_info();
    assert!(gguf.bytes_per_decoded_token() <= info.size_bytes);
    let kernels = Kernels {
        avx2: true,
        avx512: true,
        dotprod: true,
        i8mm: true,
    };
    for available in [None, Some(0), Some(1 << 30)] {
        if let Ok(plan) = plan(gguf, &Asked::default(), kernels, available) {
            assert!(available.is_none_or(|available| plan.needs.total() <= available));
        }
    }
}
