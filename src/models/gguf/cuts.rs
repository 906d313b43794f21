//! A real header, whole and as it is, cut at every byte: each time a sentence, and never a panic.
//!
//! Most of its 1.8 million cuts lie within the vocabulary, and a walk to there passes half of it on average: from the start each time,
//! that would take minutes. So the walk's state is noted before each step, and each cut is tried from the last state before it, with
//! a file of that length. That is the same as from the start: up to that state, the walk has read the same bytes and, with a shorter
//! file, can only have failed earlier (`Source::can_hold`). Some cuts are tried both ways.

#[path = "../../../tests/support/models.rs"]
mod models;

use super::kept::Kept;
use super::source::Source;
use super::walk::Walk;
use super::{Fault, Gguf};
use models::test_model;
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

/// The bytes of a file up to the end of its tensor table.
fn real_header(name: &str) -> Vec<u8> {
    let path = test_model(name);
    let file = File::open(&path).expect("a test model");
    let bytes = file.metadata().expect("a regular file").len();
    let mut source = Source::new(&file, 0, bytes);
    Gguf::walk(&mut source, &mut Kept::counting()).expect("a whole file");
    let mut header = Vec::new();
    let file = File::open(&path).expect("a test model");
    file.take(source.at())
        .read_to_end(&mut header)
        .expect("as many bytes as were walked through");
    header
}

/// States before each step, and where in the file they are.
fn states(header: &[u8]) -> Vec<(usize, Walk)> {
    let mut source = Source::new(Cursor::new(header), 0, header.len() as u64);
    let mut kept = Kept::counting();
    let mut walk = Walk::begin(&mut source).expect("a whole header");
    let mut states = Vec::new();
    loop {
        let at = usize::try_from(source.at()).expect("a small header");
        states.push((at, walk));
        if !walk.step(&mut source, &mut kept).expect("a whole header") {
            return states;
        }
    }
}

/// Walks on from a state in a header that ends at `cut`; `told` is its length according to the system.
fn go_on((at, mut walk): (usize, Walk), header: &[u8], cut: usize, told: u64) -> Fault {
    let mut reader = Cursor::new(&header[..cut]);
    reader.set_position(at as u64);
    let mut source = Source::new(reader, at as u64, told);
    let mut kept = Kept::counting();
    loop {
        match walk.step(&mut source, &mut kept) {
            Ok(true) => {}
            Ok(false) => panic!("a header that was cut at byte {cut} is taken for a whole one"),
            Err(fault) => return fault,
        }
    }
}

#[test]
fn a_whole_real_header_is_cut_at_every_byte() {
    let header = real_header("SmolLM2-135M-Instruct.Q4_1.gguf");
    let states = states(&header);
    let first = states[0].0;
    for cut in 0..first {
        let fault = sentence_from_the_start(&header, cut);
        let expected = if cut < 4 {
            "too short"
        } else {
            "middle of its header"
        };
        assert!(fault.contains(expected), "{cut}: {fault}");
    }
    let mut last = 0;
    for cut in first..header.len() {
        while states.get(last + 1).is_some_and(|(at, _)| *at <= cut) {
            last += 1;
        }
        for told in [cut as u64, 1 << 40] {
            let fault = go_on(states[last], &header, cut, told);
            assert!(matches!(fault, Fault::Truncated), "{cut}, {told}: {fault}");
        }
    }
    for cut in (first..header.len()).step_by(9973) {
        let fault = sentence_from_the_start(&header, cut);
        assert_eq!(fault, format!("a.gguf {}", Fault::Truncated), "{cut}");
    }
    assert!(header.len() > 1_000_000, "{}", header.len());
}

fn sentence_from_the_start(header: &[u8], cut: usize) -> String {
    let file = Cursor::new(&header[..cut]);
    let refusal = Gguf::parse(file, cut as u64, Path::new("a.gguf"));
    refusal.expect_err("a header that was cut").to_string()
}
