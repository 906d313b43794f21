//! What the fuzzers found or began with, replayed without them, and what a crowd does to the real loop.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../../fuzz/harness/bodies.rs"]
mod bodies;
#[path = "../../fuzz/harness/scheduler.rs"]
mod scheduler;
#[path = "../support/scripted.rs"]
mod scripted;
#[path = "../../fuzz/harness/template.rs"]
mod template;
#[path = "../../fuzz/harness/text.rs"]
mod text;

mod flood;

use proptest::prelude::*;

/// Gives each file of a corpus to its harness.
fn replay(name: &str, check: fn(&[u8])) {
    let folder = format!("{}/fuzz/corpus/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        // Shown with the panic of a test that fails.
        eprintln!("{}", path.display());
        check(&bytes);
        files += 1;
    }
    assert!(files >= 5, "{files} files in the corpus of {name}");
}

#[test]
fn bodies_of_the_corpus_are_taken_or_refused() {
    replay("bodies", bodies::check);
}

#[test]
fn templates_of_the_corpus_end_and_write_little() {
    replay("template", template::check);
}

#[test]
fn texts_of_the_corpus_equal_the_reference() {
    replay("text", text::check);
}

#[test]
fn arrivals_of_the_corpus_have_one_end_each() {
    replay("scheduler", scheduler::check);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_arrivals_have_one_end_each(bytes in prop::collection::vec(any::<u8>(), 3..240)) {
        scheduler::check(&bytes);
    }

    #[test]
    fn any_text_equals_the_reference(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        text::check(&bytes);
    }
}
