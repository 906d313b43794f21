//! Who is next, and how many rows a step takes: pure decisions over plain data. No clock, no channel, no FFI; time
//! comes in as numbers.

use std::collections::VecDeque;

/// A queue that is fair between clients: they take turns, each client's own requests stay in order.
#[derive(Debug)]
pub struct FairQueue<T> {
    /// Clients in the order of their turns; none is empty.
    clients: VecDeque<(String, VecDeque<(u64, T)>)>,
    len: usize,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self {
            clients: VecDeque::new(),
            len: 0,
        }
    }
}

impl<T> FairQueue<T> {
    /// Number of waiting requests.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a request. `number` grows with arrival and puts right what tokenising threads finished out of order.
    /// Returns how many requests are served before it as things stand.
    pub fn push(&mut self, client: &str, number: u64, item: T) -> usize {
        self.len += 1;
        let known = self.clients.iter().position(|(name, _)| name == client);
        let turn = known.unwrap_or_else(|| {
            self.clients.push_back((client.to_owned(), VecDeque::new()));
            self.clients.len() - 1
        });
        let own = &mut self.clients[turn].1;
        let place = own.partition_point(|(other, _)| *other < number);
        own.insert(place, (number, item));
        // Before it come, of each other client, as many requests as of its own (one more for those ahead in turn).
        let ahead = self
            .clients
            .iter()
            .enumerate()
            .map(|(other, (_, waiting))| match other {
                other if other < turn => waiting.len().min(place + 1),
                other if other == turn => place,
                _ => waiting.len().min(place),
            });
        ahead.sum()
    }

    /// Takes the next request; its client goes to the end of the round.
    pub fn pop(&mut self) -> Option<T> {
        let (client, mut waiting) = self.clients.pop_front()?;
        let (_, item) = waiting.pop_front()?;
        if !waiting.is_empty() {
            self.clients.push_back((client, waiting));
        }
        self.len -= 1;
        Some(item)
    }

    /// Takes out all requests that `gone` points at, in no particular order.
    pub fn remove(&mut self, mut gone: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for (_, waiting) in &mut self.clients {
            for _ in 0..waiting.len() {
                let Some((number, item)) = waiting.pop_front() else {
                    break;
                };
                if gone(&item) {
                    removed.push(item);
                } else {
                    waiting.push_back((number, item));
                }
            }
        }
        self.clients.retain(|(_, waiting)| !waiting.is_empty());
        self.len -= removed.len();
        removed
    }
}

/// A prompt that is not decoded yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Its sequence's number.
    pub seq: u32,
    /// Tokens of it that are left; 0 where there is no prompt.
    pub left: u32,
}

/// Shares out about `rows` rows, and at most `most`, between prompts in the order of their sequences, of which `first` (an index) comes first. That one
/// has what it wants, as far as the rows go. Where there is room for more, neighbours on both sides that want as much have as many rows: in one
/// pass llama.cpp takes the same number of rows of each sequence, and only of neighbours; whatever is beyond that would be another pass,
/// which reads all weights again.
pub fn share_rows(prompts: &[Waiting], first: usize, rows: u32, most: u32) -> Vec<u32> {
    let mut shares = vec![0; prompts.len()];
    let Some(head) = prompts.get(first).filter(|head| head.left > 0) else {
        return shares;
    };
    let most = most.min(rows + rows / LONGER);
    let part = if head.left <= most {
        head.left
    } else {
        rows.min(most)
    };
    if part == 0 {
        return shares;
    }
    let room = (most / part) as usize;
    let joins = |one: usize, beside: usize| {
        prompts[one].left >= part && prompts[one].seq.abs_diff(prompts[beside].seq) == 1
    };
    let (mut from, mut to) = (first, first);
    while to - from + 1 < room {
        if to + 1 < prompts.len() && joins(to + 1, to) {
            to += 1;
        } else if from > 0 && joins(from - 1, from) {
            from -= 1;
        } else {
            break;
        }
    }
    shares[from..=to].fill(part);
    shares
}

/// What a step has rows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Answers under way, with prompts beside them.
    Both,
    /// Prompts only.
    Prompts,
    /// Answers only.
    Answers,
}

/// Steps of prompts for each one of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Between {
    /// How many.
    pub steps: u32,
    /// Rows of each.
    pub rows: u32,
}

/// Takes turns. Rows of answers make a pass of their own in any case: where that is dear, prompts have steps to themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turns {
    prompts_in_a_row: u32,
}

impl Turns {
    /// What the next step has, where answers are under way and prompts have so many steps for each one of answers; 0 where they share one.
    pub fn next(&mut self, prompts: u32) -> Turn {
        if self.prompts_in_a_row < prompts {
            self.prompts_in_a_row += 1;
            return Turn::Prompts;
        }
        self.prompts_in_a_row = 0;
        if prompts > 0 {
            Turn::Answers
        } else {
            Turn::Both
        }
    }
}

/// About as many rows as `rows` in whole tiles or groups, at most `most`.
fn whole_groups(rows: u32, most: u32) -> u32 {
    let longest = (rows + rows / LONGER).min(most);
    if longest >= TILE {
        // Of many tiles one more or less matters little, and who waits for the step waits for it.
        let whole = if rows < FEW_TILES * TILE {
            longest
        } else {
            rows.min(most)
        };
        let tiles = whole / TILE * TILE;
        // The first tile's half is nearly as good, and the step is not cut by a third.
        return if tiles == TILE && longest >= TILE + TILE / 2 {
            TILE + TILE / 2
        } else {
            tiles
        };
    }
    let groups = longest / GROUP * GROUP;
    if groups + rows / SHORTER >= rows {
        groups
    } else if rows > LEAST_ROWS {
        rows - rows % LEAST_ROWS
    } else {
        rows
    }
}

/// Chooses the size of a step so that it takes no longer than it should, from how long the last ones took.
#[derive(Clone, Debug)]
pub struct Pace {
    step_ms: f64,
    /// A step of single rows (decoding), which is mostly the time to read the weights once.
    base_ms: f64,
    /// What a row of a prompt costs, in a pass of its own or on top of such a step.
    row_ms: Option<f64>,
    /// The largest chunk so far.
    most_rows: u32,
}

/// Rows of the first chunk, when nothing is known: about a step on a slow phone.
const FIRST_ROWS: u32 = 16;
/// Rows of a chunk at least, if as many are left.
const LEAST_ROWS: u32 = 8;
/// From this many rows on, a chunk tells what a row costs; of smaller ones only good news is believed.
const TELLING_ROWS: u32 = 16;
/// Kernels work on rows in groups of so many or of a divisor of it, and take the rest of a chunk row by row or in smaller groups:
/// 40 rows can take as long as 48.
const GROUP: u32 = 16;
/// Attention works on tiles of so many rows of one sequence, whole or not, and on fewer rows one by one (`GGML_FA_TILE_Q`): amid a
/// long prompt 80 rows are slower each than 64.
const TILE: u32 = 64;
const FEW_TILES: u32 = 3;
/// A chunk may be longer by one part in so many to end with a whole group, or with one of a few tiles, or shorter by one part in `SHORTER`.
const LONGER: u32 = 6;
const SHORTER: u32 = 4;
/// While prompts wait, answers aim at this part of the time that prompts take, or what is hardly noticed, within the limits below.
const ANSWERS_PART: f64 = 0.085;
const NOTICEABLE_MS: f64 = 5.0;
/// Between two steps of answers prompts have at least so many times `step_ms`, and no more steps than [`PROMPTS_IN_A_ROW`].
const LEAST_BETWEEN: f64 = 2.0;
const PROMPTS_IN_A_ROW: u32 = 4;
/// Fewer and longer steps are taken where they come to as much time but for one part in so many: each reads all weights, and small ones
/// make no whole tiles.
const NEAR: f64 = 4.0;
/// How many times larger than all before it a chunk may be.
const GROWTH: u32 = 4;
/// How many times longer a step without rows of answers may be: each chunk reads all weights once, and on a slow machine a step has
/// few rows to share that.
const ALONE: f64 = 3.0;
/// The same where one prompt is all there is to do: who leaves waits for it, or who comes.
const NOBODY_ELSE: f64 = 5.0;
/// Prompts may make such a step longer by one part in so many, if they are decoded then.
const LEFT_OVER: u32 = 5;

impl Pace {
    /// A pace for steps of at most `step_ms` milliseconds.
    pub fn new(step_ms: u32) -> Self {
        Self {
            step_ms: f64::from(step_ms),
            base_ms: 0.0,
            row_ms: None,
            most_rows: 0,
        }
    }

    /// How many prefill rows go beside `decoding` rows into a step of at most `most` rows. A few go in always: a pass over the
    /// weights costs the same for one row, and a prompt must get on, however slow the machine is.
    pub fn prefill_rows(&self, decoding: u32, most: u32) -> u32 {
        self.rows_in(self.step_ms, decoding, most)
    }

    /// How many rows of prompts go into a step without rows of answers, if `waiting` are left of the one that comes first.
    pub fn prompt_rows(&self, waiting: u32, most: u32) -> u32 {
        self.prompt_rows_in(ALONE * self.step_ms, waiting, most)
    }

    /// The same for a prompt that is all there is to do.
    pub fn only_prompt_rows(&self, waiting: u32, most: u32) -> u32 {
        self.prompt_rows_in(NOBODY_ELSE * self.step_ms, waiting, most)
    }

    fn prompt_rows_in(&self, step_ms: f64, waiting: u32, most: u32) -> u32 {
        let rows = self.rows_in(step_ms, 0, most);
        // A pass for the few rows that are left would read all weights once more.
        if waiting <= rows + rows / LEFT_OVER {
            return waiting.min(most).max(rows);
        }
        // As many steps as it takes, in equal parts: a last one of few rows would be a slow one for its size.
        let part = waiting.div_ceil(waiting.div_ceil(rows));
        let unit = match part {
            _ if rows < TILE => GROUP,
            part if part <= TILE + TILE / 2 => TILE / 2,
            _ => TILE,
        };
        let chunk = part.next_multiple_of(unit).min(rows);
        // What makes no whole tile goes first: it is decoded row by row, the dearer the more text is before it.
        match (waiting - chunk) % unit {
            odd if odd > 0 && chunk > unit && rows >= TILE => chunk - unit + odd,
            _ => chunk,
        }
    }

    fn rows_in(&self, step_ms: f64, decoding: u32, most: u32) -> u32 {
        let room = most.saturating_sub(decoding).max(1);
        let Some(row_ms) = self.row_ms else {
            return FIRST_ROWS.min(room);
        };
        let answers_ms = if decoding > 0 { self.base_ms } else { 0.0 };
        let affordable = (step_ms - answers_ms) / row_ms;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped"
        )]
        let affordable = affordable.clamp(f64::from(LEAST_ROWS), 1e6) as u32;
        let rows = affordable
            .min(self.most_rows.max(FIRST_ROWS) * GROWTH)
            .min(room);
        // Beside answers the first row of a prompt goes into the pass that they share, and the others make one of their own.
        let apart = u32::from(decoding > 0 && rows > LEAST_ROWS);
        if rows == room && apart == 0 {
            rows
        } else {
            apart + whole_groups(rows - apart, room - apart)
        }
    }

    /// Whether it is known what a step of answers takes.
    pub fn knows_answers(&self) -> bool {
        self.base_ms > 0.0
    }

    /// What prompts have to themselves for each step of `decoding` answers; `None` where they share steps. `waiting` rows of prompts are
    /// left, `first` of them of the prompt that comes first. It is about as little as keeps answers to their part of the time, and within limits.
    ///
    /// A few rows go into the pass of the answers, or take hardly more in one of their own.
    pub fn between(&self, decoding: u32, waiting: u32, first: u32, most: u32) -> Option<Between> {
        if decoding == 0 || waiting <= LEAST_ROWS || self.base_ms <= NOTICEABLE_MS {
            return None;
        }
        let takes_ms = |rows: u32| f64::from(rows) * self.row_ms.unwrap_or(0.0);
        let needed_ms = self.base_ms / ANSWERS_PART;
        if needed_ms <= takes_ms(self.prefill_rows(decoding, most)) {
            return None;
        }
        // Once they alternate, steps are long enough for many tiles.
        let needed_ms = needed_ms.max(LEAST_BETWEEN * self.step_ms);
        let in_a_row = |rows: u32, needed_ms: f64| {
            let about = |steps: &u32| needed_ms <= (f64::from(*steps) + 0.5) * takes_ms(rows);
            let steps = (1..PROMPTS_IN_A_ROW).find(about);
            steps.unwrap_or(PROMPTS_IN_A_ROW)
        };
        let usual_ms = ALONE * self.step_ms;
        let usual = f64::from(in_a_row(self.prompt_rows(first, most), needed_ms));
        let needed_ms = needed_ms.min(usual * usual_ms);
        // Nobody waits for the next step, where no prompt is but this one, but who leaves or comes.
        let most_ms = if first == waiting {
            NOBODY_ELSE * self.step_ms
        } else {
            usual_ms
        };
        let longest = self.prompt_rows_in(most_ms, first, most);
        let steps = in_a_row(longest, needed_ms);
        let off_ms = (needed_ms - f64::from(steps) * takes_ms(longest)).abs();
        let rows = if off_ms * NEAR <= needed_ms {
            longest
        } else {
            let step_ms = (needed_ms / f64::from(steps)).min(most_ms);
            self.prompt_rows_in(step_ms, first, most)
        };
        Some(Between { steps, rows })
    }

    /// What `rows` prefill rows take on top of a step, in milliseconds, as far as that is known.
    pub fn prefill_ms(&self, rows: u32) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "milliseconds")]
        let ms = (f64::from(rows) * self.row_ms.unwrap_or(0.0)) as f32;
        ms
    }

    /// Learns from a step of `decoding` and `prefill` rows that took `ms` milliseconds.
    pub fn observe(&mut self, decoding: u32, prefill: u32, ms: f64) {
        if !ms.is_finite() || ms <= 0.0 {
            return;
        }
        if prefill == 0 {
            self.base_ms = if self.base_ms == 0.0 {
                ms
            } else {
                // A step that the system interrupted counts as twice as long as usual, however long it took.
                0.8 * self.base_ms + 0.2 * ms.min(2.0 * self.base_ms)
            };
            return;
        }
        let answers_ms = if decoding > 0 { self.base_ms } else { 0.0 };
        let rows = f64::from(prefill);
        let row_ms = ((ms - answers_ms) / rows).max(ms / rows / 4.0);
        let telling = prefill >= TELLING_ROWS;
        self.row_ms = match self.row_ms {
            None => Some(row_ms),
            // Half old, half new: one step that the system interrupted is forgotten after a few.
            Some(old) if telling || row_ms < old => Some(0.5 * old + 0.5 * row_ms),
            // A few rows cost a whole pass over the weights, which says little about the next row.
            old => old,
        };
        self.most_rows = self.most_rows.max(prefill);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn clients_take_turns_and_keep_their_order() {
        let mut queue = FairQueue::default();
        for (number, client) in ["greedy", "greedy", "greedy", "modest", "late"]
            .iter()
            .enumerate()
        {
            queue.push(client, number as u64, (*client, number));
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        let expected = [
            ("greedy", 0),
            ("modest", 3),
            ("late", 4),
            ("greedy", 1),
            ("greedy", 2),
        ];
        assert_eq!(order, expected);
        assert!(queue.is_empty());
    }

    #[test]
    fn push_tells_how_many_are_served_before() {
        let mut queue = FairQueue::default();
        assert_eq!(queue.push("a", 0, ()), 0);
        assert_eq!(queue.push("a", 1, ()), 1);
        assert_eq!(queue.push("a", 2, ()), 2);
        assert_eq!(queue.push("b", 3, ()), 1, "b's first comes after a's first");
        assert_eq!(
            queue.push("b", 4, ()),
            3,
            "b's second comes after two of a and one of b"
        );
    }

    #[test]
    fn late_tokenising_does_not_change_the_order() {
        let mut queue = FairQueue::default();
        queue.push("a", 7, 7);
        queue.push("a", 5, 5);
        queue.push("a", 6, 6);
        assert_eq!(
            [queue.pop(), queue.pop(), queue.pop()],
            [Some(5), Some(6), Some(7)]
        );
    }

    fn waiting(left: &[u32]) -> Vec<Waiting> {
        let one = |(seq, left): (usize, &u32)| Waiting {
            seq: u32::try_from(seq).unwrap(),
            left: *left,
        };
        left.iter().enumerate().map(one).collect()
    }

    #[test]
    fn who_comes_first_has_what_it_wants() {
        let share = |left: &[u32], first, rows| share_rows(&waiting(left), first, rows, 128);
        assert_eq!(
            share(&[1000, 10], 1, 64),
            [10, 10],
            "the long one has as much"
        );
        assert_eq!(share(&[1000, 10], 0, 64), [64, 0]);
        assert_eq!(share(&[1000, 10], 1, 8), [0, 8]);
        assert_eq!(
            share(&[1000, 70], 1, 64),
            [0, 70],
            "a few more are not left"
        );
        assert_eq!(share(&[1000, 75], 1, 64), [0, 64]);
        assert_eq!(share_rows(&waiting(&[75]), 0, 72, 74), [72], "no room");
        assert_eq!(share(&[0, 5], 1, 64), [0, 5]);
        assert_eq!(share(&[0, 5], 0, 64), [0, 0], "no prompt");
        assert_eq!(share(&[7, 5], 0, 0), [0, 0]);
        assert_eq!(share(&[], 0, 9), [0; 0]);
    }

    #[test]
    fn a_step_is_one_pass_of_neighbours() {
        let eight = |first, rows| share_rows(&waiting(&[41; 8]), first, rows, 128);
        assert_eq!(
            eight(0, 80),
            [41, 41, 0, 0, 0, 0, 0, 0],
            "82 rows are about 80"
        );
        assert_eq!(eight(7, 128), [0, 0, 0, 0, 0, 41, 41, 41]);
        assert_eq!(eight(3, 60), [0, 0, 0, 41, 0, 0, 0, 0]);
        let mixed = |first| share_rows(&waiting(&[200, 41, 67, 30, 0, 30]), first, 128, 128);
        assert_eq!(
            mixed(3),
            [30, 30, 30, 30, 0, 0],
            "who wants more has as much"
        );
        assert_eq!(
            mixed(1),
            [41, 41, 41, 0, 0, 0],
            "who wants less would make another pass"
        );
        let apart = [Waiting { seq: 2, left: 9 }, Waiting { seq: 4, left: 9 }];
        assert_eq!(
            share_rows(&apart, 0, 64, 64),
            [9, 0],
            "a sequence lies between them"
        );
    }

    #[test]
    fn pace_settles_on_the_time_limit() {
        let mut pace = Pace::new(300);
        // 20 ms for the weights, 3 ms a row: (300 - 20) / 3 = 93 rows.
        let cost = |rows: u32| 20.0 + 3.0 * f64::from(rows);
        for _ in 0..5 {
            pace.observe(1, 0, 23.0);
        }
        let mut rows = 0;
        for _ in 0..12 {
            rows = pace.prefill_rows(1, 512);
            assert!(cost(rows + 1) <= 330.0, "{rows} rows");
            pace.observe(1, rows, cost(rows + 1));
        }
        assert!((73..=97).contains(&rows), "{rows} rows");
    }

    #[test]
    fn pace_recovers_from_an_interruption() {
        let mut pace = Pace::new(300);
        let cost = |rows: u32| 3.0 + 3.0 * f64::from(rows);
        pace.observe(0, 64, cost(64));
        // The system gave the cores to somebody else for a while.
        for _ in 0..4 {
            pace.observe(0, pace.prefill_rows(0, 512), 9000.0);
        }
        assert_eq!(pace.prefill_rows(0, 512), 8);
        for _ in 0..12 {
            let rows = pace.prefill_rows(0, 512);
            pace.observe(0, rows, cost(rows));
        }
        assert!(pace.prefill_rows(0, 512) >= 64, "{pace:?}");
    }

    #[test]
    fn the_end_of_a_prompt_does_not_make_the_next_one_begin_small() {
        let mut pace = Pace::new(300);
        for rows in [16, 64, 128, 3] {
            assert!(pace.prompt_rows(1024, 128) >= rows);
            pace.observe(0, rows, 2.0 * f64::from(rows));
        }
        assert_eq!(pace.prompt_rows(1024, 128), 128);
    }

    #[test]
    fn chunks_are_whole_groups() {
        let sizes = [8, 9, 16, 23, 27, 28, 40, 42, 54, 55];
        let whole = sizes.map(|rows| whole_groups(rows, 512));
        assert_eq!(whole, [8, 8, 16, 16, 24, 32, 32, 48, 48, 64]);
        let tiles = [82, 83, 109, 110, 160, 165, 512].map(|rows| whole_groups(rows, 512));
        assert_eq!(tiles, [64, 96, 96, 128, 128, 192, 512]);
        assert_eq!(whole_groups(46, 47), 40, "no room for 48");
        // What this is for: a machine where a row that is left over costs as much as a group of four (Qwen 2.5 1.5B on two cores
        // of x86-64, in milliseconds).
        let cost = |rows: u32| {
            25.0 + 90.0 * f64::from(rows / 16) + 35.0 * f64::from(rows % 16).div_euclid(4.0)
        };
        let mut pace = Pace::new(300);
        pace.observe(1, 0, 25.0);
        for _ in 0..12 {
            let rows = pace.prefill_rows(0, 128);
            pace.observe(0, rows, cost(rows));
        }
        assert_eq!(pace.prefill_rows(0, 128), 48);
    }

    #[test]
    fn prompts_by_themselves_have_longer_steps() {
        let mut pace = Pace::new(200);
        let cost = |rows: u32| 20.0 + 5.0 * f64::from(rows);
        pace.observe(1, 0, 20.0);
        for _ in 0..12 {
            let rows = pace.prompt_rows(1000, 512);
            assert!(cost(rows) <= 3.0 * 200.0 * 7.0 / 6.0, "{rows} rows");
            pace.observe(0, rows, cost(rows));
        }
        assert_eq!(pace.prompt_rows(1024, 512), 128);
        assert_eq!(pace.prompt_rows(1000, 512), 104, "and 7 of 128");
        assert_eq!(pace.prompt_rows(153, 512), 153, "a few more are not left");
        assert_eq!(pace.prompt_rows(192, 512), 96, "two steps");
        assert_eq!(pace.prompt_rows(161, 512), 65, "and one of 96");
        assert_eq!(pace.prompt_rows(390, 512), 70, "and 5 of 64");
        assert_eq!(pace.prompt_rows(161, 100), 65);
        assert_eq!(pace.prompt_rows(140, 120), 76, "no room");
        assert_eq!(pace.only_prompt_rows(1024, 512), 192);
        assert_eq!(pace.only_prompt_rows(230, 512), 230, "nobody else waits");
        assert_eq!(
            pace.prefill_rows(1, 512),
            33,
            "a group, and a row beside the answer's"
        );
    }

    #[test]
    fn answers_and_prompts_take_turns_where_answers_are_dear() {
        assert_eq!(Pace::new(200).between(7, 1000, 1000, 512), None);
        // Rows that take 3 ms each: 320 fit into a step of 1,000 ms, 192 into one of 600.
        let within = |most, answers_ms, waiting: u32, first| {
            let mut pace = Pace::new(200);
            pace.observe(7, 0, answers_ms);
            pace.observe(0, 100, 300.0);
            let between = pace.between(7, waiting, first, most);
            between.map_or((0, 0), |between| (between.steps, between.rows))
        };
        let of = |answers_ms, waiting| within(512, answers_ms, waiting, waiting);
        let turns = [13.0, 23.0, 40.0, 50.0, 66.0, 90.0, 120.0].map(|ms| of(ms, 3840));
        let expected = [
            (0, 0),
            (1, 128),
            (1, 128),
            (1, 192),
            (1, 192),
            (1, 320),
            (1, 320),
        ];
        assert_eq!(turns, expected);
        assert_eq!(of(170.0, 3840), (2, 320));
        assert_eq!(of(900.0, 3840), (2, 320), "that is long enough");
        let several = [66.0, 120.0, 900.0].map(|ms| within(512, ms, 3840, 1920));
        assert_eq!(several, [(1, 192), (2, 192), (4, 192)], "others wait");
        let small = [30.0, 50.0, 80.0, 900.0].map(|ms| within(128, ms, 1024, 1024));
        assert_eq!(small, [(1, 128), (2, 96), (2, 128), (4, 128)]);
        assert_eq!(of(44.0, 20), (1, 192), "also for a short prompt");
        assert_eq!(of(44.0, 8), (0, 0), "a few rows");
        let mut fast = Pace::new(300);
        fast.observe(7, 0, 4.0);
        fast.observe(0, 100, 10.0);
        assert_eq!(fast.between(7, 1000, 1000, 512), None, "hardly noticed");
        assert_eq!(fast.between(0, 1000, 1000, 512), None, "no answers");
        let mut turns = Turns::default();
        let expected = {
            use Turn::{Answers, Both, Prompts};
            [
                Prompts, Prompts, Answers, Prompts, Both, Prompts, Prompts, Answers, Prompts,
                Answers,
            ]
        };
        assert_eq!(
            [2, 2, 2, 2, 0, 2, 2, 2, 1, 1].map(|steps| turns.next(steps)),
            expected
        );
    }

    #[test]
    fn pace_never_stops_a_prompt() {
        let mut pace = Pace::new(1);
        pace.observe(0, 16, 60_000.0);
        assert_eq!(pace.prefill_rows(0, 512), 8);
        assert_eq!(pace.prefill_rows(3, 4), 1);
        assert_eq!(pace.prefill_rows(4, 4), 1);
        // Decoding alone takes longer than a step should.
        let mut pace = Pace::new(300);
        pace.observe(1, 0, 9000.0);
        pace.observe(0, 16, 500.0);
        assert_eq!(pace.prefill_rows(1, 512), 8);
    }

    proptest! {
        #[test]
        fn shares_are_one_pass(
            left in prop::collection::vec((1u32..3, 0u32..300), 1..20),
            first in any::<prop::sample::Index>(),
            rows in 0u32..600,
            most in 1u32..600,
        ) {
            let prompts: Vec<Waiting> = left.iter().scan(0, |seq, (step, left)| {
                *seq += step;
                Some(Waiting { seq: *seq, left: *left })
            }).collect();
            let first = first.index(prompts.len());
            let shares = share_rows(&prompts, first, rows, most);
            prop_assert_eq!(shares[first] > 0, prompts[first].left > 0 && rows > 0, "who comes first gets on");
            prop_assert!(shares.iter().sum::<u32>() <= most.min(rows + rows / LONGER));
            prop_assert!(shares.iter().zip(&prompts).all(|(got, prompt)| *got <= prompt.left));
            let served: Vec<_> = prompts.iter().zip(&shares).filter(|(_, got)| **got > 0).collect();
            prop_assert!(served.windows(2).all(|two| two[0].1 == two[1].1 && two[0].0.seq + 1 == two[1].0.seq), "{shares:?}");
        }

        #[test]
        fn a_queue_loses_nothing(clients in prop::collection::vec((0u8..4, any::<bool>()), 0..60)) {
            let mut queue = FairQueue::default();
            for (number, (client, _)) in clients.iter().enumerate() {
                queue.push(&client.to_string(), number as u64, number);
            }
            let gone = queue.remove(|number| clients[*number].1);
            prop_assert_eq!(queue.len() + gone.len(), clients.len());
            let mut all: Vec<_> = gone.into_iter().chain(std::iter::from_fn(|| queue.pop())).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..clients.len()).collect::<Vec<_>>());
        }
    }
}
