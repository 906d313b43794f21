//! The children of this process: its own, and those that nobody else waits for.
//!
//! In a container the server is process 1, and what loses its parent there becomes its child: a process that a launcher or
//! `kubectl exec` left behind. Nobody waits for those, and each would stay as a zombie, until the container may start no more processes. So
//! process 1 waits for them. It asks for each by its id, and never for "any child": that would take the ends of its own children away from
//! those that wait for them.

use anyhow::{Context, Result};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Between two looks, however many children end.
const PAUSE: Duration = Duration::from_secs(1);

/// Children that were started here and are waited for where they were started. One list for the process, because children are the
/// process's: the lock is held from before a child exists until it is listed, and while orphans are looked for.
static OURS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Keeps a child on the list of ours. To be dropped when it has been waited for.
#[derive(Debug)]
pub struct Ours(u32);

impl Drop for Ours {
    fn drop(&mut self) {
        ours().remove(&self.0);
    }
}

fn ours() -> MutexGuard<'static, BTreeSet<u32>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a child that its caller will wait for.
pub fn spawn(command: &mut Command) -> io::Result<(Child, Ours)> {
    let mut ours = ours();
    let child = command.spawn()?;
    ours.insert(child.id());
    let listed = Ours(child.id());
    drop(ours);
    Ok((child, listed))
}

/// Waits for orphans from now on, if this is process 1; otherwise somebody else does, and this returns at once.
pub async fn adopt() -> Result<()> {
    if std::process::id() != 1 {
        return Ok(());
    }
    let mut ended = signal(SignalKind::child()).context("signals can't be received")?;
    loop {
        let buried = tokio::task::spawn_blocking(|| bury(Path::new("/proc"))).await?;
        if buried > 0 {
            tracing::debug!(buried, "waited for processes that had lost their parents");
        }
        tokio::time::sleep(PAUSE).await;
        // One signal stands for all that came meanwhile.
        if ended.recv().await.is_none() {
            return Ok(());
        }
    }
}

/// Waits for the children that have ended and are not ours; how many there were.
fn bury(proc: &Path) -> usize {
    let ours = ours();
    let zombies = zombies_of(proc, std::process::id());
    let orphans = zombies.into_iter().filter(|pid| !ours.contains(pid));
    let orphans = orphans.filter_map(|pid| Pid::from_raw(pid.cast_signed()));
    orphans
        .filter(|pid| {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            matches!(waitid(WaitId::Pid(*pid), options), Ok(Some(_)))
        })
        .count()
}

/// The children of a process that have ended and were not waited for, as `proc_pid_stat(5)` tells. (`/proc/PID/task/*/children` is
/// quicker to read, and not built into every kernel.)
fn zombies_of(proc: &Path, parent: u32) -> Vec<u32> {
    let entries = fs::read_dir(proc).into_iter().flatten();
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let pid: u32 = path.file_name()?.to_str()?.parse().ok()?;
            let stat = fs::read_to_string(path.join("stat")).ok()?;
            // A program's name may hold anything, blanks and brackets too.
            let (_, fields) = stat.rsplit_once(')')?;
            let mut fields = fields.split_whitespace();
            let zombie = fields.next()? == "Z";
            let its_parent: u32 = fields.next()?.parse().ok()?;
            (zombie && its_parent == parent).then_some(pid)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cgroup::tests::tree;

    #[test]
    fn zombies_are_told_by_state_and_parent() {
        let proc = tree(&[
            ("7/stat", "7 (sh) Z 1 7 7 0 -1\n"),
            ("8/stat", "8 (a b) Z 9) Z 1 8 8 0 -1\n"),
            ("9/stat", "9 (sh) S 1 9 9 0 -1\n"),
            ("10/stat", "10 (sh) Z 9 10 10 0 -1\n"),
            ("11/stat", "cut off"),
            ("self/stat", "12 (me) Z 1 12 12 0 -1\n"),
        ]);
        let mut zombies = zombies_of(proc.path(), 1);
        zombies.sort_unstable();
        assert_eq!(zombies, [7, 8]);
    }

    /// The whole of it, in a process that is not the first: the zombies of both kinds are its own children.
    #[test]
    fn orphans_are_buried_and_our_own_are_left_to_their_starters() {
        let (mut child, listed) = spawn(Command::new("true").arg("ours")).expect("a child");
        let orphan = Command::new("true").spawn().expect("a child").id();
        let all = || zombies_of(Path::new("/proc"), std::process::id());
        while !(all().contains(&child.id()) && all().contains(&orphan)) {
            std::thread::yield_now();
        }
        bury(Path::new("/proc"));
        assert!(all().contains(&child.id()) && !all().contains(&orphan));
        assert!(child.wait().expect("its end is still there").success());
        drop(listed);
        assert!(!ours().contains(&child.id()));
    }
}
