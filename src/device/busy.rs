//! What other programs take of the cores: whoever measures speed should know. From `/proc/stat`, which Android refuses.

use super::topology::text;
use std::path::Path;

/// Times since the start of the system, in ticks, summed over all cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    all: u64,
    /// Of these, what was not idle. What a hypervisor gave to others counts.
    spent: u64,
    /// Of these, what our own processes took.
    ours: u64,
    cores: u32,
}

impl Busy {
    /// Now; `processes` are ours.
    pub fn now(processes: &[u32]) -> Option<Self> {
        Self::read(Path::new("/proc"), processes)
    }

    fn read(proc: &Path, processes: &[u32]) -> Option<Self> {
        let stat = text(&proc.join("stat"))?;
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        // user nice system idle iowait irq softirq steal; what guests take is in the first two.
        let times: Vec<u64> = line
            .split_whitespace()
            .take(8)
            .map_while(|time| time.parse().ok())
            .collect();
        let [_, _, _, idle, waiting, ..] = times.as_slice() else {
            return None;
        };
        let all: u64 = times.iter().sum();
        let each = stat
            .lines()
            .filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
        let ours = processes
            .iter()
            .map(|pid| ticks(proc, *pid))
            .sum::<Option<u64>>()?;
        Some(Self {
            all,
            spent: all - idle - waiting,
            ours,
            cores: u32::try_from(each.count()).unwrap_or(u32::MAX),
        })
    }

    /// How many cores these are.
    pub fn cores(self) -> u32 {
        self.cores
    }

    /// The share of all cores that others had from then until `later`.
    pub fn others_until(self, later: Self) -> Option<f64> {
        let all = later.all.checked_sub(self.all).filter(|all| *all > 0)?;
        let spent = later.spent.saturating_sub(self.spent);
        let others = spent.saturating_sub(later.ours.saturating_sub(self.ours));
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = others as f64 / all as f64;
        Some(share)
    }
}

/// What a process took, with its threads that have ended and its children that were waited for.
fn ticks(proc: &Path, pid: u32) -> Option<u64> {
    let stat = text(&proc.join(pid.to_string()).join("stat"))?;
    // A program's name may hold anything, blanks and brackets too.
    let (_, fields) = stat.rsplit_once(") ")?;
    let times = fields.split_whitespace().skip(11).take(4);
    let times: Vec<u64> = times.map_while(|time| time.parse().ok()).collect();
    (times.len() == 4).then(|| times.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cgroup::tests::tree;

    fn at(user: u64, idle: u64, ours: u64) -> Option<Busy> {
        let stat = format!("cpu  {user} 0 0 {idle} 0 0 0 10 0 0\ncpu0 1 2 3 4\n");
        let process = format!("7 (a b) c) S 1 7 7 0 -1 0 0 0 0 0 {ours} 5 0 0\n");
        let proc = tree(&[("stat", &stat), ("7/stat", &process)]);
        Busy::read(proc.path(), &[7])
    }

    #[test]
    fn what_is_neither_idle_nor_ours_is_others() {
        let (before, after) = (at(100, 100, 50), at(180, 120, 90));
        let share = before.expect("times").others_until(after.expect("times"));
        // 80 of 100 ticks were busy, 40 of them ours.
        assert_eq!(share, Some(0.4));
        assert_eq!(before.map(Busy::cores), Some(1));
        assert_eq!(
            after.expect("times").others_until(before.expect("times")),
            None,
            "time runs one way"
        );
    }

    #[test]
    fn what_is_refused_is_not_guessed() {
        assert_eq!(Busy::read(tree(&[]).path(), &[]), None);
        assert_eq!(
            Busy::read(tree(&[("stat", "cpu  1 2\n")]).path(), &[]),
            None
        );
        let proc = tree(&[("stat", "cpu  1 2 3 4 5 6 7 8\n")]);
        assert_eq!(Busy::read(proc.path(), &[9]), None, "no such process");
        assert!(Busy::read(proc.path(), &[]).is_some());
    }
}
