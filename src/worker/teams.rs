//! Which cores the engine thread computes on, step by step, and with how many threads.
//!
//! OpenMP starts llama.cpp's threads when the engine thread first needs them, and keeps them for the next graph with as many or with
//! one. They inherit its affinity when they start, and are pinned with it when a step of several threads wants other cores. The numbers
//! of threads belong to llama.cpp's context, which has two of them: one for steps of one row and one for all others. Small and large
//! steps of several rows may want different ones; then the second number is chosen for the load at hand, because another number costs
//! another context.
//!
//! Where other programs compute on the same cores, fewer threads are faster ([`Watch`]).
//!
//! What is allowed is read anew before each step: Android takes the large cores from programs in the background, and a thread
//! that spins without a core of its own makes every step many times slower.

use super::crowd::Step;
use super::watch::{Watch, cores_of};
use crate::device::{Allowed, CoreSet, Placement, Team, placement::FEW_ROWS};
use rustix::process::Pid;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Quotas are files, and are read no more often than this.
const QUOTA_PAUSE: Duration = Duration::from_secs(2);

/// Threads of a context: for steps of one row, and for all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// For steps of one row.
    pub one: u32,
    /// For steps of several rows.
    pub several: u32,
}

/// Follows what is allowed. Belongs to the engine thread.
#[derive(Debug)]
pub struct Teams {
    planned: Placement,
    now: Placement,
    allowed: Allowed,
    quota_read: Instant,
    witness: Option<Witness>,
    load: Load,
    watch: Rc<RefCell<Watch>>,
    /// 0, or 1 for a model that drafts for the first one.
    model: usize,
    /// Threads that the last step had less than planned.
    left_out: u32,
}

impl Teams {
    /// Must be made on the engine thread, before it is pinned anywhere.
    pub fn new(planned: Placement) -> Self {
        Self::watched(planned, Rc::default(), 0)
    }

    fn watched(planned: Placement, watch: Rc<RefCell<Watch>>, model: usize) -> Self {
        let allowed = Allowed::here();
        let now = planned.within(&allowed);
        Self {
            planned,
            now,
            allowed,
            quota_read: Instant::now(),
            witness: Witness::start(),
            load: Load::default(),
            watch,
            model,
            left_out: 0,
        }
    }

    /// The same teams for a model that drafts on the same threads.
    #[must_use]
    pub fn of_partner(&self) -> Self {
        Self::watched(self.planned.clone(), Rc::clone(&self.watch), 1)
    }

    /// Gets ready for a step of so many rows, and says how many threads the context should have.
    pub fn prepare(&mut self, rows: usize) -> Counts {
        self.look();
        self.load.note(rows);
        let team = self.team(rows);
        self.watch.borrow_mut().prepare(team, &self.allowed);
        let cores = cores_of(team, &self.allowed);
        if team.threads > 1 {
            pin_team(cores);
        }
        // Looked at anew: a draft model's teams pin the same thread, and so may others.
        if CoreSet::allowed().as_ref() != Some(cores)
            && let Err(error) = cores.pin()
        {
            tracing::debug!(%error, %cores, "the engine thread stays where it is");
        }
        self.left_out = self.team(rows).threads - self.threads(self.team(rows));
        self.counts()
    }

    /// Takes in that a step of so many rows begins, with a context that is as it should be.
    pub fn begins(&mut self, rows: usize) {
        let team = self.team(rows);
        self.watch.borrow_mut().begins(team);
    }

    /// Takes in how long a step of so many rows took.
    pub fn took(&mut self, rows: usize, took: Duration) {
        let team = self.team(rows);
        let step = Step {
            model: self.model,
            rows,
            threads: self.threads(team),
            took,
        };
        self.watch.borrow_mut().took(team, &self.allowed, step);
    }

    /// Threads that the last step had less than planned.
    pub fn left_out(&self) -> u32 {
        self.left_out
    }

    /// Threads that the context should have now.
    pub fn counts(&self) -> Counts {
        Counts {
            one: self.threads(self.team(1)),
            several: self.threads(self.team(FEW_ROWS)),
        }
    }

    /// The team that a step of so many rows has: llama.cpp has one number of threads for all steps of several.
    fn team(&self, rows: usize) -> &Team {
        match rows {
            0 | 1 => &self.now.one,
            _ if self.load.is_few => &self.now.few,
            _ => &self.now.many,
        }
    }

    /// Threads of a team that compute now.
    fn threads(&self, team: &Team) -> u32 {
        let left_out = self.watch.borrow().left_out(team);
        team.threads.saturating_sub(left_out).max(1)
    }

    /// Reads what is allowed now.
    fn look(&mut self) {
        let witness = self.witness.as_ref().map(|witness| witness.thread);
        let cores = CoreSet::allowed_to(witness);
        let mut allowed = Allowed {
            cores: cores.unwrap_or_else(|| self.allowed.cores.clone()),
            quota: self.allowed.quota,
        };
        if self.quota_read.elapsed() >= QUOTA_PAUSE {
            self.quota_read = Instant::now();
            allowed.quota = crate::device::quota();
        }
        if allowed == self.allowed {
            return;
        }
        let now = self.planned.within(&allowed);
        // Not an error, but why everything is slower from now on.
        tracing::warn!(
            cores = %allowed.cores, before = %self.allowed.cores, quota = allowed.quota,
            threads = now.one.threads, threads_batch = now.many.threads,
            "other cores are allowed now"
        );
        self.allowed = allowed;
        self.now = now;
        self.watch.borrow_mut().forget();
    }
}

thread_local! {
    /// Where the calling thread's team was pinned last. A draft model's teams pin the same one.
    static TEAM: RefCell<Option<CoreSet>> = const { RefCell::new(None) };
}

/// Pins the calling thread's team, if it is elsewhere.
fn pin_team(cores: &CoreSet) {
    TEAM.with_borrow_mut(|team| {
        if team.as_ref() == Some(cores) {
            return;
        }
        match cores.pin_team() {
            Ok(()) => *team = Some(cores.clone()),
            // Tried again before the next step.
            Err(error) => {
                tracing::debug!(%error, %cores, "the engine thread's team stays where it is");
            }
        }
    });
}

/// What steps of several rows were like of late. Switching costs some 100 ms, so one odd step is no reason.
#[derive(Debug, Default)]
struct Load {
    is_few: bool,
    /// Steps of the other kind since those of this kind.
    others: u32,
    /// Steps of this kind since the last one of the other.
    same: u32,
}

impl Load {
    /// A prompt's second large step is a sign of more, also where answers had one small step between.
    const MANY_IN_A_ROW: u32 = 2;
    const FEW_BETWEEN: u32 = 1;
    const FEW_IN_A_ROW: u32 = 32;

    fn note(&mut self, rows: usize) {
        if rows <= 1 {
            return;
        }
        if (rows <= FEW_ROWS) == self.is_few {
            self.same += 1;
            if !self.is_few || self.same > Self::FEW_BETWEEN {
                self.others = 0;
            }
            return;
        }
        self.same = 0;
        self.others += 1;
        let enough = if self.is_few {
            Self::MANY_IN_A_ROW
        } else {
            Self::FEW_IN_A_ROW
        };
        if self.others >= enough {
            self.is_few = !self.is_few;
            self.others = 0;
        }
    }
}

/// A thread that does nothing and is never pinned: its mask is what the process may use.
#[derive(Debug)]
struct Witness {
    thread: Pid,
    /// The thread ends when this does.
    _alive: SyncSender<()>,
}

impl Witness {
    fn start() -> Option<Self> {
        let (alive, ended) = sync_channel::<()>(0);
        let (tell, told) = sync_channel(1);
        let witness = std::thread::Builder::new().name("witness".into());
        let started = witness.stack_size(64 << 10).spawn(move || {
            // Whoever started it waits for this.
            let _ = tell.send(rustix::thread::gettid());
            // Nobody sends; an error is the end.
            let _ = ended.recv();
        });
        started.ok()?;
        Some(Self {
            thread: told.recv().ok()?,
            _alive: alive,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::watch::Source;

    fn placement(one: u32, few: u32, many: u32, cores: &CoreSet) -> Placement {
        let team = |threads| Team {
            threads,
            cores: cores.clone(),
        };
        Placement {
            one: team(one),
            few: team(few),
            many: team(many),
        }
    }

    /// An engine thread by a name of its own: other tests' threads are not its team.
    fn alone(name: &str, work: impl FnOnce() + Send + 'static) -> std::thread::JoinHandle<()> {
        let thread = std::thread::Builder::new().name(name.into());
        thread.spawn(work).expect("a thread")
    }

    #[test]
    fn the_number_for_several_rows_follows_the_load() {
        let mut load = Load::default();
        let mut after = |rows: usize, times: u32| {
            (0..times).for_each(|_| load.note(rows));
            load.is_few
        };
        assert!(!after(8, Load::FEW_IN_A_ROW - 1));
        assert!(!after(128, 1), "a large step begins the count anew");
        assert!(!after(8, Load::FEW_IN_A_ROW - 1));
        assert!(after(8, 1));
        assert!(after(128, 1), "one prompt is no reason");
        assert!(
            after(1, 1000),
            "steps of one row have a number of their own"
        );
        assert!(!after(128, 1));
        assert!(after(8, Load::FEW_IN_A_ROW));
        assert!(after(128, 1) && after(8, 2) && after(128, 1), "far apart");
        assert!(after(8, 1));
        assert!(!after(128, 1), "by turns with answers");
    }

    /// What Android does to a program in the background, done to a thread of our own.
    #[test]
    fn a_mask_that_shrinks_and_grows_is_followed() {
        let followed = alone("followed", || {
            let all = CoreSet::allowed().expect("a mask");
            let first: CoreSet = all.iter().take(1).collect();
            let most = Allowed::here().threads();
            let mut teams = Teams::new(placement(most, most, most, &CoreSet::default()));
            let mask = |teams: &Teams, cores: &CoreSet| {
                let witness = teams.witness.as_ref().expect("a witness").thread;
                let mut mask = rustix::thread::CpuSet::new();
                cores.iter().for_each(|core| mask.set(core as usize));
                rustix::thread::sched_setaffinity(Some(witness), &mask).expect("a mask");
            };
            let all_of_it = teams.prepare(1);
            assert_eq!(
                all_of_it,
                Counts {
                    one: most,
                    several: most
                }
            );
            mask(&teams, &first);
            assert_eq!(teams.prepare(1), Counts { one: 1, several: 1 });
            assert_eq!(CoreSet::allowed(), Some(first));
            mask(&teams, &all);
            assert_eq!(teams.prepare(1), all_of_it);
            assert_eq!(CoreSet::allowed(), Some(all));
        });
        followed.join().expect("no panic");
    }

    /// Its threads wait for cores whenever they compute.
    #[derive(Debug, Default)]
    struct Crowded(Duration);

    impl Source for Crowded {
        fn waited(&mut self) -> Option<Duration> {
            self.0 += Duration::from_secs(1);
            Some(self.0)
        }

        fn others(&mut self, _: &Team, _: &CoreSet) -> Option<f64> {
            None
        }
    }

    #[test]
    fn a_crowd_takes_a_thread_from_both_models() {
        let crowded = alone("crowded", || {
            let most = Allowed::here().threads().min(2);
            if most < 2 {
                return;
            }
            let planned = placement(most, most, most, &CoreSet::default());
            let mut teams = Teams::watched(
                planned,
                Rc::new(RefCell::new(Watch::with(Box::<Crowded>::default()))),
                0,
            );
            let mut partner = teams.of_partner();
            assert_eq!(partner.prepare(1).one, 2);
            partner.begins(1);
            partner.took(1, Duration::from_secs(1));
            assert_eq!(partner.prepare(1), Counts { one: 1, several: 1 });
            assert_eq!(
                (partner.left_out(), teams.left_out()),
                (1, 0),
                "of the last step"
            );
            assert_eq!(teams.prepare(1), Counts { one: 1, several: 1 });
            assert_eq!(teams.left_out(), 1);
        });
        crowded.join().expect("no panic");
    }

    #[test]
    fn a_team_of_its_own_cores_stays_on_them() {
        let pinned = alone("pinned", || {
            let all = CoreSet::allowed().expect("a mask");
            let last: CoreSet = all.iter().rev().take(1).collect();
            let mut placement = placement(1, 1, 1, &last);
            placement.many.cores = CoreSet::default();
            let mut teams = Teams::new(placement);
            teams.prepare(1);
            assert_eq!(CoreSet::allowed(), Some(last));
            teams.prepare(128);
            assert_eq!(CoreSet::allowed(), Some(all), "prompts may use all");
        });
        pinned.join().expect("no panic");
    }
}
