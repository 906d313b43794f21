//! Processes that die: the worker under its front, and the front over its worker.

use crate::client;
use crate::program::{is_gone, signal, until};
use crate::server::{Server, greedy, long};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

const RESTARTS: &str = "pocket_llm_worker_restarts_total";
const SPOKEN: &str = "pocket_llm_time_to_first_token_seconds_count";

/// Asks whether the server lives, again and again until told to stop; gives the number of times.
async fn probe(address: SocketAddr, stop: Arc<AtomicBool>) -> u32 {
    let mut answers = 0;
    while !stop.load(Ordering::Relaxed) {
        let live = client::ask(address, "GET", "/livez", &[], b"");
        // As long as a kubelet would be told to wait.
        let live = timeout(Duration::from_secs(5), live).await;
        assert_eq!(live.expect("an answer in time").status, 200);
        answers += 1;
        sleep(Duration::from_millis(5)).await;
    }
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_ends_eight_streams_and_is_replaced() {
    let server = Server::start(&["--parallel", "8", "--ctx-size", "8192"]).await;
    let worker = server.worker().await;
    let streams = server.long_streams(8, 100_000).await;
    let stop = Arc::new(AtomicBool::new(false));
    let probing = tokio::spawn(probe(server.address, Arc::clone(&stop)));
    signal(worker, Signal::KILL);
    let killed = Instant::now();
    for stream in streams {
        let end = stream.end().await;
        assert_eq!(
            (end["type"].as_str(), end["code"].as_str()),
            (Some("error"), Some("ENGINE_DIED"))
        );
        let error = end["error"].as_str().unwrap();
        assert!(error.contains("signal 9"), "{error}");
    }
    let told = killed.elapsed();
    server.answer(greedy("Say hello.", 8)).await;
    stop.store(true, Ordering::Relaxed);
    assert!(probing.await.unwrap() > 0);
    assert!(
        told < Duration::from_secs(5),
        "the streams ended after {told:?}"
    );
    assert_eq!(server.metric(RESTARTS).await, 1);
    assert_eq!(server.get("/readyz").await.status, 200);
    assert_ne!(server.worker().await, worker);
    assert!(is_gone(worker));
}

#[tokio::test]
async fn a_killed_worker_is_a_502_to_who_waits_for_a_whole_answer() {
    let server = Server::start(&["--parallel", "2"]).await;
    let asked = ["a cat", "a dog"].map(|hero| {
        let address = server.address;
        let body = long(&format!("Tell me a story of {hero}."), 100_000).to_string();
        tokio::spawn(
            async move { client::ask(address, "POST", "/ai/text", &[], body.as_bytes()).await },
        )
    });
    // Before its first word a request would be given to the next worker.
    server.metric_becomes(SPOKEN, 2).await;
    signal(server.worker().await, Signal::KILL);
    for answer in asked {
        let response = answer.await.unwrap();
        assert_eq!(
            (response.status, response.code().as_str()),
            (502, "ENGINE_DIED")
        );
    }
    server.answer(greedy("Say hello.", 8)).await;
    assert_eq!(server.metric(RESTARTS).await, 1);
    let counted = r#"pocket_llm_requests_total{endpoint="/ai/text",outcome="engine_died"}"#;
    assert_eq!(server.metric(counted).await, 2);
}

/// A worker that a failed test would leave behind.
struct Orphan {
    worker: u32,
    front: u32,
}

impl Drop for Orphan {
    fn drop(&mut self) {
        // Its number may be somebody else's by now.
        let environment = std::fs::read(format!("/proc/{}/environ", self.worker));
        let mark = format!("POCKET_LLM_FRONT_PID={}\0", self.front);
        let ours = String::from_utf8_lossy(&environment.unwrap_or_default()).contains(&mark);
        if ours && !is_gone(self.worker) {
            signal(self.worker, Signal::KILL);
        }
    }
}

/// Kills a front in the middle of a stream, its worker as `state` leaves it.
async fn kill_the_front(state: Option<Signal>) {
    let server = Server::start(&[]).await;
    let worker = server.worker().await;
    let _orphan = Orphan {
        worker,
        front: server.program.pid(),
    };
    let _streams = server.long_streams(1, 100_000).await;
    if let Some(state) = state {
        signal(worker, state);
    }
    server.program.signal(Signal::KILL);
    server.program.finished().await;
    until("the worker is gone", || is_gone(worker)).await;
}

#[tokio::test]
async fn a_front_killed_while_loading_takes_its_worker_along() {
    let server = Server::listening(&[], |_| {}).await;
    let mut worker = None;
    while worker.is_none() {
        worker = server.status().await["worker"]["pid"].as_u64();
    }
    let worker = u32::try_from(worker.unwrap()).unwrap();
    let _orphan = Orphan {
        worker,
        front: server.program.pid(),
    };
    server.program.signal(Signal::KILL);
    server.program.finished().await;
    until("the worker is gone", || is_gone(worker)).await;
}

#[tokio::test]
async fn a_killed_front_takes_its_worker_along() {
    kill_the_front(None).await;
}

#[tokio::test]
async fn a_killed_front_takes_a_stopped_worker_along() {
    kill_the_front(Some(Signal::STOP)).await;
}
