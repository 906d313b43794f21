//! Watches over the cores of one engine thread's teams, and says how many threads to leave out ([`Crowd`]).
//!
//! A model and the one that drafts for it compute on the same threads, so they have one watch. Teams are told apart: what is crowded for
//! eight threads on all cores may be free for two on the large ones.

use super::crowd::{Crowd, Step};
use crate::device::busy::Busy;
use crate::device::{Allowed, CoreSet, Team, cores::Waits};
use std::time::{Duration, Instant};

/// After so long without a step, what was seen before has nothing to do with what comes.
const PAUSE: Duration = Duration::from_millis(50);
/// Teams that are remembered; there are three at a time.
const TEAMS: usize = 8;

/// Where it is known who waits, and who computes.
pub trait Source: std::fmt::Debug {
    /// How long the calling thread's team has waited for cores so far, all threads together.
    fn waited(&mut self) -> Option<Duration>;
    /// How many of a team's cores others have had since this was asked last of that team.
    fn others(&mut self, team: &Team, cores: &CoreSet) -> Option<f64>;
}

/// The system's files.
#[derive(Debug, Default)]
struct Files {
    waits: Waits,
    busy: Vec<(Team, Busy)>,
}

impl Source for Files {
    fn waited(&mut self) -> Option<Duration> {
        self.waits.total()
    }

    fn others(&mut self, team: &Team, cores: &CoreSet) -> Option<f64> {
        let now = Busy::on(cores, &[std::process::id()])?;
        let place = self.busy.iter().position(|(of, _)| of == team);
        let before = place.map(|place| self.busy.swap_remove(place).1);
        if self.busy.len() >= TEAMS {
            self.busy.clear();
        }
        self.busy.push((team.clone(), now));
        Some(before?.others_until(now)? * f64::from(now.cores()))
    }
}

/// All that is known of the teams of an engine thread.
#[derive(Debug)]
pub struct Watch {
    source: Box<dyn Source>,
    began: Instant,
    /// When the last step of any team ended.
    ended: Duration,
    crowds: Vec<(Team, Crowd)>,
}

impl Default for Watch {
    fn default() -> Self {
        Self::with(Box::<Files>::default())
    }
}

impl Watch {
    /// To be made on the engine thread.
    pub fn with(source: Box<dyn Source>) -> Self {
        Self {
            source,
            began: Instant::now(),
            ended: Duration::ZERO,
            crowds: Vec::new(),
        }
    }

    /// Threads of this team to leave out.
    pub fn left_out(&self, team: &Team) -> u32 {
        let crowd = self.crowds.iter().find(|(of, _)| of == team);
        crowd.map_or(0, |(_, crowd)| crowd.left_out())
    }

    /// Gets ready for a step of this team, where so much is allowed. The number of its threads may be another one then.
    pub fn prepare(&mut self, team: &Team, allowed: &Allowed) {
        let now = self.began.elapsed();
        self.prepare_at(now, team, allowed);
    }

    /// Takes in that a step of this team begins.
    pub fn begins(&mut self, team: &Team) {
        let now = self.began.elapsed();
        self.begins_at(now, team);
    }

    /// Takes in a step of this team, where so much is allowed.
    pub fn took(&mut self, team: &Team, allowed: &Allowed, step: Step) {
        let now = self.began.elapsed();
        self.took_at(now, team, allowed, step);
    }

    /// Everything seen was on other cores.
    pub fn forget(&mut self) {
        self.crowds.clear();
    }

    fn prepare_at(&mut self, now: Duration, team: &Team, allowed: &Allowed) {
        let Self { source, crowds, .. } = self;
        if now.saturating_sub(self.ended) > PAUSE {
            for (_, crowd) in crowds.iter_mut() {
                crowd.forget_window();
            }
        }
        let place = place(crowds, team);
        let crowd = &mut crowds[place].1;
        let computing = team.threads.saturating_sub(crowd.left_out());
        let spare = || {
            let cores = cores_of(team, allowed);
            let others = source.others(team, cores)?;
            Some(f64::from(cores.count()) - others - f64::from(computing))
        };
        let tried = crowd.look(now, spare);
        if tried > 0 {
            tracing::info!(
                threads = computing + tried,
                "threads that were left out compute again"
            );
        }
    }

    fn begins_at(&mut self, now: Duration, team: &Team) {
        let Self { source, crowds, .. } = self;
        let place = place(crowds, team);
        crowds[place].1.begins(now, || source.waited());
    }

    fn took_at(&mut self, now: Duration, team: &Team, allowed: &Allowed, step: Step) {
        let Self { source, crowds, .. } = self;
        self.ended = now;
        let place = place(crowds, team);
        let more = crowds[place].1.took(step, now, || source.waited());
        if more > 0 {
            // What comes is looked at from now on.
            source.others(team, cores_of(team, allowed));
            // Not an error, but why everything is slower from now on.
            tracing::warn!(
                step_ms = step.took.as_millis(),
                rows = step.rows,
                threads = step.threads - more,
                "the threads that compute wait for cores, which other programs have, or a quota takes: some are left out for a while"
            );
        }
    }
}

/// Where a team's crowd is; a new one if there is none.
fn place(crowds: &mut Vec<(Team, Crowd)>, team: &Team) -> usize {
    if let Some(place) = crowds.iter().position(|(of, _)| of == team) {
        return place;
    }
    if crowds.len() >= TEAMS {
        crowds.clear();
    }
    crowds.push((team.clone(), Crowd::default()));
    crowds.len() - 1
}

/// The cores that a team may use.
pub fn cores_of<'a>(team: &'a Team, allowed: &'a Allowed) -> &'a CoreSet {
    if team.cores.is_empty() {
        &allowed.cores
    } else {
        &team.cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::rc::Rc;

    const MS: Duration = Duration::from_millis(1);

    /// What a machine says of itself.
    #[derive(Debug, Default)]
    pub(crate) struct Machine {
        pub(crate) waited: Cell<Duration>,
        pub(crate) others: Cell<Option<f64>>,
    }

    impl Source for Rc<Machine> {
        fn waited(&mut self) -> Option<Duration> {
            Some(self.waited.get())
        }

        fn others(&mut self, _: &Team, _: &CoreSet) -> Option<f64> {
            self.others.get()
        }
    }

    fn team(threads: u32, cores: &str) -> Team {
        Team {
            threads,
            cores: cores.parse().expect("cores"),
        }
    }

    struct Phone {
        machine: Rc<Machine>,
        watch: Watch,
        now: Duration,
        allowed: Allowed,
    }

    impl Phone {
        fn new() -> Self {
            let machine = Rc::<Machine>::default();
            Self {
                watch: Watch::with(Box::new(Rc::clone(&machine))),
                machine,
                now: Duration::ZERO,
                allowed: Allowed {
                    cores: "0-7".parse().expect("cores"),
                    quota: None,
                },
            }
        }

        /// A step of a team, and how many of its threads are left out after it.
        fn step(&mut self, team: &Team, model: usize, took: Duration, waited: Duration) -> u32 {
            let before = self.watch.left_out(team);
            self.watch.prepare_at(self.now, team, &self.allowed);
            if self.watch.left_out(team) != before {
                // Another context.
                self.now += 300 * MS;
            }
            self.watch.begins_at(self.now, team);
            self.now += took;
            self.machine.waited.set(self.machine.waited.get() + waited);
            let step = Step {
                model,
                rows: 1,
                threads: team.threads - self.watch.left_out(team),
                took,
            };
            self.watch.took_at(self.now, team, &self.allowed, step);
            self.watch.left_out(team)
        }
    }

    #[test]
    fn what_is_crowded_for_one_team_is_not_for_another() {
        let (large, all) = (team(2, "6-7"), team(8, ""));
        let mut phone = Phone::new();
        for _ in 0..50 {
            assert_eq!(phone.step(&large, 0, 10 * MS, Duration::ZERO), 0);
            assert_eq!(phone.step(&all, 0, 10 * MS, Duration::ZERO), 0);
        }
        assert_eq!(phone.step(&all, 0, 900 * MS, 900 * MS), 1);
        assert_eq!(phone.watch.left_out(&large), 0);
        phone.watch.forget();
        assert_eq!(phone.watch.left_out(&all), 0, "other cores");
    }

    #[test]
    fn others_on_spare_cores_keep_nobody_out() {
        let all = team(4, "");
        let mut phone = Phone::new();
        (0..99).for_each(|_| assert_eq!(phone.step(&all, 0, 10 * MS, Duration::ZERO), 0));
        // Of eight cores others have three and a half, and three threads compute.
        phone.machine.others.set(Some(3.5));
        assert_eq!(phone.step(&all, 0, 900 * MS, 900 * MS), 1);
        let steps = (1..9999).find(|_| phone.step(&all, 0, 10 * MS, Duration::ZERO) == 0);
        assert_eq!(steps, Some(101), "a second");
        phone.machine.others.set(Some(4.5));
        (0..99).for_each(|_| assert_eq!(phone.step(&all, 0, 10 * MS, Duration::ZERO), 0));
        (0..99).for_each(|_| assert_eq!(phone.step(&all, 0, 10 * MS, Duration::ZERO), 0));
        assert_eq!(phone.step(&all, 0, 900 * MS, 900 * MS), 1);
        let steps = (1..9999).find(|_| phone.step(&all, 0, 10 * MS, Duration::ZERO) == 0);
        assert_eq!(steps, Some(6401), "the longest rest");
    }

    #[test]
    fn the_time_of_another_context_is_no_part_of_a_trial() {
        let both = team(2, "");
        let mut phone = Phone::new();
        assert_eq!(phone.step(&both, 0, 900 * MS, 800 * MS), 1);
        let steps = (1..999).find(|_| phone.step(&both, 0, 10 * MS, Duration::ZERO) == 0);
        assert_eq!(steps, Some(401));
        // 0.7 of a core is missing, of which there were 0.3 with the change.
        let steps = (1..999).find(|_| phone.step(&both, 0, 20 * MS, 14 * MS) == 1);
        assert!(steps.is_some_and(|steps| steps < 20), "{steps:?}");
    }

    /// Passes of a model that drafts are slower or faster than the other one's, on the same threads.
    #[test]
    fn a_partner_is_watched_with_its_model() {
        let both = team(2, "");
        let mut phone = Phone::new();
        for _ in 0..99 {
            assert_eq!(phone.step(&both, 1, 4 * MS, Duration::ZERO), 0);
            assert_eq!(phone.step(&both, 0, 60 * MS, Duration::ZERO), 0);
        }
        assert_eq!(phone.step(&both, 1, 900 * MS, 900 * MS), 1);
    }

    #[test]
    fn what_was_waited_in_a_pause_is_nobodys() {
        let both = team(2, "");
        let mut phone = Phone::new();
        (0..49).for_each(|_| assert_eq!(phone.step(&both, 0, 10 * MS, Duration::ZERO), 0));
        (0..20).for_each(|_| {
            assert_eq!(phone.step(&both, 0, 100 * MS, Duration::ZERO), 0);
            phone.now += 2 * PAUSE;
            let waited = phone.machine.waited.get() + 2 * PAUSE;
            phone.machine.waited.set(waited);
        });
    }
}
