//! What other programs take of the cores: whoever measures speed should know. From `/proc/stat`, which Android refuses.

use super::cores::CoreSet;
use super::topology::text;
use std::path::Path;

/// Times since the start of the system, in ticks, summed over some cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    all: u64,
    /// Of these, what was not idle. What a hypervisor gave to others counts.
    spent: u64,
    /// What our own processes took, on whatever core.
    ours: u64,
    cores: u32,
}

impl Busy {
    /// Now; `processes` are ours.
    pub fn now(processes: &[u32]) -> Option<Self> {
        Self::read(Path::new("/proc"), processes, None)
    }

    /// The same of these cores only; `processes` are ours and compute nowhere else.
    pub fn on(cores: &CoreSet, processes: &[u32]) -> Option<Self> {
        Self::read(Path::new("/proc"), processes, Some(cores))
    }

    fn read(proc: &Path, processes: &[u32], cores: Option<&CoreSet>) -> Option<Self> {
        let stat = text(&proc.join("stat"))?;
        let ours = processes
            .iter()
            .map(|pid| ticks(proc, *pid))
            .sum::<Option<u64>>()?;
        let lines = stat.lines().filter_map(|line| line.strip_prefix("cpu"));
        let (mut all, mut spent, mut counted) = (0, 0, 0);
        for (core, times) in lines.filter_map(|line| line.split_once(' ')) {
            // The first line is the sum of all.
            let Ok(core) = core.parse() else { continue };
            if cores.is_none_or(|cores: &CoreSet| cores.has(core)) {
                let (of_all, of_spent) = times_of(times)?;
                (all, spent, counted) = (all + of_all, spent + of_spent, counted + 1);
            }
        }
        (counted > 0).then_some(Self {
            all,
            spent,
            ours,
            cores: counted,
        })
    }

    /// How many cores these are.
    pub fn cores(self) -> u32 {
        self.cores
    }

    /// The share of these cores that others had from then until `later`.
    pub fn others_until(self, later: Self) -> Option<f64> {
        // A core that was switched on or off brings or takes all its past.
        if later.cores != self.cores {
            return None;
        }
        let all = later.all.checked_sub(self.all).filter(|all| *all > 0)?;
        let spent = later.spent.saturating_sub(self.spent);
        let others = spent.saturating_sub(later.ours.saturating_sub(self.ours));
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = others as f64 / all as f64;
        Some(share)
    }
}

/// All ticks of a core's line, and those that it was not idle. user nice system idle iowait irq softirq steal; what guests take is in the
/// first two.
fn times_of(line: &str) -> Option<(u64, u64)> {
    let times = line.split_whitespace().take(8);
    let times: Vec<u64> = times.map_while(|time| time.parse().ok()).collect();
    let [_, _, _, idle, waiting, ..] = times.as_slice() else {
        return None;
    };
    let all: u64 = times.iter().sum();
    Some((all, all - idle - waiting))
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

    /// Two cores' user and idle ticks, and what a process took. A hypervisor gave ten of each to others.
    fn at(cores: [(u64, u64); 2], ours: u64) -> tempfile::TempDir {
        let [(user0, idle0), (user1, idle1)] = cores;
        let stat = format!(
            "cpu  1 2 3 4 5 6 7 8\ncpu0 {user0} 0 0 {idle0} 0 0 0 10 0 0\ncpu1 {user1} 0 0 {idle1} 0 0 0 10 0 0\nintr 1 2\n"
        );
        let process = format!("7 (a b) c) S 1 7 7 0 -1 0 0 0 0 0 {ours} 5 0 0\n");
        tree(&[("stat", &stat), ("7/stat", &process)])
    }

    #[test]
    fn what_is_neither_idle_nor_ours_is_others() {
        let before = at([(100, 100), (50, 50)], 50);
        let after = at([(180, 120), (50, 150)], 90);
        let shares = |cores: Option<&str>| {
            let cores: Option<CoreSet> = cores.map(|cores| cores.parse().expect("cores"));
            let read = |proc: &tempfile::TempDir| {
                Busy::read(proc.path(), &[7], cores.as_ref()).expect("times")
            };
            let (before, after) = (read(&before), read(&after));
            assert_eq!(after.others_until(before), None, "time runs one way");
            (before.others_until(after), before.cores())
        };
        // 80 of 200 ticks were busy, 40 of them ours.
        assert_eq!(shares(None), (Some(0.2), 2));
        assert_eq!(shares(Some("0")), (Some(0.4), 1));
        assert_eq!(shares(Some("1")), (Some(0.0), 1), "ours were elsewhere");
    }

    #[test]
    fn a_core_that_comes_brings_no_idle_time() {
        let proc = at([(100, 100), (50, 9000)], 50);
        let one = Busy::read(proc.path(), &[7], "0".parse().ok().as_ref());
        let two = Busy::read(proc.path(), &[7], None);
        assert_eq!(one.expect("times").others_until(two.expect("times")), None);
    }

    #[test]
    fn what_is_refused_is_not_guessed() {
        let read = |files: &[(&str, &str)], processes: &[u32], cores: Option<&CoreSet>| {
            Busy::read(tree(files).path(), processes, cores)
        };
        assert_eq!(read(&[], &[], None), None);
        assert_eq!(read(&[("stat", "cpu0 1 2\n")], &[], None), None);
        let stat = [("stat", "cpu  1 2 3 4 5 6 7 8\ncpu0 1 2 3 4 5 6 7 8\n")];
        assert_eq!(read(&stat, &[9], None), None, "no such process");
        let elsewhere = "7".parse().ok();
        assert_eq!(read(&stat, &[], elsewhere.as_ref()), None, "no such core");
        assert!(read(&stat, &[], None).is_some());
    }
}
