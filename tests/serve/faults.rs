//! What goes wrong around the program: crashes of every kind, files that vanish or change under a loaded model, fifty kills in a row.

use crate::models::test_model;
use crate::program::{is_gone, signal, until};
use crate::server::{FILE, Server, greedy, long};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::time::sleep;

const RESTARTS: &str = "pocket_llm_worker_restarts_total";

/// Sends a signal until it works: the standard library lets the first SEGV or BUS pass that is no fault of the program's own.
async fn strike(worker: u32, how: Signal) {
    signal(worker, how);
    while how != Signal::STOP && !is_gone(worker) {
        sleep(Duration::from_millis(1)).await;
        // It may be gone by now.
        let _ = kill_process(Pid::from_raw(worker.cast_signed()).unwrap(), how);
    }
}

/// A prompt that is decoded for a while, and an answer of few words.
fn slow_prompt() -> String {
    greedy(&"A long story about the sea. ".repeat(250), 4).to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_by_every_signal_and_the_next_answer_comes() {
    let flags = [
        "--parallel",
        "8",
        "--ctx-size",
        "16384",
        "--speculate",
        "off",
        "--stall-seconds",
        "2",
    ];
    let server = Server::start(&flags).await;
    // Each round asks for something else: who was in a crash would run alone.
    for (how, words, limit, max_tokens) in [
        (Signal::KILL, "signal 9", 1, 100_000),
        (Signal::SEGV, "signal 11", 1, 100_001),
        (Signal::ABORT, "signal 6", 1, 100_002),
        (Signal::STOP, "no progress", 4, 100_003),
    ] {
        let worker = server.worker().await;
        let streams = server.long_streams(8, max_tokens).await;
        let struck = Instant::now();
        strike(worker, how).await;
        for stream in streams {
            let end = stream.end().await;
            assert_eq!(end["code"], "ENGINE_DIED");
            assert!(end["error"].as_str().unwrap().contains(words), "{end}");
        }
        let told = struck.elapsed();
        server.answer(greedy("Say hello.", 4)).await;
        let again = struck.elapsed();
        eprintln!("{how:?}: eight told after {told:?}, the next answer after {again:?}");
        assert!(told < Duration::from_secs(limit), "{how:?}: {told:?}");
        assert!(is_gone(worker));
    }
    assert_eq!(server.metric(RESTARTS).await, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_worker_crashes_twice_is_refused_and_one_that_is_killed_is_not() {
    let flags = ["--ctx-size", "4096", "--parallel", "1"];
    let server = Server::start(&flags).await;
    for (how, status) in [(Signal::KILL, 200), (Signal::SEGV, 422)] {
        let restarts = server.metric(RESTARTS).await;
        let address = server.address;
        let asked = tokio::spawn(async move {
            let body = slow_prompt();
            crate::client::ask(address, "POST", "/ai/text", &[], body.as_bytes()).await
        });
        for time in 0..2 {
            server.metric_becomes(RESTARTS, restarts + time).await;
            server
                .metric_becomes("pocket_llm_requests_running", 1)
                .await;
            strike(server.worker().await, how).await;
        }
        let told = asked.await.unwrap();
        assert_eq!(told.status, status, "{}", told.text());
        if status == 422 {
            assert_eq!(told.code(), "REQUEST_REFUSED");
            assert!(told.text().contains("signal 11"), "{}", told.text());
            let again = server.ask(slow_prompt()).await;
            assert_eq!(again.status, 422);
        }
        server.answer(greedy("Say hello.", 4)).await;
        assert_eq!(server.metric(RESTARTS).await, restarts + 2);
    }
    let refused = r#"pocket_llm_requests_total{endpoint="/ai/text",outcome="refused"}"#;
    assert_eq!(server.metric(refused).await, 2);
    assert!(!server.program.errors().contains("story about the sea"));
}

/// A copy of the model in a folder of its own.
fn copy_of_the_model() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(FILE);
    fs::copy(test_model(FILE), &path).unwrap();
    (folder, path)
}

async fn serving(path: &Path) -> Server {
    let server = Server::of_model(path, &[], |_| {}).await;
    server.becomes_ready().await;
    server
}

#[tokio::test]
async fn a_model_whose_file_is_deleted_ends_its_answers_and_is_gone_for_the_next() {
    let (_folder, path) = copy_of_the_model();
    let server = serving(&path).await;
    let worker = server.worker().await;
    let streams = server.long_streams(2, 100).await;
    fs::remove_file(&path).unwrap();
    for stream in streams {
        assert_eq!(stream.end().await["metadata"]["tokenCount"], 100);
    }
    let told = server.ask(greedy("Say hello.", 4).to_string()).await;
    assert_eq!(
        (told.status, told.code().as_str()),
        (404, "MODEL_NOT_AVAILABLE")
    );
    assert_eq!(server.get("/readyz").await.status, 503);
    assert_eq!(server.worker().await, worker, "nothing died of it");
    fs::copy(test_model(FILE), &path).unwrap();
    server.becomes_ready().await;
    server.answer(greedy("Say hello.", 4)).await;
}

#[tokio::test]
async fn a_model_whose_file_is_replaced_is_loaded_anew() {
    let (folder, path) = copy_of_the_model();
    let server = serving(&path).await;
    let worker = server.worker().await;
    let stream = server
        .stream(crate::server::NDJSON, &long("Tell me a story.", 60))
        .await;
    let other = folder.path().join("other");
    fs::copy(test_model("qwen2.5-tiny.gguf"), &other).unwrap();
    fs::rename(&other, &path).unwrap();
    // Who is being answered is answered by the old one.
    let next = server.ask(greedy("Say hello.", 4).to_string());
    let (end, next) = tokio::join!(stream.end(), next);
    assert_eq!(end["metadata"]["tokenCount"], 60, "{end}");
    assert_eq!(next.status, 200, "{}", next.text());
    assert!(is_gone(worker));
}

#[tokio::test]
async fn a_model_whose_file_is_cut_short_says_so_and_blames_nobody() {
    let (_folder, path) = copy_of_the_model();
    let server = serving(&path).await;
    let worker = server.worker().await;
    let streams = server.long_streams(1, 100_000).await;
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    for stream in streams {
        let end = stream.end().await;
        assert_eq!(end["code"], "ENGINE_DIED");
        let error = end["error"].as_str().unwrap();
        assert!(
            error.contains("signal 7") && error.contains("cut short"),
            "{error}"
        );
    }
    assert!(is_gone(worker));
    for _ in 0..3 {
        let body = long("Tell me story number 0.", 100_000).to_string();
        let told = server.ask(body).await;
        assert_eq!(told.status, 400, "{}", told.text());
        let text = told.text();
        assert!(text.contains("in the middle of its header"), "{text}");
    }
    fs::copy(test_model(FILE), &path).unwrap();
    server.becomes_ready().await;
    let log = server.program.errors();
    assert!(!log.contains("in the step that crashed"), "{log}");
    server.answer(long("Tell me story number 0.", 20)).await;
}

/// What a process has of the system: open files, threads, children.
fn holdings(pid: u32) -> (usize, usize, usize) {
    let count = |of: &str| fs::read_dir(format!("/proc/{pid}/{of}")).unwrap().count();
    let parent = |path: PathBuf| {
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let (_, fields) = stat.rsplit_once(") ")?;
        fields.split(' ').nth(1)?.parse::<u32>().ok()
    };
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let children = processes.filter(|process| parent(process.path()) == Some(pid));
    (count("fd"), count("task"), children.count())
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_kills_leave_no_process_no_descriptor_and_no_file_behind() {
    let temporary = TempDir::new().unwrap();
    let store = TempDir::new().unwrap();
    let server = Server::with(&["--models", store.path().to_str().unwrap()], |command| {
        command.env("TMPDIR", temporary.path());
    })
    .await;
    let pid = server.program.pid();
    // The first answer may open what stays open.
    server.answer(greedy("Say hello.", 2)).await;
    sleep(Duration::from_millis(200)).await;
    let before = (holdings(pid), files(temporary.path()), files(store.path()));
    let began = Instant::now();
    for _ in 0..50 {
        let worker = server.worker().await;
        strike(worker, Signal::KILL).await;
        server.answer(greedy("Say hello.", 1)).await;
        assert!(is_gone(worker));
    }
    eprintln!("fifty kills and answers in {:?}", began.elapsed());
    assert_eq!(server.metric(RESTARTS).await, 50);
    let mut after = before.clone();
    // Connections and reapers take a moment to go.
    for _ in 0..100 {
        after = (holdings(pid), files(temporary.path()), files(store.path()));
        let ((was_open, was_threads, was_children), ..) = before;
        let ((open, threads, children), ..) = after;
        if open <= was_open && threads <= was_threads && children == was_children {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    eprintln!(
        "(files, threads, children): {:?} before, {:?} after",
        before.0, after.0
    );
    let ((was_open, was_threads, was_children), ..) = before;
    let ((open, threads, children), ..) = after;
    assert!(
        open <= was_open && threads <= was_threads,
        "{before:?} {after:?}"
    );
    assert_eq!(children, was_children);
    assert_eq!((before.1, before.2), (after.1, after.2));
}

/// Brings a server into a phase, kills its front, and waits for its worker to go.
async fn kill_the_front_while(phase: &str) {
    let flags = [
        "--parallel",
        "1",
        "--drain-delay",
        "60",
        "--sleep-idle-seconds",
        "1",
    ];
    let flags = if phase == "unloading" {
        &flags[..]
    } else {
        &flags[..4]
    };
    let server = Server::start(flags).await;
    let worker = server.worker().await;
    let mut kept = Vec::new();
    if phase == "prompt" {
        let address = server.address;
        kept.push(tokio::spawn(async move {
            let mut connection = crate::client::Connection::open(address).await;
            let body = slow_prompt();
            connection
                .send("POST", "/ai/text", &[], body.as_bytes())
                .await;
            let _ = connection.is_closed().await;
        }));
        server
            .metric_becomes("pocket_llm_requests_running", 1)
            .await;
    }
    let _streams = match phase {
        "queue" | "draining" => server.long_streams(1, 100_000).await,
        _ => Vec::new(),
    };
    if phase == "queue" {
        let mut waiting = crate::client::Connection::open(server.address).await;
        let body = greedy("Say hello.", 4).to_string();
        waiting.send("POST", "/ai/text", &[], body.as_bytes()).await;
        server.metric_becomes("pocket_llm_requests_queued", 1).await;
    }
    if phase == "draining" {
        server.program.signal(Signal::TERM);
        while server.get("/readyz").await.status == 200 {}
    }
    if phase == "unloading" {
        // It does not hear that it is to go, and is waited for.
        signal(worker, Signal::STOP);
        sleep(Duration::from_millis(1500)).await;
    }
    assert!(!is_gone(worker), "{phase}");
    server.program.signal(Signal::KILL);
    server.program.finished().await;
    until("the worker is gone", || is_gone(worker)).await;
    for task in kept {
        task.abort();
    }
}

#[tokio::test]
async fn a_front_killed_in_any_phase_leaves_no_worker() {
    for phase in ["idle", "prompt", "queue", "draining", "unloading"] {
        kill_the_front_while(phase).await;
    }
}
