//! How long a pass over the weights takes, by its rows, from the passes that were made.

/// Rows of the passes that are told apart: kernels work on rows in groups, so the cost is no straight line.
const ROWS: [u32; 14] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];
/// The part of a new measurement that counts.
const NEW: f32 = 0.2;
/// Before a pass of several rows was seen, each row costs this part of a whole pass. Rather too little: the first draft will tell.
const ASSUMED: f32 = 0.2;
/// A pass that takes less than this part of what it took before is believed at once.
const FASTER: f32 = 0.5;
/// Several rows take no more than this part of as many passes of one: where they did, the machine was busy with other things.
const MOST: f32 = 1.5;
/// With each pass, what was not seen for long gets nearer to what is assumed, by this part: after a time when the machine was busy
/// with other things, drafts are tried again.
const FADING: f32 = 0.001;

/// Times of passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Costs {
    ms: [Option<Time>; ROWS.len()],
}

#[derive(Clone, Copy, Debug)]
struct Time {
    ms: f32,
    /// Whether it was only guessed from something else.
    guessed: bool,
}

impl Costs {
    /// Costs as if another row took a hundredth of a pass.
    pub fn little() -> Self {
        let mut costs = Self::default();
        costs.observe(1, 100.0);
        costs.observe(128, 227.0);
        costs
    }

    /// Takes in that a pass of `rows` rows, each with logits, took `ms` milliseconds.
    pub fn observe(&mut self, rows: u32, ms: f32) {
        let Some(class) = class(rows).filter(|_| ms.is_finite() && ms > 0.0) else {
            return;
        };
        // Scaled to the class's own number of rows, as far as that is known.
        let known = self.ms[class].filter(|time| !time.guessed);
        let scaled = match (known, self.ms(rows)) {
            (Some(known), Some(expected)) if expected > 0.0 => ms * known.ms / expected,
            _ => ms,
        };
        let ms = known.map_or(scaled, |old| {
            if scaled < FASTER * old.ms {
                // What was seen before was something else's fault.
                return scaled;
            }
            // A pass that the system interrupted counts as twice as long as usual, however long it took.
            old.ms + NEW * (scaled.min(2.0 * old.ms) - old.ms)
        });
        self.ms[class] = Some(Time { ms, guessed: false });
        self.fade(class);
    }

    /// Takes in what a pass of as many rows takes, by another measure, until one is seen.
    pub fn guess(&mut self, rows: u32, ms: f32) {
        let class = class(rows).filter(|_| ms.is_finite() && ms > 0.0);
        if let Some(class) = class
            && self.ms[class].is_none_or(|time| time.guessed)
        {
            self.ms[class] = Some(Time { ms, guessed: true });
        }
    }

    /// Takes in what a pass of one row should take by another measure: until one is seen that is believed, and what was seen gets
    /// nearer to it with time, so that what was slow once is tried again.
    pub fn expect(&mut self, ms: f32) {
        match &mut self.ms[0] {
            Some(time) if !time.guessed => time.ms += FADING * (ms - time.ms).min(0.0),
            _ => self.guess(1, ms),
        }
    }

    fn fade(&mut self, seen: usize) {
        let Some(one) = self.ms[0] else { return };
        let others = self.ms.iter_mut().zip(ROWS).enumerate().skip(1);
        for (class, (time, rows)) in others {
            let assumed = assumed(one.ms, number(rows));
            if let Some(time) = time {
                time.ms = time.ms.min(MOST * one.ms * number(rows));
            }
            if let Some(time) = time
                && class != seen
                && time.ms > assumed
            {
                time.ms += FADING * (assumed - time.ms);
            }
        }
    }

    /// How long a pass of `rows` rows will take, in milliseconds; `None` before anything was seen.
    pub fn ms(&self, rows: u32) -> Option<f32> {
        if rows == 0 {
            return Some(0.0);
        }
        let known = || {
            ROWS.iter()
                .zip(&self.ms)
                .filter_map(|(rows, ms)| Some((number(*rows), (*ms)?.ms)))
        };
        let rows = number(rows);
        let below = known().rfind(|(at, _)| *at <= rows);
        let above = known().find(|(at, _)| *at >= rows);
        let ms = match (below, above) {
            (Some((from, less)), Some((to, more))) if to > from => {
                less + (more - less) * (rows - from) / (to - from)
            }
            (Some((_, ms)), Some(_)) => ms,
            // Beyond what was seen: in proportion, as if the rows seen last said what a row costs.
            (Some((1.0, ms)), None) => assumed(ms, rows),
            (Some((at, ms)), None) => ms * rows / at,
            (None, Some((at, ms))) => ms * (1.0 - 0.5 * (at - rows) / at),
            (None, None) => return None,
        };
        Some(ms)
    }
}

fn assumed(one: f32, rows: f32) -> f32 {
    one * (1.0 + ASSUMED * (rows - 1.0))
}

/// The class of a pass: the largest whose rows it has.
fn class(rows: u32) -> Option<usize> {
    let most = ROWS[ROWS.len() - 1];
    ROWS.iter()
        .rposition(|least| *least <= rows)
        .filter(|_| rows <= most)
}

fn number(rows: u32) -> f32 {
    // Rows are few: 16 bits hold them.
    f32::from(u16::try_from(rows).unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_known_at_first() {
        assert_eq!(Costs::default().ms(1), None);
        assert_eq!(Costs::default().ms(0), Some(0.0));
    }

    #[test]
    fn what_was_measured_is_told_and_the_rest_lies_between() {
        let mut costs = Costs::default();
        for _ in 0..50 {
            costs.observe(1, 10.0);
            costs.observe(8, 24.0);
        }
        let near = |rows: u32, expected: f32| {
            let ms = costs.ms(rows).expect("known");
            assert!((ms - expected).abs() < 0.01, "{rows} rows: {ms}");
        };
        near(1, 10.0);
        near(8, 24.0);
        near(4, 16.0);
        near(16, 48.0);
        assert!(costs.ms(128) > costs.ms(64));
    }

    #[test]
    fn a_guess_holds_until_something_is_seen() {
        let mut costs = Costs::default();
        costs.guess(64, 100.0);
        assert_eq!(costs.ms(64), Some(100.0));
        costs.observe(64, 150.0);
        costs.guess(64, 100.0);
        assert_eq!(costs.ms(64), Some(150.0));
    }

    #[test]
    fn what_is_expected_holds_until_it_is_seen_and_comes_back() {
        let mut costs = Costs::default();
        costs.expect(4.0);
        costs.expect(5.0);
        assert_eq!(costs.ms(1), Some(5.0));
        costs.observe(1, 50.0);
        costs.expect(5.0);
        assert!(costs.ms(1).is_some_and(|ms| ms > 49.0));
        for _ in 0..5000 {
            costs.expect(5.0);
        }
        assert!(costs.ms(1).is_some_and(|ms| ms < 6.0));
        costs.expect(9.0);
        assert!(
            costs.ms(1).is_some_and(|ms| ms < 6.0),
            "faster than expected stays"
        );
    }

    #[test]
    fn what_was_slow_once_is_tried_again() {
        let mut costs = Costs::default();
        costs.observe(1, 10.0);
        costs.observe(8, 1000.0);
        for _ in 0..3000 {
            costs.observe(1, 10.0);
        }
        assert!(
            costs.ms(8).is_some_and(|ms| (24.0..100.0).contains(&ms)),
            "{:?}",
            costs.ms(8)
        );
    }

    #[test]
    fn a_slow_beginning_is_soon_forgotten() {
        let mut costs = Costs::default();
        costs.observe(1, 3000.0);
        costs.observe(8, 4000.0);
        costs.observe(16, 4000.0);
        costs.observe(1, 6.0);
        assert_eq!(costs.ms(1), Some(6.0));
        assert!(costs.ms(8).is_some_and(|ms| ms <= 72.0), "{costs:?}");
        costs.observe(16, 45.0);
        assert_eq!(costs.ms(16), Some(45.0));
    }

    #[test]
    fn an_interruption_is_soon_forgotten() {
        let mut costs = Costs::default();
        costs.observe(1, 10.0);
        costs.observe(1, 9000.0);
        for _ in 0..20 {
            costs.observe(1, 10.0);
        }
        assert!(costs.ms(1).is_some_and(|ms| ms < 10.2));
        costs.observe(1, f32::NAN);
        costs.observe(0, 5.0);
        costs.observe(1 << 20, 5.0);
        assert!(costs.ms(1).is_some_and(|ms| ms < 10.2));
    }
}
