//! Going down as Kubernetes asks for it: unready at once, answering for a while, promises kept, status 0.

use crate::client::{self, Connection};
use crate::program::{self, within};
use crate::server::{Server, greedy, long};
use rustix::process::Signal;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// A server in a process group of its own.
async fn start(flags: &[&str]) -> Server {
    Server::with(flags, |command| {
        command.process_group(0);
    })
    .await
}

/// As a terminal, a supervisor or a container's end does it: front, worker and all.
fn signal_all(server: &Server, worker: u32, signal: Signal) {
    // The worker first: when the front hears it, it may take the worker along.
    program::signal(worker, signal);
    server.program.signal_group(signal);
}

async fn becomes_unready(server: &Server) {
    within(async {
        while server.get("/readyz").await.status != 503 {
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

async fn streams_finish_after(signal: Signal) {
    let flags = ["--parallel", "3", "--drain-delay", "3", "--grace", "100"];
    let server = start(&flags).await;
    let worker = server.worker().await;
    let streams = server.long_streams(3, 200).await;
    signal_all(&server, worker, signal);
    let signalled = Instant::now();
    becomes_unready(&server).await;
    assert_eq!(server.get("/livez").await.status, 200);
    assert_eq!(server.status().await["draining"], true);
    // It has to wait for one of the others.
    let late = server.ask(greedy("Say hello.", 8).to_string()).await;
    assert_eq!(late.status, 200, "still served: {}", late.text());
    assert_eq!(late.header("connection"), Some("close"));
    for stream in streams {
        let end = stream.end().await;
        assert_eq!(
            (end["type"].as_str(), end["metadata"]["tokenCount"].as_u64()),
            (Some("complete"), Some(200))
        );
    }
    server.ends_with(0, worker).await;
    assert!(signalled.elapsed() >= Duration::from_secs(3));
    assert!(server.program.errors().contains("stopped"));
}

#[tokio::test]
async fn streams_finish_after_sigterm() {
    streams_finish_after(Signal::TERM).await;
}

#[tokio::test]
async fn streams_finish_after_sigint() {
    streams_finish_after(Signal::INT).await;
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::TERM, Signal::INT)] {
        let server = start(&["--ctx-size", "8192", "--drain-delay", "600"]).await;
        let worker = server.worker().await;
        let mut streams = server.long_streams(1, 100_000).await;
        signal_all(&server, worker, first);
        becomes_unready(&server).await;
        signal_all(&server, worker, second);
        let signalled = Instant::now();
        server.ends_with(1, worker).await;
        assert!(signalled.elapsed() < Duration::from_secs(10));
        let (_, complete) = streams.remove(0).whole().await;
        assert!(!complete, "its client sees that the end is missing");
    }
}

#[tokio::test]
async fn a_worker_that_dies_meanwhile_holds_nobody_up() {
    let server = start(&["--drain-delay", "1"]).await;
    let worker = server.worker().await;
    let mut streams = server.long_streams(1, 100_000).await;
    server.program.signal_group(Signal::TERM);
    becomes_unready(&server).await;
    program::signal(worker, Signal::KILL);
    let end = streams.remove(0).end().await;
    assert_eq!(end["code"], "ENGINE_DIED");
    server.ends_with(0, worker).await;
}

#[tokio::test]
async fn an_idle_server_ends_after_the_delay() {
    let server = start(&["--drain-delay", "0.1"]).await;
    let worker = server.worker().await;
    // A kept connection holds nobody up.
    let mut connection = Connection::open(server.address).await;
    connection.send("GET", "/livez", &[], b"").await;
    assert_eq!(connection.response().await.status, 200);
    let _silent = Connection::open(server.address).await;
    let signalled = Instant::now();
    signal_all(&server, worker, Signal::TERM);
    server.ends_with(0, worker).await;
    assert!(signalled.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_signal_while_loading_ends_with_success_too() {
    let server = Server::listening(&["--drain-delay", "0"], |command| {
        command.process_group(0);
    })
    .await;
    server.program.signal_group(Signal::TERM);
    let finished = server.program.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
}

#[tokio::test]
async fn after_the_grace_streams_get_an_error() {
    let flags = [
        "--parallel",
        "2",
        "--ctx-size",
        "8192",
        "--drain-delay",
        "0.1",
        "--grace",
        "2",
    ];
    let server = start(&flags).await;
    let worker = server.worker().await;
    let mut streams = server.long_streams(1, 100_000).await;
    let mut waiting = Connection::open(server.address).await;
    let body = long("Tell me of the moon.", 100_000).to_string();
    waiting.send("POST", "/ai/text", &[], body.as_bytes()).await;
    server
        .metric_becomes("pocket_llm_requests_running", 2)
        .await;
    signal_all(&server, worker, Signal::TERM);
    within(refused(&server)).await;
    let end = streams.remove(0).end().await;
    assert_eq!(
        (end["type"].as_str(), end["code"].as_str()),
        (Some("error"), Some("SHUTTING_DOWN"))
    );
    let response = waiting.response().await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (503, "SHUTTING_DOWN")
    );
    server.ends_with(0, worker).await;
}

/// Asks until new requests are refused.
async fn refused(server: &Server) {
    let body = greedy("hi", 1).to_string();
    loop {
        let answer = client::ask(server.address, "POST", "/ai/text", &[], body.as_bytes()).await;
        if answer.status == 503 {
            assert_eq!(answer.code(), "SHUTTING_DOWN");
            assert!(answer.header("retry-after").is_some());
            return;
        }
        assert_eq!(answer.status, 200);
    }
}
