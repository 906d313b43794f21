//! Memory that can be had without an OOM kill, and what a process holds.
//!
//! Sources: `proc_meminfo(5)`, `proc_pid_status(5)`, and the kernel's cgroup-v2.rst and cgroup-v1/memory.rst. Nothing is
//! kept: every call reads anew.

use super::cgroup::{Group, Version, groups};
use std::fs;
use std::path::Path;

/// What is left to others on the machine, at least.
const RESERVE: u64 = 64 << 20;
/// … and as a share of what is available: one part in so many.
const RESERVE_PART: u64 = 20;
/// What the kernel books on a group for page tables, sockets and the like, and nobody sees coming.
const GROUP_RESERVE: u64 = 16 << 20;
/// A limit of version 1 from here on is none.
const NO_LIMIT: u64 = 1 << 60;

/// Memory that can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Its amount.
    pub bytes: u64,
}

impl Free {
    /// What this process can have now, if the system tells.
    pub fn here() -> Option<Self> {
        Self::read(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
    }

    /// The same from other folders: the smaller of what the machine and what the cgroups leave.
    pub fn read(proc: &Path, cgroup: &Path) -> Option<Self> {
        let machine = machine(proc)?;
        let bytes = match group(proc, cgroup) {
            Some(group) => group.min(machine),
            None => machine,
        };
        Some(Self { bytes })
    }
}

/// Processes of our control group, or where that does not tell of the machine, that the system has killed for memory so far.
pub fn kills() -> Option<u64> {
    kills_of(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

fn kills_of(proc: &Path, root: &Path) -> Option<u64> {
    // Version 1 has it in oom_control, version 2 in events. The kernel counts a kill in the group of who was killed.
    let of_group = |group: &Group| {
        let file = match group.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        count(&group.text(file)?, "oom_kill")
    };
    let ours = groups(proc, root, "memory").iter().rev().find_map(of_group);
    ours.or_else(|| count(&fs::read_to_string(proc.join("vmstat")).ok()?, "oom_kill"))
}

/// Bytes that a process holds and the system can't drop: its own and shared ones, not the pages of files.
pub fn anonymous_bytes(pid: u32) -> Option<u64> {
    anonymous_of(Path::new("/proc"), pid)
}

fn anonymous_of(proc: &Path, pid: u32) -> Option<u64> {
    let status = fs::read_to_string(proc.join(pid.to_string()).join("status")).ok()?;
    let anonymous = kibibytes(&status, "RssAnon:")?;
    Some(anonymous.saturating_add(kibibytes(&status, "RssShmem:").unwrap_or(0)))
}

fn machine(proc: &Path) -> Option<u64> {
    let about = fs::read_to_string(proc.join("meminfo")).ok()?;
    let available = kibibytes(&about, "MemAvailable:")?;
    Some(available.saturating_sub(RESERVE.max(available / RESERVE_PART)))
}

/// The least that any group from ours up to the root leaves, if one has a limit.
fn group(proc: &Path, root: &Path) -> Option<u64> {
    let groups = groups(proc, root, "memory");
    groups.iter().filter_map(left).min()
}

/// What a group leaves: its limit less its use. The page cache counts as used, but makes room when it must; memory-backed files in
/// it do not.
fn left(group: &Group) -> Option<u64> {
    let stat = group.text("memory.stat").unwrap_or_default();
    let (limit, used, cached, shared) = match group.version {
        Version::Two => (
            // Above `high` a group is slowed down until it crawls.
            [group.number("memory.max"), group.number("memory.high")]
                .into_iter()
                .flatten()
                .min()?,
            group.number("memory.current"),
            count(&stat, "file"),
            count(&stat, "shmem"),
        ),
        Version::One => (
            group
                .number("memory.limit_in_bytes")
                .filter(|limit| *limit < NO_LIMIT)?,
            group.number("memory.usage_in_bytes"),
            count(&stat, "total_cache").or_else(|| count(&stat, "cache")),
            count(&stat, "total_shmem").or_else(|| count(&stat, "shmem")),
        ),
    };
    let droppable = cached.unwrap_or(0).saturating_sub(shared.unwrap_or(0));
    let held = used.unwrap_or(0).saturating_sub(droppable);
    Some(limit.saturating_sub(held).saturating_sub(GROUP_RESERVE))
}

/// `MemAvailable:   23632 kB` → bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

/// `file 4096` → 4096.
fn count(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines
        .find(|(key, _)| *key == name)
        .and_then(|(_, number)| number.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A folder with these files.
    fn tree(files: &[(&str, String)]) -> tempfile::TempDir {
        let files: Vec<_> = files
            .iter()
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        crate::device::cgroup::tests::tree(&files)
    }

    fn free(available_mib: u64, files: &[(&str, String)]) -> Option<u64> {
        let about = format!(
            "MemTotal: 1 kB\nMemAvailable:   {} kB\n",
            available_mib * 1024
        );
        let mut all = vec![("proc/meminfo", about)];
        all.extend_from_slice(files);
        let root = tree(&all);
        Free::read(&root.path().join("proc"), &root.path().join("sys")).map(|free| free.bytes)
    }

    fn number(mib: u64) -> String {
        format!("{}\n", mib * MIB)
    }

    #[test]
    fn kills_for_memory_are_counted_where_they_are_told() {
        let kills = |files: &[(&str, &str)]| {
            let root = crate::device::cgroup::tests::tree(files);
            kills_of(&root.path().join("proc"), &root.path().join("sys"))
        };
        let vmstat = ("proc/vmstat", "nr_free_pages 1\noom_kill 7\n");
        let two = ("proc/self/cgroup", "0::/pod\n");
        let events = ("sys/pod/memory.events", "oom 3\noom_kill 2\n");
        let root = ("sys/memory.events", "oom_kill 9\n");
        assert_eq!(
            kills(&[vmstat, two, events, root]),
            Some(2),
            "our own group"
        );
        let one = ("proc/self/cgroup", "4:memory:/pod\n");
        let control = (
            "sys/memory/pod/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
        );
        assert_eq!(kills(&[vmstat, one, control]), Some(4));
        assert_eq!(kills(&[vmstat, one]), Some(7));
        assert_eq!(kills(&[one]), None);
    }

    #[test]
    fn the_machine_keeps_a_reserve() {
        assert_eq!(free(1000, &[]), Some(936 * MIB));
        assert_eq!(free(20_000, &[]), Some(19_000 * MIB));
        assert_eq!(free(10, &[]), Some(0));
        let empty = tree(&[]);
        assert_eq!(Free::read(empty.path(), empty.path()), None);
    }

    #[test]
    fn the_page_cache_of_a_group_is_free_and_its_shared_memory_is_not() {
        let group = |max: String| {
            [
                ("proc/self/cgroup", "0::/pods/ours\n".into()),
                ("sys/pods/ours/memory.max", max),
                ("sys/pods/ours/memory.current", number(700)),
                (
                    "sys/pods/ours/memory.stat",
                    format!("anon 5\nfile {}\nshmem {}\n", 500 * MIB, 100 * MIB),
                ),
            ]
        };
        // 700 used, of which 400 can be dropped.
        assert_eq!(free(9000, &group(number(1000))), Some(684 * MIB));
        assert_eq!(free(9000, &group("max\n".into())), Some(8550 * MIB));
        assert_eq!(free(300, &group(number(1000))), Some(236 * MIB));
    }

    #[test]
    fn a_parents_limit_holds_too() {
        let files = [
            ("proc/self/cgroup", "0::/pods/ours\n".into()),
            ("sys/pods/ours/memory.max", number(1000)),
            ("sys/pods/memory.max", "max\n".into()),
            ("sys/pods/memory.high", number(400)),
            ("sys/pods/memory.current", number(100)),
        ];
        assert_eq!(free(9000, &files), Some(284 * MIB));
    }

    #[test]
    fn version_1_has_other_names() {
        let group = |limit: u64| {
            [
                (
                    "proc/self/cgroup",
                    "5:cpu:/x\n4:memory,other:/docker/1\n0::/\n".into(),
                ),
                ("sys/memory/memory.limit_in_bytes", format!("{limit}\n")),
                ("sys/memory/memory.usage_in_bytes", number(300)),
                (
                    "sys/memory/memory.stat",
                    format!("cache 1\ntotal_cache {}\ntotal_shmem 0\n", 200 * MIB),
                ),
            ]
        };
        assert_eq!(
            free(9000, &group(500 * MIB)),
            Some(384 * MIB),
            "a path from outside"
        );
        assert_eq!(
            free(9000, &group(9_223_372_036_854_771_712)),
            Some(8550 * MIB)
        );
    }

    #[test]
    fn a_process_holds_what_is_no_file() {
        let status = "Name:\tx\nRssAnon:\t   100 kB\nRssFile:\t  7000 kB\nRssShmem:\t    28 kB\n";
        let root = tree(&[("7/status", status.into())]);
        assert_eq!(anonymous_of(root.path(), 7), Some(128 * 1024));
        assert_eq!(anonymous_of(root.path(), 8), None);
        assert!(anonymous_bytes(std::process::id()).is_some_and(|bytes| bytes > 0));
    }
}
