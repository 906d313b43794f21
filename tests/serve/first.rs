//! The server as process 1, as in a container: what loses its parent becomes its child, and nobody else waits for it.
//!
//! A process is 1 in a namespace of its own, which needs root or user namespaces. Where the kernel refuses that, the test says so
//! and proves nothing.

use crate::models::test_model;
use crate::program::{Program, signal, until};
use crate::server::{FILE, Server, greedy};
use rustix::process::Signal;
use std::process::Command;

const UNSHARE: [&str; 5] = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];

/// Leaves a process behind, which keeps nothing of the worker's open, and becomes the worker.
const LAUNCHER: &str = r#"(sleep 600 <&- >&- 2>&- &); exec "$@""#;

/// A command in a namespace of its own.
fn isolated() -> Command {
    let mut command = Command::new(UNSHARE[0]);
    command.args(&UNSHARE[1..]);
    command
}

/// A process's state, parent and name.
fn about(pid: u32) -> Option<(String, u32, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_whitespace();
    let (state, parent) = (fields.next()?, fields.next()?);
    let name = name.split_once('(')?.1;
    Some((state.into(), parent.parse().ok()?, name.into()))
}

fn child_of(parent: u32, wanted: impl Fn(&str) -> bool) -> Option<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut pids = pids.filter(|pid| {
        about(*pid).is_some_and(|(_, its_parent, name)| its_parent == parent && wanted(&name))
    });
    pids.next()
}

#[tokio::test]
async fn process_1_waits_for_orphans_and_not_for_its_workers() {
    let tried = isolated().arg("true").output();
    if !tried.as_ref().is_ok_and(|tried| tried.status.success()) {
        eprintln!("skipped: no process namespace here: {tried:?}");
        return;
    }
    let binary = env!("CARGO_BIN_EXE_pocket-llm");
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("launcher.sh");
    std::fs::write(&script, LAUNCHER).unwrap();
    let launcher = format!("sh {} {binary}", script.display());
    let program = Program::spawn(isolated(), |command| {
        command
            .args([binary, "serve"])
            .arg(test_model(FILE))
            .args(["--port", "0", "--threads", "1", "--engine-launcher"])
            .arg(launcher);
    });
    let server = Server::of(program, 1).await;
    server.becomes_ready().await;
    let front = child_of(server.program.pid(), |_| true).unwrap();

    // What was left behind is the server's now, and is waited for when it ends.
    let orphan = || child_of(front, |name| name == "sleep");
    until("there is an orphan", || orphan().is_some()).await;
    let first = orphan().unwrap();
    signal(first, Signal::KILL);
    until("nothing is left of it", || about(first).is_none()).await;

    // A worker's end is still told to those that wait for it, and to nobody else.
    let worker = child_of(front, |name| name.starts_with("pocket-llm")).unwrap();
    signal(worker, Signal::KILL);
    until("nothing is left of it", || about(worker).is_none()).await;
    server.answer(greedy("Say hello.", 4)).await;
    let errors = server.program.errors();
    assert!(errors.contains("signal 9"), "{errors}");

    signal(front, Signal::TERM);
    let finished = server.program.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
}
