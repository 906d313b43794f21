//! Rows that nobody asked for, where a pass with them takes less time than without.
//!
//! The kernels of repacked weights (`ggml/src/ggml-cpu/repack.cpp`) multiply four rows at once, and take the one to three that are left
//! over one by one, each with a pass over the weights of its own. And llama.cpp makes two passes where an idle sequence lies between
//! two busy ones. A row of an idle sequence mends both; it is taken back after the step. Whether it pays depends on the weights' type and
//! on the machine, so it is tried and measured.

use super::decoder::{Position, Row, SeqId};
use std::collections::HashMap;
use std::time::Duration;

/// Rows that the kernels multiply at once.
const GROUP: u32 = 4;
/// All sequences of a pass look at as many cells as the longest one has, which is dear where the others are short: beyond this, only an
/// idle sequence that is no longer than they are may join.
const LONG: Position = 2048;
/// Steps of each way before one is chosen.
const TRIES: u32 = 3;
/// With each so many steps the other way is tried once more.
const AGAIN: u32 = 128;
/// A step with idle sequences is worth it if it takes at most this part of one without.
const WORTH: f32 = 0.98;
/// The part of a new measurement that counts.
const NEW: f32 = 0.25;

/// Which idle sequences join the steps of others.
#[derive(Debug, Default)]
pub struct Padding {
    times: HashMap<Shape, Times>,
    /// The step at hand: its shape, and whether it is padded. Only steps that tell something have one.
    current: Option<(Shape, bool)>,
}

/// What a step's time depends on. There are few: each number is at most that of the sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    busy: u32,
    /// Those that would join them.
    idle: u32,
    /// Whether an idle one lies between busy ones.
    gap: bool,
}

/// Milliseconds of steps without and with the idle sequences.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    without: Time,
    with: Time,
    steps: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Time {
    ms: f32,
    seen: u32,
}

impl Time {
    fn observe(&mut self, ms: f32) {
        self.ms = match self.seen {
            0 => ms,
            // The first one may have paid for what comes with a new shape.
            1 => self.ms.min(ms),
            // A step that the system interrupted counts as twice as long as usual, however long it took.
            _ => self.ms + NEW * (ms.min(2.0 * self.ms) - self.ms),
        };
        self.seen = self.seen.saturating_add(1);
    }
}

impl Times {
    /// Whether a step was faster with the idle ones, by more than chance.
    fn pays(&self) -> bool {
        self.with.ms < WORTH * self.without.ms
    }

    /// Whether the next step is padded.
    fn choose(&mut self) -> bool {
        self.steps = self.steps.wrapping_add(1);
        if self.without.seen < TRIES || self.with.seen < TRIES {
            return self.with.seen < self.without.seen;
        }
        self.pays() != self.steps.is_multiple_of(AGAIN)
    }
}

impl Padding {
    /// The idle sequences of which a row joins the first pass of `rows`, which are in the order of their sequences; `held` says how many
    /// tokens each sequence holds. Whoever has no room for one more token of `longest` has no place, and those that `may` refuses have none.
    pub fn choose(
        &mut self,
        rows: &[Row],
        held: &[Position],
        longest: Position,
        may: impl Fn(SeqId) -> bool,
    ) -> Vec<SeqId> {
        self.current = None;
        let Some(busy) = busy(rows) else {
            return Vec::new();
        };
        let most = busy.iter().filter_map(|one| held.get(one.0 as usize)).max();
        let looked_at = most.map_or(0, |held| held + 1).max(LONG);
        let fits = |seq: u32| {
            held.get(seq as usize)
                .is_some_and(|held| *held < longest.min(looked_at))
                && may(SeqId(seq))
        };
        let Some(idle) = joining(&busy, fits) else {
            return Vec::new();
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let shape = Shape {
            busy: count(busy.len()),
            idle: count(idle.len()),
            gap: !neighbours(&busy),
        };
        let times = self.times.entry(shape).or_default();
        // Only where each sequence has one row is the first pass all there is.
        let padded = if rows.len() == busy.len() {
            let padded = times.choose();
            self.current = Some((shape, padded));
            padded
        } else {
            times.with.seen >= TRIES && times.pays()
        };
        if padded { idle } else { Vec::new() }
    }

    /// Takes in how long the step took that was chosen last.
    pub fn took(&mut self, time: Duration) {
        if let Some((shape, padded)) = self.current.take()
            && let Some(times) = self.times.get_mut(&shape)
        {
            let ms = time.as_secs_f32() * 1000.0;
            if padded {
                times.with.observe(ms);
            } else {
                times.without.observe(ms);
            }
        }
    }
}

/// The sequences of the first pass, if it has one row of each, of several, in order.
fn busy(rows: &[Row]) -> Option<Vec<SeqId>> {
    let (mut busy, mut single): (Vec<SeqId>, bool) = (Vec::new(), false);
    for of_one in rows.chunk_by(|one, next| one.seq == next.seq) {
        let seq = of_one.first()?.seq;
        if busy.last().is_some_and(|last| *last >= seq) {
            return None;
        }
        single |= of_one.len() == 1;
        busy.push(seq);
    }
    (single && busy.len() > 1).then_some(busy)
}

fn neighbours(busy: &[SeqId]) -> bool {
    busy.windows(2).all(|two| two[0].0 + 1 == two[1].0)
}

/// Those between the busy ones, and as many beside them as make whole groups. Never more than there are busy ones.
fn joining(busy: &[SeqId], fits: impl Fn(u32) -> bool) -> Option<Vec<SeqId>> {
    let (mut first, mut last) = (busy.first()?.0, busy.last()?.0);
    let mut idle: Vec<SeqId> = (first..=last)
        .map(SeqId)
        .filter(|seq| !busy.contains(seq))
        .collect();
    if !idle.iter().all(|seq| fits(seq.0)) {
        return None;
    }
    while !(last - first + 1).is_multiple_of(GROUP) {
        if fits(last + 1) {
            last += 1;
            idle.push(SeqId(last));
        } else if first > 0 && fits(first - 1) {
            first -= 1;
            idle.push(SeqId(first));
        } else {
            return None;
        }
    }
    idle.sort_unstable();
    (!idle.is_empty() && idle.len() <= busy.len()).then_some(idle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Token;

    fn rows(of: &[u32]) -> Vec<Row> {
        let row = |seq: &u32| Row {
            seq: SeqId(*seq),
            position: 0,
            token: Token(1),
            logits: true,
        };
        of.iter().map(row).collect()
    }

    fn seqs(of: &[u32]) -> Vec<SeqId> {
        of.iter().copied().map(SeqId).collect()
    }

    /// Steps of `of` beside sequences that hold `held`, which take `without` or `with` milliseconds: how many of the last 100 were padded.
    fn padded(of: &[u32], held: &[Position], (without, with): (u64, u64)) -> usize {
        let mut padding = Padding::default();
        let mut last = Vec::new();
        for _ in 0..300 {
            let idle = padding.choose(&rows(of), held, 4000, |_| true);
            last.push(!idle.is_empty());
            let ms = if idle.is_empty() { without } else { with };
            padding.took(Duration::from_millis(ms));
        }
        last[200..].iter().filter(|padded| **padded).count()
    }

    #[test]
    fn the_faster_way_is_chosen_and_the_other_one_not_forgotten() {
        let held = [10; 8];
        assert_eq!(padded(&[0, 1, 2, 3, 4, 5, 6], &held, (113, 70)), 99);
        assert_eq!(padded(&[0, 1, 2, 3, 4, 5, 6], &held, (26, 27)), 1);
        assert_eq!(padded(&[0, 1, 2, 3], &held, (57, 1)), 0, "a whole group");
        assert_eq!(padded(&[0], &held, (20, 1)), 0, "one row is one pass");
    }

    #[test]
    fn gaps_and_groups_are_filled_by_whoever_is_not_long() {
        let fits = |_| true;
        assert_eq!(joining(&seqs(&[0, 1, 3]), fits), Some(seqs(&[2])));
        assert_eq!(joining(&seqs(&[1, 2, 3]), |seq| seq < 4), Some(seqs(&[0])));
        assert_eq!(joining(&seqs(&[1, 2, 3]), |_| false), None);
        assert_eq!(joining(&seqs(&[0, 2, 3]), |seq| seq != 1), None);
        assert_eq!(joining(&seqs(&[0, 7]), fits), None, "too many for two");
        assert_eq!(
            padded(&[0, 1, 2], &[300, 300, 300, 2048], (60, 57)),
            0,
            "too long"
        );
        assert_eq!(padded(&[0, 1, 2], &[300, 300, 300, 2047], (60, 57)), 99);
        assert_eq!(padded(&[0, 1, 2], &[300, 3000, 300, 3000], (60, 57)), 99);
        assert_eq!(
            padded(&[0, 1, 2], &[3999, 3990, 10, 4000], (60, 57)),
            0,
            "full"
        );
    }

    #[test]
    fn steps_with_more_rows_do_as_the_others_did() {
        let mut padding = Padding::default();
        let held = [10; 4];
        let longer = [rows(&[0, 1]), rows(&[2, 2, 2])].concat();
        let two_each = rows(&[0, 0, 1, 1, 2, 2]);
        let mut of = |rows: &[Row], ms: [u64; 2]| {
            let idle = padding.choose(rows, &held, 1000, |_| true);
            padding.took(Duration::from_millis(ms[usize::from(!idle.is_empty())]));
            idle
        };
        assert_eq!(of(&longer, [1, 1]), [], "nothing is known");
        for _ in 0..20 {
            of(&rows(&[0, 1, 2]), [60, 57]);
        }
        assert_eq!(of(&longer, [900, 900]), seqs(&[3]));
        assert_eq!(of(&longer, [900, 900]), seqs(&[3]), "its time says nothing");
        assert_eq!(
            of(&two_each, [1, 1]),
            [],
            "its first pass has two rows of each"
        );
        assert_eq!(of(&rows(&[2, 1, 0]), [1, 1]), [], "out of order");
    }

    #[test]
    fn who_may_not_does_not() {
        let mut padding = Padding::default();
        for _ in 0..20 {
            let idle = padding.choose(&rows(&[0, 1, 2]), &[5; 4], 1000, |seq| seq != SeqId(3));
            assert_eq!(idle, []);
        }
    }
}
