//! Borders between modules that the compiler does not draw.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src")
        .join(folder);
    let mut folders = vec![root];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a source folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files
}

/// Lines of code (no comments) in `folder` that contain one of `words`.
fn mentions(folder: &str, words: &[&str], except: &str) -> Vec<String> {
    let mut found = Vec::new();
    for file in sources(folder) {
        let name = file.to_string_lossy().replace('\\', "/");
        if !except.is_empty() && name.contains(except) {
            continue;
        }
        let text = fs::read_to_string(&file).expect("a source file");
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let hits = code.filter(|line| words.iter().any(|word| line.contains(word)));
        found.extend(hits.map(|line| format!("{name}: {}", line.trim())));
    }
    found
}

#[test]
fn the_door_sees_engines_and_no_workers() {
    assert_eq!(
        mentions("http", &["worker::", "crate::worker"], ""),
        [""; 0]
    );
    assert_eq!(
        mentions(
            "engine",
            &["worker::", "crate::worker", "axum", "hyper"],
            ""
        ),
        [""; 0]
    );
}

#[test]
fn only_one_folder_names_llama_cpp() {
    assert_eq!(mentions("", &["llama_cpp_2"], "src/worker/llama/"), [""; 0]);
}

#[test]
fn decisions_know_no_clock_no_channel_and_no_thread() {
    for file in [
        "scheduler.rs",
        "cache/mod.rs",
        "cache/align.rs",
        "speculation/mod.rs",
        "speculation/corpus.rs",
        "speculation/costs.rs",
        "speculation/odds.rs",
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src/worker")
            .join(file);
        let text = fs::read_to_string(path).expect("a source file");
        for word in ["std::time", "mpsc", "std::thread", "tokio", "std::sync"] {
            assert!(!text.contains(word), "{file} names {word}");
        }
    }
}

/// A wall clock jumps: when the network tells the time, when somebody sets it. It says when something was, for people; what waits, expires or is measured goes by [`std::time::Instant`], which never jumps.
#[test]
fn the_wall_clock_decides_nothing() {
    let mut named: Vec<String> = mentions("", &["SystemTime"], "")
        .into_iter()
        .map(|line| {
            let (file, _) = line.split_once(": ").expect("a file");
            let (_, file) = file.rsplit_once("/src/").expect("in src");
            file.to_owned()
        })
        .collect();
    named.dedup();
    named.sort();
    let expected = [
        // When a tuning was made.
        "cli/tune.rs",
        // Since when requests run, for `/status`.
        "http/app.rs",
        // `created` of OpenAI's objects.
        "http/openai/mod.rs",
        // Time stamps of the phone API.
        "http/phone/info.rs",
        "http/phone/mod.rs",
        "http/phone/models/loading.rs",
        "http/phone/status.rs",
        // Whether a file is the one that was looked at: compared, not counted.
        "models/library.rs",
        // When a model was fetched and used.
        "models/store/manifest.rs",
        // `strftime_now` of chat templates.
        "worker/prompt/jinja.rs",
    ];
    assert_eq!(named, expected);
    // The age of what broken-off downloads left is a file's; a jump costs a download its beginning at worst.
    let ages = mentions(
        "",
        &["modified.elapsed", "accessed.elapsed", "created.elapsed"],
        "",
    );
    assert_eq!(ages.len(), 1, "{ages:?}");
    assert!(ages[0].contains("models/store/clean.rs"), "{ages:?}");
}
