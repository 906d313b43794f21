//! A CPU quota, as a container gets it: what computes must know of it, because a quota that nobody knows of stops all threads in the
//! middle of a step.
//!
//! The group is a real one, which needs root and a writable hierarchy. Where there is none, the test says so and proves nothing.

use crate::program::Program;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A group of one core, until it is dropped.
struct Group(PathBuf);

impl Group {
    fn of_one_core() -> Result<Self, String> {
        let root = Path::new("/sys/fs/cgroup");
        let (hierarchy, quota) = if root.join("cgroup.controllers").exists() {
            (root.to_owned(), "cpu.max")
        } else {
            (root.join("cpu"), "cpu.cfs_quota_us")
        };
        let folder = hierarchy.join(format!("pocket-llm-test-{}", std::process::id()));
        fs::create_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let group = Self(folder);
        // The period is 100 ms by default.
        let file = group.0.join(quota);
        fs::write(&file, "100000").map_err(|error| format!("{}: {error}", file.display()))?;
        Ok(group)
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
    let group = match Group::of_one_core() {
        Ok(group) => group,
        Err(error) => {
            eprintln!("skipped: no control group can be made here: {error}");
            return;
        }
    };
    // The shell goes into the group, and becomes the program.
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"echo $$ >"$0"/cgroup.procs && exec "$@""#])
        .arg(&group.0)
        .args([env!("CARGO_BIN_EXE_pocket-llm"), "serve", "--threads", "2"]);
    let finished = Program::spawn(command, |_| {}).finished().await;
    assert_ne!(finished.status.code(), Some(0));
    let told = "pocket-llm: --threads 2 can't be used: give 1 to 1\n";
    assert_eq!(finished.stderr, told);
}
