//! Limits of control groups, as a container gets them. What computes must know of a CPU quota, because one that nobody knows of stops all
//! threads in the middle of a step; and where memory runs out, the worker goes, not the server.
//!
//! The groups are real ones, which need root and a writable hierarchy. Where there is none, the tests say so and prove nothing.

use crate::program::{Program, is_gone, within};
use crate::server::{Server, greedy};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::time::sleep;

const POLL: Duration = Duration::from_millis(50);

/// A group with one limit, until it is dropped.
struct Group(PathBuf);

impl Group {
    /// `controller` has its limit in the first file in version 2, in the other one in version 1.
    fn new(controller: &str, files: [&str; 2], limit: &str) -> Result<Self, String> {
        let root = Path::new("/sys/fs/cgroup");
        let (hierarchy, file) = if root.join("cgroup.controllers").exists() {
            (root.to_owned(), files[0])
        } else {
            (root.join(controller), files[1])
        };
        let name = format!("pocket-llm-test-{controller}-{}", std::process::id());
        let folder = hierarchy.join(name);
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let group = Self(folder);
        let file = group.0.join(file);
        fs::write(&file, limit).map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(group)
    }

    /// A shell that goes into the group and becomes what comes behind it.
    fn command(&self) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ >"$0"/cgroup.procs && exec "$@""#])
            .arg(&self.0);
        command
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Fails while somebody is in it; then it stays, empty and harmless.
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn a_cpu_quota_limits_the_threads() {
    if std::thread::available_parallelism().map_or(1, std::num::NonZero::get) < 2 {
        eprintln!("skipped: there is one core here, and no quota that would change that");
        return;
    }
    // The period is 100 ms by default.
    let group = match Group::new("cpu", ["cpu.max", "cpu.cfs_quota_us"], "100000") {
        Ok(group) => group,
        Err(error) => {
            eprintln!("skipped: no control group can be made here: {error}");
            return;
        }
    };
    let mut command = group.command();
    command.args([env!("CARGO_BIN_EXE_pocket-llm"), "serve", "--threads", "2"]);
    let finished = Program::spawn(command, |_| {}).finished().await;
    assert_ne!(finished.status.code(), Some(0));
    let told = "pocket-llm: --threads 2 can't be used: give 1 to 1\n";
    assert_eq!(finished.stderr, told);
}

/// Somebody else in the group takes all its memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_memory_runs_out_the_worker_goes_and_the_server_says_why() {
    let files = ["memory.max", "memory.limit_in_bytes"];
    let group = match Group::new("memory", files, &(600 << 20).to_string()) {
        Ok(group) => group,
        Err(error) => {
            eprintln!("skipped: no control group can be made here: {error}");
            return;
        }
    };
    let server = Server::start(&["--ctx-size", "2048", "--parallel", "1"]).await;
    server.answer(greedy("Say hello.", 4)).await;
    let worker = server.worker().await;
    // A small step: what they take from now on counts in the group, and each worker is born in it.
    for member in [server.program.pid(), worker] {
        fs::write(group.0.join("cgroup.procs"), member.to_string()).unwrap();
    }
    // They keep what they read, until they find the end of a line. Four, because the system takes the largest first.
    let hog = |_| group.command().args(["tail", "/dev/zero"]).spawn().unwrap();
    let hogs: Vec<_> = (0..4).map(hog).collect();
    let told = |program: &Program| program.errors().contains("no memory left");
    server
        .program
        .until("a worker that went for memory", told)
        .await;
    for mut hog in hogs {
        // They go too, later, if the system has nobody else to take.
        let _ = hog.kill();
        hog.wait().unwrap();
    }
    assert!(is_gone(worker));
    // Refused while it pauses between two starts.
    let asked = greedy("Say hello.", 4).to_string();
    let answered = async {
        while server.ask(&asked).await.status == 503 {
            sleep(POLL).await;
        }
    };
    within(answered).await;
    server.answer(greedy("Say hello.", 4)).await;
}
