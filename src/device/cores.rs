//! Sets of cores, written as the kernel writes them (`0-3,8`), and the affinity masks of threads.

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::str::FromStr;
use std::time::Duration;
use std::{fmt, fs};

/// Cores with higher numbers are not counted: a mask of the system calls ([`CpuSet::MAX_CPU`]) has no room for them.
const MOST_CORES: u32 = 1024;

/// Cores by their numbers, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CoreSet(Vec<u32>);

impl CoreSet {
    /// The cores that the calling thread may run on now, if the system tells.
    pub fn allowed() -> Option<Self> {
        Self::allowed_to(None)
    }

    /// The cores that a thread may run on now; `None` is the calling one.
    pub fn allowed_to(thread: Option<Pid>) -> Option<Self> {
        let mask = sched_getaffinity(thread).ok()?;
        let cores = (0..MOST_CORES).filter(|core| mask.is_set(*core as usize));
        Some(cores.collect())
    }

    /// Lets the calling thread, and threads that it starts from now on, run on these cores only.
    pub fn pin(&self) -> io::Result<()> {
        Ok(sched_setaffinity(None, &self.mask())?)
    }

    /// The same for the other threads of the calling one's team: all of the process that have its name (`comm` in proc(5)), which OpenMP's
    /// have from the thread that they work for. They stay when it needs them no more, so its own mask does not reach them. Where one
    /// can't be moved it goes on, and tells the first error.
    pub fn pin_team(&self) -> io::Result<()> {
        let own = gettid();
        let mut moved = Ok(());
        for id in team()?.into_iter().filter(|id| *id != own) {
            // One that ends meanwhile has no place.
            if let Err(error) = sched_setaffinity(Some(id), &self.mask())
                && error != Errno::SRCH
            {
                moved = moved.and(Err(error.into()));
            }
        }
        moved
    }

    fn mask(&self) -> CpuSet {
        let mut mask = CpuSet::new();
        for core in &self.0 {
            mask.set(*core as usize);
        }
        mask
    }

    /// How many they are.
    pub fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(MOST_CORES)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a core is among them.
    pub fn has(&self, core: u32) -> bool {
        self.0.binary_search(&core).is_ok()
    }

    /// Their numbers, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u32> + Clone {
        self.0.iter().copied()
    }

    /// Those that are in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.iter().filter(|core| other.has(*core)).collect()
    }

    /// Those that are in one of them.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }
}

impl FromIterator<u32> for CoreSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cores: I) -> Self {
        let mut cores: Vec<u32> = cores
            .into_iter()
            .filter(|core| *core < MOST_CORES)
            .collect();
        cores.sort_unstable();
        cores.dedup();
        Self(cores)
    }
}

impl fmt::Display for CoreSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|one, next| one + 1 == *next);
        for (index, run) in runs.enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match run {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [only] => write!(f, "{comma}{only}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

/// A text that names no set of cores.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no list of cores: write it like 4-7 or 0,2,4-5")]
pub struct NoCores(String);

impl FromStr for CoreSet {
    type Err = NoCores;

    /// `0-3,8`; blanks instead of commas will do (`related_cpus`). An empty text is an empty set.
    fn from_str(text: &str) -> Result<Self, NoCores> {
        let wrong = || NoCores(text.chars().take(64).collect());
        let parts = text.split([',', ' ', '\n', '\t']);
        let mut cores = Vec::new();
        for part in parts.filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| text.parse::<u32>().ok().filter(|core| *core < MOST_CORES);
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => cores.extend(first..=last),
                _ => return Err(wrong()),
            }
        }
        Ok(cores.into_iter().collect())
    }
}

impl TryFrom<String> for CoreSet {
    type Error = NoCores;

    fn try_from(text: String) -> Result<Self, NoCores> {
        text.parse()
    }
}

impl From<CoreSet> for String {
    fn from(cores: CoreSet) -> Self {
        cores.to_string()
    }
}

/// How long the threads of a team could have run and had no core. The second number of `schedstat`
/// (Documentation/scheduler/sched-stats.rst), nanoseconds.
#[derive(Debug, Default)]
pub struct Waits {
    of_each: HashMap<Pid, Duration>,
    total: Duration,
}

impl Waits {
    /// What the threads of the calling one's team, itself among them, have waited so far, all together, also those that have ended
    /// since this was asked last; `None` where the kernel does not tell.
    pub fn total(&mut self) -> Option<Duration> {
        let mut of_each = HashMap::new();
        for id in team().ok()? {
            // One that ends meanwhile has waited for nothing that matters.
            let Ok(text) = fs::read_to_string(format!("/proc/self/task/{id}/schedstat")) else {
                continue;
            };
            let waited = text.split_whitespace().nth(1)?.parse().ok()?;
            of_each.insert(id, Duration::from_nanos(waited));
        }
        (!of_each.is_empty()).then(|| self.add(of_each))
    }

    fn add(&mut self, of_each: HashMap<Pid, Duration>) -> Duration {
        for (id, waited) in &of_each {
            // One that waited less before is another one with the same id.
            let before = self.of_each.get(id).copied().unwrap_or_default();
            self.total += waited.checked_sub(before).unwrap_or(*waited);
        }
        self.of_each = of_each;
        self.total
    }
}

/// The threads of this process that have the calling one's name, itself among them.
fn team() -> io::Result<Vec<Pid>> {
    let own = name(gettid())?;
    let mut team = Vec::new();
    for thread in fs::read_dir("/proc/self/task")? {
        let id = thread?.file_name().to_str().and_then(|id| id.parse().ok());
        // One that ends meanwhile has no name.
        if let Some(id) = id.and_then(Pid::from_raw)
            && name(id).is_ok_and(|name| name == own)
        {
            team.push(id);
        }
    }
    Ok(team)
}

/// What a thread of this process is called.
fn name(thread: Pid) -> io::Result<String> {
    fs::read_to_string(format!("/proc/self/task/{thread}/comm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cores(text: &str) -> CoreSet {
        text.parse().expect("a list of cores")
    }

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for text in ["", "0", "0-3", "0-3,8", "0,2,4-5,7", "0-8"] {
            assert_eq!(cores(text).to_string(), text);
        }
        assert_eq!(cores("4 5 6 7\n"), cores("4-7"));
        assert_eq!(cores("7,4-5,5"), cores("4,5,7"));
        for wrong in ["x", "3-1", "-1", "1-", "0-99999", "4294967296"] {
            assert!(wrong.parse::<CoreSet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sets_meet_and_join() {
        assert_eq!(cores("0-5").and(&cores("4-7")), cores("4-5"));
        assert_eq!(cores("0-1").or(&cores("4-7")), cores("0-1,4-7"));
        assert!(cores("0-3").and(&cores("4-7")).is_empty());
        assert_eq!(cores("0-3,8").count(), 5);
    }

    /// The mask of a thread of its own: other tests' threads stay where they are.
    #[test]
    fn a_pinned_thread_and_its_children_stay_on_their_core() {
        let pinned = std::thread::spawn(|| {
            let all = CoreSet::allowed().expect("a mask");
            let first: CoreSet = all.iter().take(1).collect();
            first.pin().expect("a core that is allowed");
            let child = std::thread::spawn(CoreSet::allowed);
            (first, CoreSet::allowed(), child.join().expect("a thread"))
        });
        let (first, own, childs) = pinned.join().expect("a thread");
        assert_eq!(
            (own.as_ref(), childs.as_ref()),
            (Some(&first), Some(&first))
        );
    }

    /// Threads of its own name: others are other tests'.
    #[test]
    fn a_team_is_pinned_by_its_name() {
        let started = |name: &str| {
            let (end, ended) = std::sync::mpsc::sync_channel::<()>(0);
            let (tell, told) = std::sync::mpsc::sync_channel(1);
            let thread = std::thread::Builder::new().name(name.into());
            let thread = thread.spawn(move || {
                tell.send(gettid()).expect("who started it");
                // Nobody sends; an error is the end.
                let _ = ended.recv();
            });
            (thread.expect("a thread"), told.recv().expect("its id"), end)
        };
        let alike = [started("a-team"), started("a-team"), started("others")];
        let engine = std::thread::Builder::new().name("a-team".into());
        let engine = engine.spawn(|| {
            let all = CoreSet::allowed().expect("a mask");
            let first: CoreSet = all.iter().take(1).collect();
            first.pin_team().expect("a core that is allowed");
            (all, first, CoreSet::allowed())
        });
        let (all, first, own) = engine.expect("a thread").join().expect("no panic");
        assert_eq!(own.as_ref(), Some(&all), "it pins itself apart");
        for (number, (thread, id, end)) in alike.into_iter().enumerate() {
            let expected = if number < 2 { &first } else { &all };
            assert_eq!(CoreSet::allowed_to(Some(id)).as_ref(), Some(expected));
            drop(end);
            thread.join().expect("no panic");
        }
    }

    #[test]
    fn what_threads_have_waited_never_becomes_less() {
        let mut waits = Waits::default();
        let mut add = |each: &[(i32, u64)]| {
            let of_each = each
                .iter()
                .filter_map(|(id, ms)| Some((Pid::from_raw(*id)?, Duration::from_millis(*ms))));
            waits.add(of_each.collect()).as_millis()
        };
        assert_eq!(add(&[(1, 10), (2, 100)]), 110);
        assert_eq!(add(&[(1, 15), (2, 100)]), 115);
        assert_eq!(add(&[(1, 20)]), 120, "one has ended");
        assert_eq!(add(&[(1, 20), (3, 7)]), 127, "a new one");
        assert_eq!(add(&[(1, 20), (3, 2)]), 129, "another one with its id");
    }

    /// Two threads of one name that want the same core: while one of them has it, the other one waits.
    #[test]
    fn what_a_team_waits_for_a_core_is_told() {
        let busy = || {
            let began = std::time::Instant::now();
            while began.elapsed() < Duration::from_millis(300) {
                std::hint::spin_loop();
            }
        };
        let team = move || std::thread::Builder::new().name("waiting-team".into());
        let own_core = || {
            let all = CoreSet::allowed().expect("a mask");
            let first: CoreSet = all.iter().take(1).collect();
            first.pin().expect("a core that is allowed");
        };
        let engine = team().spawn(move || {
            own_core();
            let mut waits = Waits::default();
            let before = waits.total().unwrap_or_default();
            let other = team().spawn(busy).expect("a thread");
            busy();
            let waited = waits.total();
            other.join().expect("no panic");
            waited.map(|waited| waited.saturating_sub(before))
        });
        let waited = engine.expect("a thread").join().expect("no panic");
        let own = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
        if own.is_empty() || own.starts_with("0 0 ") {
            eprintln!("skipped: this kernel does not tell");
            return;
        }
        let least = Duration::from_millis(100);
        assert!(waited.is_some_and(|waited| waited > least), "{waited:?}");
    }
}
