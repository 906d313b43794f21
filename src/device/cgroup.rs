//! The control groups that a process is in, and how many cores their quotas leave it.
//!
//! Both versions are understood, and a machine may have both at once. Sources: `cgroups(7)`, the kernel's cgroup-v2.rst and
//! sched-bwc.rst. A limit holds for all below it, so what counts is the least from our own group up to the root that we can see.

use std::fs;
use std::path::{Path, PathBuf};

/// Which of the kernel's two interfaces a group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// A hierarchy for each controller.
    One,
    /// One hierarchy for all.
    Two,
}

/// A group's folder.
pub(super) struct Group {
    pub(super) version: Version,
    folder: PathBuf,
}

impl Group {
    /// What one of its files says, if it is there.
    pub(super) fn text(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.folder.join(file)).ok()
    }

    /// The number that is all that one of its files says.
    pub(super) fn number(&self, file: &str) -> Option<u64> {
        self.text(file)?.trim().parse().ok()
    }

    /// Cores that it may use at once, if it has a quota. A part of a core is none: a thread more than whole cores would stop all of
    /// them in each period, in the middle of a step.
    fn cores(&self) -> Option<u64> {
        let (quota, period) = match self.version {
            Version::Two => {
                let text = self.text("cpu.max")?;
                // Without a quota it says "max".
                let (quota, period) = text.trim().split_once(' ')?;
                (quota.parse().ok()?, period.parse().ok()?)
            }
            // Without one it says -1, which is no number here.
            Version::One => (
                self.number("cpu.cfs_quota_us")?,
                self.number("cpu.cfs_period_us")?,
            ),
        };
        Some(u64::checked_div(quota, period)?.max(1))
    }
}

/// Cores that the quotas leave this process, at least one; `None` where there is no quota.
pub(super) fn cores(proc: &Path, root: &Path) -> Option<u64> {
    let groups = groups(proc, root, "cpu");
    groups.iter().filter_map(Group::cores).min()
}

/// The groups of a controller from the root down to ours. `proc` and `root` are `/proc` and `/sys/fs/cgroup`.
pub(super) fn groups(proc: &Path, root: &Path, controller: &str) -> Vec<Group> {
    let ours = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    ours.lines()
        .filter_map(|line| {
            let (_, line) = line.split_once(':')?;
            let (controllers, path) = line.split_once(':')?;
            if controllers.is_empty() {
                let hybrid = root.join("unified");
                let root = if hybrid.is_dir() { &hybrid } else { root };
                return Some(down(root, path, Version::Two));
            }
            let ours = controllers.split(',').any(|name| name == controller);
            // Mounted together, under both names; the short one is a link, if it is there.
            let folders = [controller, controllers].map(|name| root.join(name));
            let folder = folders.iter().find(|folder| folder.is_dir())?;
            ours.then(|| down(folder, path, Version::One))
        })
        .flatten()
        .collect()
}

/// A path that is told from outside of a container does not exist inside; then only its root counts.
fn down(root: &Path, path: &str, version: Version) -> Vec<Group> {
    let mut folder = root.to_owned();
    let mut groups = Vec::new();
    let names = path.split('/');
    let names = names.filter(|name| !name.is_empty() && *name != "..");
    for name in std::iter::once("").chain(names) {
        folder.push(name);
        groups.push(Group {
            version,
            folder: folder.clone(),
        });
    }
    groups
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A folder with these files.
    pub(crate) fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        root
    }

    fn cores_of(files: &[(&str, &str)]) -> Option<u64> {
        let root = tree(files);
        cores(&root.path().join("proc"), &root.path().join("sys"))
    }

    #[test]
    fn a_quota_is_counted_in_whole_cores() {
        let version_2 = |max: &str| {
            cores_of(&[
                ("proc/self/cgroup", "0::/pods/ours\n"),
                ("sys/pods/ours/cpu.max", max),
            ])
        };
        assert_eq!(version_2("max 100000\n"), None);
        assert_eq!(version_2("400000 100000\n"), Some(4));
        assert_eq!(version_2("250000 100000\n"), Some(2));
        assert_eq!(
            version_2("10000 100000\n"),
            Some(1),
            "nobody computes on none"
        );
        for nonsense in ["", "max", "1 0\n", "x 100000\n"] {
            assert_eq!(version_2(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn version_1_has_two_files_in_a_hierarchy_of_its_own() {
        let version_1 = |mount: &str, quota: &str| {
            let (quotas, period) = (
                format!("sys/{mount}/pod/cpu.cfs_quota_us"),
                format!("sys/{mount}/pod/cpu.cfs_period_us"),
            );
            cores_of(&[
                (
                    "proc/self/cgroup",
                    "4:memory:/x\n3:cpu,cpuacct:/pod\n0::/\n",
                ),
                (&quotas, quota),
                (&period, "100000\n"),
            ])
        };
        assert_eq!(version_1("cpu", "300000\n"), Some(3));
        assert_eq!(version_1("cpu,cpuacct", "300000\n"), Some(3));
        assert_eq!(version_1("cpu", "-1\n"), None);
        assert_eq!(
            version_1("memory", "300000\n"),
            None,
            "another controller's"
        );
    }

    #[test]
    fn the_least_quota_up_to_the_root_counts() {
        let files = [
            ("proc/self/cgroup", "0::/pods/ours\n"),
            ("sys/pods/ours/cpu.max", "800000 100000\n"),
            ("sys/pods/cpu.max", "150000 50000\n"),
            ("sys/cpu.max", "max 100000\n"),
        ];
        assert_eq!(cores_of(&files), Some(3));
        // Told from outside, found inside.
        let files = [
            ("proc/self/cgroup", "0::/../../docker/1\n"),
            ("sys/cpu.max", "200000 100000\n"),
        ];
        assert_eq!(cores_of(&files), Some(2));
        assert_eq!(cores_of(&[]), None);
    }
}
