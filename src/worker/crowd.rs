//! Notices that something else computes on the team's cores, and says how many threads to leave out for a while.
//!
//! llama.cpp's threads wait for each other some hundred times in a step. Where one has to share its core, all of them wait for a time
//! slice each time: on two cores, one of which another program took, a step of SmolLM2 lasted 3 s instead of 6 ms with two
//! threads, and 7 ms with one. How long a thread that could run had no core is told by the kernel (`/proc/PID/task/TID/schedstat`).
//!
//! Pure book-keeping: no clock, no files.

use std::time::Duration;

/// Steps are looked at together until they took so long.
const WINDOW: Duration = Duration::from_millis(250);
/// All threads together waited for cores for this part of the time, and steps took so many times as long as the fastest of their
/// size: then it is crowded.
const CROWDED: f64 = 0.4;
const SLOWER: f64 = 2.0;
/// Where they waited for no more than this part, steps are as fast as they can be.
const QUIET: f64 = 0.1;
/// With each quiet window the fastest time of each size grows by this part: the middle of a long text is slower than its beginning.
const FADING: f64 = 0.01;
/// So long a thread is left out before it is tried again; each time in vain twice as long, up to the longest. Where it is known what
/// others have of all cores, the thread is tried again when that is less than `FREE`, or after the longest rest; it is looked at each `LOOK`.
const FIRST_REST: Duration = Duration::from_secs(4);
const LONGEST_REST: Duration = Duration::from_secs(64);
const FREE: f64 = 0.3;
const LOOK: Duration = Duration::from_secs(1);
/// Steps of up to so many rows, as a power of two, are told apart.
const SIZES: usize = 12;

/// What was seen of steps. Times since any one moment.
#[derive(Debug, Default)]
pub struct Crowd {
    /// Seconds of the fastest step of each size, where nobody waited.
    fastest: [Option<f64>; SIZES],
    /// The fastest of this window.
    of_window: [Option<f64>; SIZES],
    /// Seconds that the window's steps took, and that they would have taken as fast as can be, as far as that is known.
    took: f64,
    expected: f64,
    /// What the threads had waited when it began.
    waited: Duration,
    left_out: u32,
    /// When a thread was left out last, and for how long.
    since: Duration,
    rest: Duration,
    looked: Duration,
}

/// A step that was made.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Its rows.
    pub rows: usize,
    /// Threads that it had.
    pub threads: u32,
    /// How long it took.
    pub took: Duration,
}

impl Crowd {
    /// What the threads have waited so far.
    pub fn begin(waited: Duration) -> Self {
        Self {
            waited,
            ..Self::default()
        }
    }

    /// Threads to leave out.
    pub fn left_out(&self) -> u32 {
        self.left_out
    }

    /// Takes in a step that ended `now`; `waited` says how long all threads together have waited for a core so far. `true` if one of them
    /// is to be left out from now on.
    pub fn took(
        &mut self,
        step: Step,
        now: Duration,
        waited: impl FnOnce() -> Option<Duration>,
    ) -> bool {
        let Step {
            rows,
            threads,
            took,
        } = step;
        let size = size(rows);
        let seconds = took.as_secs_f64();
        self.took += seconds;
        self.expected += self.fastest[size].unwrap_or(0.0);
        self.of_window[size] =
            Some(self.of_window[size].map_or(seconds, |least| least.min(seconds)));
        if self.took < WINDOW.as_secs_f64() {
            return false;
        }
        let Some(waited) = waited() else {
            self.end_window(self.waited);
            return false;
        };
        let part = waited.saturating_sub(self.waited).as_secs_f64() / self.took;
        let crowded = threads > 1 && part > CROWDED && self.took > SLOWER * self.expected;
        if part < QUIET {
            for (fastest, seen) in self.fastest.iter_mut().zip(self.of_window) {
                let known = fastest.map(|known| known * (1.0 + FADING));
                *fastest = known.into_iter().chain(seen).reduce(f64::min);
            }
        }
        self.end_window(waited);
        if crowded {
            let soon = self.rest > Duration::ZERO
                && now.saturating_sub(self.since) < self.rest + LONGEST_REST;
            self.rest = if soon {
                (2 * self.rest).min(LONGEST_REST)
            } else {
                FIRST_REST
            };
            self.left_out += 1;
            (self.since, self.looked) = (now, now);
        }
        crowded
    }

    /// Takes in that a step is about to begin. `others` says how many cores other programs have had since it was asked last, where that is
    /// known. `true` if a thread that was left out is to be tried again.
    pub fn look(&mut self, now: Duration, others: impl FnOnce() -> Option<f64>) -> bool {
        if self.left_out == 0 || now.saturating_sub(self.looked) < LOOK {
            return false;
        }
        self.looked = now;
        // A trial in vain costs a step that is hundreds of times as long.
        let rest = match others() {
            Some(others) if others < FREE => Duration::ZERO,
            Some(_) => LONGEST_REST,
            None => self.rest,
        };
        if now.saturating_sub(self.since) < rest {
            return false;
        }
        self.left_out -= 1;
        self.since = now;
        true
    }

    fn end_window(&mut self, waited: Duration) {
        self.waited = waited;
        self.of_window = [None; SIZES];
        (self.took, self.expected) = (0.0, 0.0);
    }
}

/// 1, 2, 3 to 4, 5 to 8 rows and so on.
fn size(rows: usize) -> usize {
    let power = rows.max(1).next_power_of_two().trailing_zeros();
    usize::try_from(power).map_or(SIZES - 1, |power| power.min(SIZES - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn step(took: Duration) -> Step {
        Step {
            rows: 1,
            threads: 2,
            took,
        }
    }

    /// A machine on which time passes only in steps.
    #[derive(Default)]
    struct Machine {
        crowd: Crowd,
        now: Duration,
        waited: Duration,
    }

    impl Machine {
        /// Steps of a row until one changes the number of threads; how many they were, at most `most`.
        fn steps(
            &mut self,
            most: u32,
            took: Duration,
            waited: Duration,
            others: Option<f64>,
        ) -> u32 {
            (1..=most)
                .find(|_| {
                    let more = self.crowd.look(self.now, || others);
                    self.now += took;
                    self.waited += waited;
                    let total = self.waited;
                    more || self.crowd.took(step(took), self.now, || Some(total))
                })
                .unwrap_or(most)
        }
    }

    #[test]
    fn a_taken_core_costs_a_thread_and_comes_back() {
        let mut machine = Machine::default();
        assert_eq!(machine.steps(1000, 6 * MS, MS / 5, Some(0.0)), 1000);
        assert_eq!(
            machine.steps(9, 3000 * MS, 3000 * MS, None),
            1,
            "one step is enough"
        );
        assert_eq!(machine.crowd.left_out(), 1);
        // Its core is still taken.
        let tried = machine.steps(5000, 7 * MS, MS / 5, None);
        assert_eq!(
            (tried, machine.crowd.left_out()),
            (4000_u32.div_ceil(7) + 1, 0)
        );
        assert_eq!(machine.steps(9, 3000 * MS, 3000 * MS, None), 1);
        let again = machine.steps(5000, 7 * MS, MS / 5, None);
        assert!(
            (2 * tried - 4..2 * tried + 4).contains(&again),
            "twice as long: {again}"
        );
        assert_eq!(machine.steps(9, 3000 * MS, 3000 * MS, None), 1);
        // That is known.
        let known = machine.steps(20_000, 7 * MS, MS / 5, Some(1.0));
        assert!((64_000 / 7..65_000 / 7).contains(&known), "{known}");
        machine.steps(9, 3000 * MS, 3000 * MS, Some(1.0));
        // And now it is free.
        let free = machine.steps(5000, 7 * MS, MS / 5, Some(0.1));
        assert_eq!(
            (free, machine.crowd.left_out()),
            (1000_u32.div_ceil(7) + 1, 0)
        );
        assert_eq!(machine.steps(1000, 6 * MS, MS / 5, Some(0.1)), 1000);
    }

    #[test]
    fn a_rest_is_never_longer_than_the_longest() {
        let mut machine = Machine::default();
        let rests = (0..9).map(|_| {
            machine.steps(1, 3000 * MS, 3000 * MS, None);
            let begin = machine.now;
            machine.steps(20_000, 7 * MS, MS, None);
            machine.now.saturating_sub(begin).as_secs()
        });
        assert_eq!(
            rests.collect::<Vec<_>>(),
            [4, 8, 16, 32, 64, 64, 64, 64, 64]
        );
    }

    #[test]
    fn slow_steps_alone_and_waits_alone_say_nothing() {
        let mut machine = Machine::default();
        machine.steps(100, 6 * MS, Duration::ZERO, Some(0.0));
        // Stopped by a signal, or deeper in a text.
        machine.steps(5, 60_000 * MS, MS, Some(0.0));
        assert_eq!(machine.crowd.left_out(), 0);
        // Clients on the same cores.
        machine.steps(100, 9 * MS, 5 * MS, Some(0.0));
        assert_eq!(machine.crowd.left_out(), 0);
        machine.steps(100, 15 * MS, 8 * MS, Some(0.0));
        assert_eq!(machine.crowd.left_out(), 1, "both");
    }

    #[test]
    fn one_that_begins_in_a_crowd_notices_it() {
        let mut machine = Machine::default();
        assert_eq!(machine.steps(9, 3000 * MS, 1500 * MS, None), 1);
        assert_eq!(machine.crowd.left_out(), 1);
    }

    #[test]
    fn a_single_thread_is_never_left_out() {
        let mut crowd = Crowd::default();
        let alone = Step {
            threads: 1,
            ..step(3000 * MS)
        };
        assert!(!crowd.took(alone, 3000 * MS, || Some(2000 * MS)));
        assert!(crowd.took(step(3000 * MS), 6000 * MS, || Some(4000 * MS)));
    }

    #[test]
    fn what_the_kernel_does_not_tell_changes_nothing() {
        let mut crowd = Crowd::begin(5 * MS);
        for n in 1..100 {
            assert!(!crowd.took(step(3000 * MS), n * 3000 * MS, || None));
        }
        assert_eq!(crowd.left_out(), 0);
    }

    #[test]
    fn sizes_are_powers_of_two() {
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 128, 2048, 1 << 40].map(size),
            [0, 0, 1, 2, 2, 3, 7, 11, 11]
        );
    }
}
