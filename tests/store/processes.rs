//! Two processes at one store, and what a killed one leaves behind. The other process is this test program, asked for one test.

use crate::program::{Finished, Program};
use crate::{Fixture, fetched, name};
use pocket_llm::models::store::{State, StoreError};
use pocket_llm::models::{ModelName, Store};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// The directory that the other process works in.
const FOLDER: &str = "TEST_STORE_FOLDER";

/// The directory, if this is the other process.
fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// Another process that runs one of the tests below in `folder`.
fn other(test: &str, folder: &Path) -> Program {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--ignored",
        "--exact",
        "--nocapture",
        &format!("processes::{test}"),
    ]);
    Program::spawn(command, |command| {
        command.env(FOLDER, folder).stdin(Stdio::piped());
    })
}

#[test]
#[ignore = "is the other process of the tests below"]
fn holds_a_lock() {
    let Some(folder) = folder() else { return };
    let store = Store::open(&folder).unwrap();
    let _lock = store.lock(&store.place(&name("a"))).unwrap();
    writeln!(std::io::stdout(), "held").unwrap();
    // Until it is told, or killed.
    std::io::stdin().read_exact(&mut [0]).ok();
}

#[test]
#[ignore = "is the other process of the tests below"]
fn records_for_ever() {
    let Some(folder) = folder() else { return };
    let store = Store::open(&folder).unwrap();
    let path = store.place(&name("a"));
    for count in 0..u64::MAX {
        let mut manifest = fetched("hf:o/r/a.gguf", 5);
        // Of changing length, so that a mixture of two is no JSON.
        manifest.etag = Some("x".repeat(usize::try_from(count % 5000).unwrap()));
        store.record(&path, &manifest).unwrap();
        writeln!(std::io::stdout(), "recorded").unwrap();
    }
}

async fn remove_with_the_program(fixture: &Fixture) -> Finished {
    let program = Program::start(&["rm", "a"], |command| {
        command.env("POCKET_LLM_MODELS", fixture.folder.path());
    });
    program.finished().await
}

#[tokio::test]
async fn a_lock_keeps_other_processes_out_until_its_holder_is_gone() {
    let fixture = Fixture::new();
    fixture.file("a.gguf", b"12345");
    let path = fixture.store.place(&name("a"));
    let holder = other("holds_a_lock", fixture.folder.path());
    holder
        .until("the lock is held", |it| it.output().contains("held"))
        .await;
    let refused = fixture.store.lock(&path).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "another process is fetching a: wait for it, or end it"
    );
    assert!(matches!(
        fixture.store.remove(&name("a")),
        Err(StoreError::Locked { .. })
    ));
    let finished = remove_with_the_program(&fixture).await;
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(
        finished.stderr,
        "pocket-llm: another process is fetching a: wait for it, or end it\n"
    );
    assert!(path.exists());
    // Another model is nobody's business.
    drop(
        fixture
            .store
            .lock(&fixture.store.place(&name("b")))
            .unwrap(),
    );

    holder.signal(Signal::KILL);
    holder.finished().await;
    assert!(
        fixture.files().contains(&"a.gguf.lock".to_owned()),
        "the file may stay"
    );
    let finished = remove_with_the_program(&fixture).await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    assert_eq!(fixture.files(), ["b.gguf.lock"]);
}

/// Within one process too, and over the removal of the lock's own file.
#[test]
fn only_one_holds_a_lock_at_a_time() {
    let fixture = Fixture::new();
    let (store, a) = (&fixture.store, name("a"));
    let inside = AtomicU32::new(0);
    let holds = |round: u32| {
        for _ in 0..200 {
            let Ok(lock) = store.lock(&store.place(&a)) else {
                continue;
            };
            assert_eq!(inside.fetch_add(1, SeqCst), 0);
            fixture.file("a.gguf", &[0; 3]);
            assert_eq!(inside.fetch_sub(1, SeqCst), 1);
            drop(lock);
            if round.is_multiple_of(2) {
                // Removes the lock's file, if nobody is faster.
                let _ = store.remove(&a);
            }
        }
    };
    std::thread::scope(|scope| {
        for round in 0..4 {
            let holds = &holds;
            scope.spawn(move || holds(round));
        }
    });
    assert_eq!(inside.into_inner(), 0);
}

#[tokio::test]
async fn a_manifest_is_whole_whenever_its_writer_is_killed() {
    let fixture = Fixture::new();
    fixture.file("a.gguf", b"12345");
    for lines in [1, 3, 10, 30, 31, 50, 77, 100] {
        let writer = other("records_for_ever", fixture.folder.path());
        let wrote = |it: &Program| it.output().matches("recorded").count() >= lines;
        writer.until("it has written", wrote).await;
        writer.signal(Signal::KILL);
        writer.finished().await;
        let stored = fixture.store.find(&name("a")).unwrap().unwrap();
        assert_eq!(stored.problem, None);
        assert_eq!(stored.state, State::Complete);
        assert_eq!(stored.manifest.unwrap().bytes, 5);
    }
    // What is not a manifest yet is a hidden file, which `clean` removes.
    let strange = |file: &&String| !file.starts_with(".a.gguf.json.");
    let files = fixture.files();
    let visible: Vec<&String> = files.iter().filter(strange).collect();
    assert_eq!(visible, ["a.gguf", "a.gguf.json"]);
    let names: Vec<ModelName> = fixture
        .store
        .list()
        .unwrap()
        .into_iter()
        .map(|it| it.name)
        .collect();
    assert_eq!(names, [name("a")]);
}
