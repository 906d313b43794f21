//! Notices that the cores of a team are taken by somebody else, and says how many of its threads to leave out for a while.
//!
//! llama.cpp's threads wait for each other some hundred times in a step. Where one has to share its core, all of them wait for a time
//! slice each time: on two cores, one of which another program took, a step of SmolLM2 lasted 3 s instead of 6 ms with two
//! threads, and 7 ms with one. How long a thread that could run had no core is told by the kernel (`/proc/PID/task/TID/schedstat`).
//!
//! Pure book-keeping for one team: no clock, no files.

use crate::device::placement::FEW_ROWS;
use std::collections::HashMap;
use std::time::Duration;

/// Steps are looked at together until they took so long.
const WINDOW: Duration = Duration::from_millis(250);
/// So many cores were missing in a window (what all threads together waited for one, by its time), and its steps took so many times as
/// long as they would have with a thread less: then it is crowded.
const CROWDED: f64 = 0.4;
const SLOWER: f64 = 1.5;
/// Where it is not known what steps take at their best, so many.
const CROWDED_AT_FIRST: f64 = 0.6;
/// Where no more than this part of a core was missing for each thread, steps are as fast as they can be.
const QUIET: f64 = 0.05;
/// In such a window the fastest times of a size that it saw grow by this part: the middle of a long text is slower than its beginning, and a
/// warm processor slower than a cool one.
const FADING: f64 = 0.01;
/// So long threads are left out before they are tried again; after each trial in vain twice as long, up to the longest, and half as long
/// after each that was not.
const FIRST_REST: Duration = Duration::from_secs(4);
const LONGEST_REST: Duration = Duration::from_secs(64);
/// After so many windows, or so long, a trial was not in vain.
const TRIAL: u32 = 8;
const TRIAL_SPAN: Duration = Duration::from_secs(8);
/// Where it is known how many cores nobody has, threads are tried again when it is so many at least, or after the longest rest. It is looked
/// at this often.
const SPARE: f64 = 0.7;
const LOOK: Duration = Duration::from_secs(1);

/// Seconds of the fastest step of a kind: of a whole step, or of a row where that is what steps of many rows have in common.
type Fastest = HashMap<Kind, f64>;

/// Steps that take alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    model: usize,
    /// Rows: that many, or up to so many.
    size: u32,
    threads: u32,
}

/// What was seen of a team's steps. Times since any one moment.
#[derive(Debug)]
pub struct Crowd {
    fastest: Fastest,
    window: Option<Window>,
    left_out: u32,
    /// When threads were left out last, and how long they are to be.
    since: Duration,
    rest: Duration,
    looked: Duration,
    /// Windows until the trial that goes on was a good one.
    trial: u32,
    /// The last trial was not.
    in_vain: bool,
}

/// Steps that are looked at together.
#[derive(Debug)]
struct Window {
    began: Duration,
    /// What the threads had waited then, if the kernel tells.
    waited: Option<Duration>,
    /// Seconds that its steps took; those of which it is known what they take at their best; and what those would have taken so, with a thread
    /// less.
    took: f64,
    known: f64,
    expected: f64,
    fastest: Fastest,
}

/// A step that was made.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// 0, or 1 for the model that drafts.
    pub model: usize,
    /// Its rows.
    pub rows: usize,
    /// Threads that it had.
    pub threads: u32,
    /// How long it took.
    pub took: Duration,
}

impl Default for Crowd {
    fn default() -> Self {
        Self {
            fastest: Fastest::new(),
            window: None,
            left_out: 0,
            since: Duration::ZERO,
            rest: FIRST_REST,
            looked: Duration::ZERO,
            trial: 0,
            in_vain: false,
        }
    }
}

impl Crowd {
    /// Threads to leave out.
    pub fn left_out(&self) -> u32 {
        self.left_out
    }

    /// What was seen of a window that has not ended is no use: there was a pause, or the team is another one.
    pub fn forget_window(&mut self) {
        self.window = None;
    }

    /// Takes in that a step begins. `waited` says how long all threads together have waited for a core so far.
    pub fn begins(&mut self, now: Duration, waited: impl FnOnce() -> Option<Duration>) {
        self.window
            .get_or_insert_with(|| Window::begin(now, waited()));
    }

    /// Takes in a step that ended `now`; `waited` as above. How many threads more are to be left out from now on.
    pub fn took(
        &mut self,
        step: Step,
        now: Duration,
        waited: impl FnOnce() -> Option<Duration>,
    ) -> u32 {
        let Some(window) = &mut self.window else {
            return 0;
        };
        window.note(step, &self.fastest);
        if window.took < WINDOW.as_secs_f64() {
            return 0;
        }
        let next = Window::begin(now, waited());
        let missing = window.missing_until(&next);
        let Some((window, missing)) = self.window.replace(next).zip(missing) else {
            return 0;
        };
        self.learn(&window, missing);
        if step.threads > 1 && window.is_crowded(missing) {
            return self.leave_out(step.threads, missing, now);
        }
        if self.trial > 0 {
            self.trial -= 1;
            if self.trial == 0 {
                self.rest = (self.rest / 2).max(FIRST_REST);
                self.in_vain = false;
            }
        }
        0
    }

    /// Takes in that a step is about to begin. `spare` says how many of its cores neither others nor the team have had since it was asked
    /// last, where that is known. How many of the threads that were left out are to be tried again.
    pub fn look(&mut self, now: Duration, spare: impl FnOnce() -> Option<f64>) -> u32 {
        if self.left_out == 0 || now.saturating_sub(self.looked) < LOOK {
            return 0;
        }
        self.looked = now;
        let spare = spare();
        let rest = match spare {
            // Not believed after a trial in vain: a quota takes cores that nobody has, and a file may know of this container alone.
            Some(spare) if spare >= SPARE && !self.in_vain => Duration::ZERO,
            Some(spare) if spare < SPARE => LONGEST_REST,
            _ => self.rest,
        };
        if now.saturating_sub(self.since) < rest {
            return 0;
        }
        let most = spare.map_or(u32::MAX, |spare| whole(spare).max(1));
        let tried = self.left_out.div_ceil(2).min(most);
        self.left_out -= tried;
        self.since = now;
        self.trial = TRIAL;
        self.window = None;
        tried
    }

    fn leave_out(&mut self, threads: u32, missing: f64, now: Duration) -> u32 {
        if self.trial > 0 && now.saturating_sub(self.since) < TRIAL_SPAN {
            self.in_vain = true;
            self.rest = (2 * self.rest).min(LONGEST_REST);
        }
        self.trial = 0;
        self.window = None;
        // A crowd that is larger takes another window; one that was over at once has not cost all.
        let more = whole(missing).clamp(1, (threads / 2).max(1));
        self.left_out += more;
        (self.since, self.looked) = (now, now);
        more
    }

    fn learn(&mut self, window: &Window, missing: f64) {
        for (kind, seen) in &window.fastest {
            if missing < (QUIET * f64::from(kind.threads)).min(CROWDED) {
                let alike = |other: &Kind| (other.model, other.size) == (kind.model, kind.size);
                let fading = self.fastest.iter_mut().filter(|(other, _)| alike(other));
                fading.for_each(|(_, known)| *known *= 1.0 + FADING);
            }
            match self.fastest.get_mut(kind) {
                Some(known) => *known = seen.min(*known),
                None if missing < CROWDED => {
                    self.fastest.insert(*kind, *seen);
                }
                None => {}
            }
        }
    }
}

impl Window {
    fn begin(now: Duration, waited: Option<Duration>) -> Self {
        Self {
            began: now,
            waited,
            took: 0.0,
            known: 0.0,
            expected: 0.0,
            fastest: Fastest::new(),
        }
    }

    fn note(&mut self, step: Step, fastest: &Fastest) {
        let (kind, units) = step.kind();
        let took = step.took.as_secs_f64();
        self.took += took;
        if let Some(least) = kind.with_a_thread_less(fastest) {
            self.known += took;
            self.expected += least * units;
        }
        let seen = self.fastest.entry(kind).or_insert(f64::INFINITY);
        *seen = seen.min(took / units);
    }

    /// Cores that were missing on average until the next one began.
    fn missing_until(&self, next: &Self) -> Option<f64> {
        let lasted = next.began.saturating_sub(self.began).as_secs_f64();
        let waited = next.waited?.saturating_sub(self.waited?).as_secs_f64();
        Some(waited / lasted.max(self.took))
    }

    fn is_crowded(&self, missing: f64) -> bool {
        if 2.0 * self.known < self.took {
            return missing > CROWDED_AT_FIRST;
        }
        missing > CROWDED && self.known > SLOWER * self.expected
    }
}

impl Step {
    /// Its kind, and by what its time is divided. A pass of a few rows takes what their number says, one of many as long as it has rows.
    fn kind(self) -> (Kind, f64) {
        let rows = u32::try_from(self.rows).unwrap_or(u32::MAX).max(1);
        let few = self.rows <= FEW_ROWS;
        let kind = Kind {
            model: self.model,
            size: if few {
                rows
            } else {
                rows.checked_next_power_of_two().unwrap_or(u32::MAX)
            },
            threads: self.threads,
        };
        (kind, if few { 1.0 } else { f64::from(rows) })
    }
}

impl Kind {
    /// What such a step takes at its best with a thread less, or at most: with fewer still, or scaled from what it takes with all.
    fn with_a_thread_less(self, fastest: &Fastest) -> Option<f64> {
        let most = self.threads.saturating_sub(1).max(1);
        let known = |threads| fastest.get(&Self { threads, ..self }).copied();
        let scaled = known(self.threads).map(|all| all * f64::from(self.threads) / f64::from(most));
        let less = (1..=most).rev().find_map(known);
        less.into_iter().chain(scaled).reduce(f64::min)
    }
}

/// The nearest number of whole cores.
fn whole(cores: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and a few"
    )]
    let whole = cores.max(0.0).round() as u32;
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const QUIETLY: Duration = Duration::from_micros(200);

    /// A machine on which time passes only in steps, and what its threads waited.
    struct Machine {
        crowd: Crowd,
        threads: u32,
        now: Duration,
        waited: Duration,
        spare: Option<f64>,
    }

    fn machine(threads: u32) -> Machine {
        Machine {
            crowd: Crowd::default(),
            threads,
            now: Duration::ZERO,
            waited: Duration::ZERO,
            spare: None,
        }
    }

    impl Machine {
        fn computing(&self) -> u32 {
            self.threads - self.crowd.left_out()
        }

        /// A step of so many rows. `true` if the number of threads is another one then.
        fn step(&mut self, rows: usize, took: Duration, waited: Duration) -> bool {
            let before = self.crowd.left_out();
            self.crowd.look(self.now, || self.spare);
            self.crowd.begins(self.now, || Some(self.waited));
            let threads = self.computing();
            (self.now, self.waited) = (self.now + took, self.waited + waited);
            let step = Step {
                model: 0,
                rows,
                threads,
                took,
            };
            self.crowd.took(step, self.now, || Some(self.waited));
            self.crowd.left_out() != before
        }

        /// Steps of a row until one changes the number of threads; how many they were, at most `most`.
        fn steps(&mut self, most: u32, took: Duration, waited: Duration) -> u32 {
            let changes = (1..=most).find(|_| self.step(1, took, waited));
            changes.unwrap_or(most)
        }

        /// Seconds until threads that were left out are tried again.
        fn rest(&mut self) -> u64 {
            let began = self.now;
            self.steps(20_000, 7 * MS, QUIETLY);
            self.now.saturating_sub(began).as_secs()
        }
    }

    #[test]
    fn a_taken_core_costs_a_thread_and_comes_back() {
        let mut machine = machine(2);
        machine.spare = Some(0.0);
        assert_eq!(machine.steps(1000, 6 * MS, QUIETLY), 1000);
        assert_eq!(machine.steps(9, 3000 * MS, 3000 * MS), 1);
        assert_eq!(machine.crowd.left_out(), 1, "one step is enough");
        // It is known that its core is still taken.
        assert_eq!(machine.rest(), 64);
        assert_eq!(machine.steps(9, 3000 * MS, 3000 * MS), 1);
        // And now it is free, but that was said of a trial in vain too.
        machine.spare = Some(0.9);
        assert_eq!(machine.rest(), 8);
        assert_eq!(machine.steps(1000, 6 * MS, QUIETLY), 1000);
        assert_eq!(machine.crowd.left_out(), 0);
        // The trial was a good one: what is said is believed.
        assert_eq!(machine.steps(9, 3000 * MS, 3000 * MS), 1);
        assert_eq!(machine.rest(), 1);
    }

    #[test]
    fn rests_grow_with_trials_in_vain_alone() {
        let mut machine = machine(2);
        machine.steps(1, 3000 * MS, 3000 * MS);
        let rests: Vec<_> = (0..7)
            .map(|_| {
                let rest = machine.rest();
                machine.steps(1, 3000 * MS, 3000 * MS);
                rest
            })
            .collect();
        assert_eq!(rests, [4, 8, 16, 32, 64, 64, 64]);
        machine.rest();
        machine.steps(1000, 6 * MS, QUIETLY);
        machine.steps(1, 3000 * MS, 3000 * MS);
        assert_eq!(machine.rest(), 32, "another crowd");
    }

    #[test]
    fn a_file_that_says_all_is_free_makes_no_trial_each_second() {
        let mut machine = machine(2);
        machine.spare = Some(1.0);
        machine.steps(1, 3000 * MS, 3000 * MS);
        let rests = (0..6).map(|_| {
            let rest = machine.rest();
            machine.steps(1, 3000 * MS, 3000 * MS);
            rest
        });
        assert_eq!(rests.collect::<Vec<_>>(), [1, 8, 16, 32, 64, 64]);
    }

    #[test]
    fn as_many_go_as_cores_are_missing_and_half_of_them_is_tried() {
        let mut machine = machine(8);
        machine.steps(1000, 6 * MS, QUIETLY);
        // Three cores are taken for one window: all is as before within seconds.
        machine.steps(1, 1000 * MS, 3100 * MS);
        assert_eq!(machine.computing(), 5);
        let mut rests = Vec::new();
        while machine.crowd.left_out() > 0 {
            rests.push((machine.rest(), machine.computing()));
        }
        assert_eq!(rests, [(4, 7), (4, 8)]);
        // An app that starts may have all for a moment: half of them stay, and the last one always.
        machine.steps(1000, 6 * MS, QUIETLY);
        machine.steps(1, 1000 * MS, 9000 * MS);
        assert_eq!(machine.computing(), 4);
        (0..99).for_each(|_| {
            machine.step(1, 3000 * MS, 3000 * MS);
            assert!(machine.computing() >= 1);
        });
    }

    #[test]
    fn slow_steps_alone_and_waits_alone_say_nothing() {
        let mut machine = machine(2);
        machine.steps(100, 6 * MS, Duration::ZERO);
        // Stopped by a signal, or deeper in a text.
        machine.steps(5, 60_000 * MS, MS);
        assert_eq!(machine.crowd.left_out(), 0);
        // Clients on the same cores; and slower than with one thread, but not by much.
        machine.steps(100, 9 * MS, 5 * MS);
        machine.steps(100, 17 * MS, 9 * MS);
        assert_eq!(machine.crowd.left_out(), 0);
        machine.steps(100, 30 * MS, 16 * MS);
        assert_eq!(machine.crowd.left_out(), 1, "both");
    }

    #[test]
    fn what_fewer_threads_take_is_known_once_they_were_seen() {
        let mut machine = machine(2);
        machine.steps(100, 6 * MS, Duration::ZERO);
        machine.steps(1, 3000 * MS, 3000 * MS);
        // A row takes 7 ms with one thread, not 12.
        machine.rest();
        assert_eq!(machine.computing(), 2);
        assert!(machine.steps(100, 12 * MS, 7 * MS) < 100);
    }

    /// A phone in use: all of eight threads wait a little, always.
    #[test]
    fn many_threads_that_wait_a_little_are_no_crowd() {
        let mut machine = machine(8);
        assert_eq!(machine.steps(9999, 6 * MS, 3 * MS), 9999);
        machine.steps(999, 6 * MS, MS);
        // The first prompt: nobody knows yet what such a step takes.
        assert!(!machine.step(128, 300 * MS, 150 * MS));
        // Prompts take the longer, the fewer threads compute.
        assert!(!machine.step(128, 400 * MS, 200 * MS));
        assert_eq!(machine.crowd.left_out(), 0);
    }

    #[test]
    fn a_longer_step_of_more_rows_is_no_slower() {
        let mut machine = machine(8);
        (0..9).for_each(|_| assert!(!machine.step(70, 100 * MS, Duration::ZERO)));
        (0..99).for_each(|_| assert!(!machine.step(128, 183 * MS, 91 * MS)));
        (0..9).for_each(|_| assert!(!machine.step(2, 40 * MS, Duration::ZERO)));
        (0..99).for_each(|_| assert!(!machine.step(12, 80 * MS, 40 * MS)));
        assert!(machine.step(128, 900 * MS, 600 * MS));
    }

    #[test]
    fn a_trial_is_judged_by_what_still_fewer_threads_took() {
        let mut machine = machine(8);
        // It begins in a crowd, in which it has seen five threads.
        machine.steps(1, 1000 * MS, 3000 * MS);
        machine.steps(400, 10 * MS, QUIETLY);
        assert_eq!(machine.steps(9, 10 * MS, QUIETLY), 1, "seven are tried");
        assert!(machine.steps(9, 60 * MS, 30 * MS) < 9);
        // Another one, and nothing known of six or seven.
        assert_eq!(machine.computing(), 6);
    }

    #[test]
    fn one_that_begins_in_a_crowd_notices_it() {
        let mut machine = machine(2);
        assert_eq!(machine.steps(9, 3000 * MS, 2000 * MS), 1);
        assert_eq!(machine.crowd.left_out(), 1);
    }

    #[test]
    fn sizes_that_are_not_seen_are_not_forgotten() {
        let mut machine = machine(2);
        (0..4).for_each(|_| assert!(!machine.step(128, 100 * MS, Duration::ZERO)));
        // Ten minutes of an answer.
        machine.steps(100_000, 6 * MS, Duration::ZERO);
        machine.crowd.forget_window();
        assert!(machine.step(128, 900 * MS, 800 * MS));
    }

    #[test]
    fn a_window_that_was_forgotten_takes_its_waits_along() {
        let mut machine = machine(2);
        machine.steps(100, 6 * MS, Duration::ZERO);
        // Between two requests the threads waited for something else.
        machine.crowd.forget_window();
        machine.waited += 9000 * MS;
        assert_eq!(machine.steps(9, 30 * MS, Duration::ZERO), 9);
    }

    #[test]
    fn a_single_thread_is_never_left_out() {
        let mut machine = machine(1);
        assert_eq!(machine.steps(99, 3000 * MS, 3000 * MS), 99);
    }

    #[test]
    fn what_the_kernel_does_not_tell_changes_nothing() {
        let mut crowd = Crowd::default();
        for n in 1..100 {
            let step = Step {
                model: 0,
                rows: 1,
                threads: 2,
                took: 3000 * MS,
            };
            crowd.begins((n - 1) * 3000 * MS, || None);
            // Told once, and then no more.
            assert_eq!(
                crowd.took(step, n * 3000 * MS, || (n == 50).then_some(n * 9000 * MS)),
                0
            );
        }
        assert_eq!(crowd.left_out(), 0);
    }

    #[test]
    fn many_rows_are_told_apart_by_powers_of_two() {
        let kind = |rows| {
            let step = Step {
                model: 0,
                rows,
                threads: 1,
                took: MS,
            };
            let (kind, _) = step.kind();
            kind.size
        };
        assert_eq!(
            [0, 1, 2, 3, 15, 16, 17, 32, 33, 128, 1 << 40].map(kind),
            [1, 1, 2, 3, 15, 16, 32, 32, 64, 128, u32::MAX]
        );
    }
}
