//! Who may take one of an engine's places, and how long the queue takes: decisions over plain numbers, and the count of who has
//! what. Nothing here waits, and no clock is read.

use super::{EngineError, Load, Message, Prompt, Question, Work};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A client may have this many times as many places as it leaves free, less one: alone it gets eight ninths of them, two get
/// eight seventeenths each, and some are left for who comes next, however many are greedy (the dynamic thresholds of switches
/// with a shared buffer).
const GREED: u32 = 8;
/// From so many answers on their mean time is believed.
const TELLING_ANSWERS: u64 = 8;
/// From so many rows on their mean time is believed.
const TELLING_ROWS: u64 = 16;
/// A request is refused for its deadline if its wait is likely to be this many times as long.
const HOPELESS: f64 = 2.0;
/// Seconds after which a client may ask again when nothing is known.
const UNKNOWN_SECONDS: f64 = 5.0;
/// Nobody is sent away for longer.
const LONGEST_SECONDS: f64 = 120.0;
/// Bytes of a token, roughly: tells long prompts from short ones before they are tokenised.
const BYTES_PER_TOKEN: u64 = 4;

/// Where a request stands in its model's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Requests ahead of it; 0 is next.
    pub position: u32,
    /// How long it is likely to wait for its turn; `None` where nothing was measured yet.
    pub wait: Option<Duration>,
}

/// Whether a client that has `own` places may take one more of `free` ones. As many as there are sequences anybody may have: that
/// none of them idles comes first.
fn leaves_enough(own: u32, free: u32, sequences: u32) -> bool {
    own < sequences.max(1) || own < GREED.saturating_mul(free.saturating_sub(1))
}

/// How fast requests go through.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    /// Seconds between two answers' ends while every sequence is taken.
    seconds: Option<f64>,
    /// Whether enough was measured to send somebody away for it.
    is_solid: bool,
}

impl Flow {
    /// From what was measured; before the first answer has ended, from the speed of its rows and from what is asked for.
    pub(super) fn new(load: &Load, sequences: u32, mean_rows: f64) -> Self {
        let sequences = f64::from(sequences.max(1));
        if load.request_seconds > 0.0 {
            return Self {
                seconds: Some(load.request_seconds / sequences),
                is_solid: load.served >= TELLING_ANSWERS,
            };
        }
        let mut counted = load.before.clone();
        counted.add_counters(&load.worker);
        let rows = counted.prefill_rows + counted.decode_rows;
        #[expect(
            clippy::cast_precision_loss,
            reason = "microseconds and rows of a worker's life"
        )]
        let row_seconds = counted.decode_us as f64 / 1e6 / rows.max(1) as f64;
        Self {
            seconds: (rows >= TELLING_ROWS).then_some(row_seconds * mean_rows),
            is_solid: false,
        }
    }

    /// The likely wait behind so many others, all sequences being taken.
    pub(super) fn wait(self, position: u32) -> Option<Duration> {
        let seconds = self.seconds? * (f64::from(position) + 1.0);
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Whether a request with so much time left will not have its turn.
    pub(super) fn is_hopeless(self, wait: Duration, left: Duration) -> bool {
        self.is_solid && wait.as_secs_f64() > HOPELESS * left.as_secs_f64()
    }

    /// Whole seconds after which so many places are likely to be free.
    pub(super) fn retry_after_seconds(self, places: u32) -> u32 {
        let seconds = self.seconds.unwrap_or(UNKNOWN_SECONDS) * f64::from(places.max(1));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped"
        )]
        let seconds = seconds.ceil().clamp(1.0, LONGEST_SECONDS) as u32;
        seconds
    }
}

/// Who has which places.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// Locked for a look and an addition only.
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Places of each client that has one.
    clients: HashMap<String, u32>,
    /// Rows that all of them may need.
    rows: u64,
}

/// A client's hold on one place. It is given up when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    shares: Arc<Shares>,
    client: String,
    rows: u64,
}

impl Shares {
    /// Takes a place by `take`, if `may_take` says so of the places that the client has.
    pub(super) fn take<T>(
        self: &Arc<Self>,
        client: &str,
        rows: u64,
        may_take: impl FnOnce(u32) -> bool,
        take: impl FnOnce() -> Option<T>,
    ) -> Result<(Share, T), Refused> {
        let mut taken = self.lock();
        let own = taken.clients.get(client).copied().unwrap_or(0);
        if !may_take(own) {
            return Err(Refused::Greedy { own });
        }
        let place = take().ok_or(Refused::Full)?;
        *taken.clients.entry(client.to_owned()).or_default() += 1;
        taken.rows += rows;
        let share = Share {
            shares: Arc::clone(self),
            client: client.to_owned(),
            rows,
        };
        Ok((share, place))
    }

    /// Clients that have a place.
    pub(super) fn clients(&self) -> u32 {
        u32::try_from(self.lock().clients.len()).unwrap_or(u32::MAX)
    }

    /// Rows that a request may need, in the mean of those that have places.
    pub(super) fn mean_rows(&self) -> f64 {
        let taken = self.lock();
        let requests: u32 = taken.clients.values().sum();
        #[expect(clippy::cast_precision_loss, reason = "a mean of thousands")]
        let rows = taken.rows as f64;
        rows / f64::from(requests.max(1))
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.shares.lock();
        taken.rows = taken.rows.saturating_sub(self.rows);
        if let Some(own) = taken.clients.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                taken.clients.remove(&self.client);
            }
        }
    }
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// None is free.
    Full,
    /// Those that are free are for others.
    Greedy { own: u32 },
}

/// Whether places are shared out between strangers, or all are one caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    Strangers,
    Ourselves,
}

impl Between {
    /// Whether a client with `own` places may take one of `free` ones.
    pub(super) fn allows(self, own: u32, free: u32, sequences: u32) -> bool {
        // Without a free place the reason is that, whoever asks.
        self == Self::Ourselves || free == 0 || leaves_enough(own, free, sequences)
    }
}

/// The error of a refusal.
pub(super) fn refusal(refused: Refused, places: u32, flow: Flow, clients: u32) -> EngineError {
    match refused {
        Refused::Full => EngineError::Overloaded {
            places,
            retry_after_seconds: flow.retry_after_seconds(1),
        },
        // Clients take turns, so its own requests end once in a round.
        Refused::Greedy { own } => EngineError::ShareTaken {
            own,
            retry_after_seconds: flow.retry_after_seconds(clients),
        },
    }
}

/// Rows that some work may need at most, where a sequence has room for `share` of them.
pub(super) fn rows(work: &Work, share: u32) -> u64 {
    let bytes = |text: &str| text.len() as u64 / BYTES_PER_TOKEN;
    let prompt = |prompt: &Prompt| match prompt {
        Prompt::Messages(messages) => {
            let said = |message: &Message| bytes(&message.content);
            messages.iter().map(said).sum()
        }
        Prompt::Text(text) => bytes(text),
        Prompt::Tokens(tokens) => tokens.len() as u64,
    };
    match work {
        Work::Generate(request) => {
            let answer = request.max_tokens.unwrap_or(share);
            let whole = prompt(&request.prompt).saturating_add(answer.into());
            whole.min(share.into())
        }
        Work::Ask(question) => match &**question {
            Question::Embed { inputs, .. } => inputs.iter().map(prompt).sum(),
            _ => 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::WorkerStats;

    /// Places that greedy clients get who ask in turns, and what is left.
    fn share_out(places: u32, clients: usize) -> (Vec<u32>, u32) {
        let sequences = places.min(4);
        let mut own = vec![0; clients];
        let mut free = places;
        loop {
            let before = free;
            for own in &mut own {
                if free > 0 && leaves_enough(*own, free, sequences) {
                    *own += 1;
                    free -= 1;
                }
            }
            if free == before {
                return (own, free);
            }
        }
    }

    #[test]
    fn greedy_clients_leave_places_to_who_comes_next() {
        assert_eq!(share_out(132, 1), (vec![117], 15));
        assert_eq!(share_out(132, 2), (vec![62, 62], 8));
        for clients in 1..20 {
            let (own, free) = share_out(132, clients);
            assert!(free >= 1, "{clients} clients left none");
            assert!(own[0] - own[clients - 1] <= 1, "{own:?}");
        }
        assert_eq!(share_out(8, 1), (vec![7], 1));
        assert_eq!(share_out(5, 1), (vec![4], 1));
        assert_eq!(share_out(4, 1), (vec![4], 0), "there is no queue to share");
        assert_eq!(share_out(1, 1), (vec![1], 0));
    }

    #[test]
    fn shares_are_given_up() {
        let shares = Arc::new(Shares::default());
        let take = |client: &str| shares.take(client, 10, |_| true, || Some(())).unwrap().0;
        let (one, other) = (take("a"), take("a"));
        let third = take("b");
        assert_eq!((shares.clients(), shares.mean_rows()), (2, 10.0));
        drop((one, other));
        assert_eq!(shares.clients(), 1);
        drop(third);
        assert_eq!((shares.clients(), shares.mean_rows()), (0, 0.0));
        let full = shares.take("a", 10, |_| true, || None::<()>).map(drop);
        assert_eq!(full.unwrap_err(), Refused::Full);
        assert_eq!(shares.clients(), 0, "who got no place is not counted");
    }

    #[test]
    fn times_come_from_answers_then_from_rows_then_from_nowhere() {
        let mut load = Load::default();
        let nothing = Flow::new(&load, 4, 1000.0);
        assert_eq!(nothing.wait(3), None);
        assert_eq!(nothing.retry_after_seconds(1), 5);
        // 100 rows in 2 s: a request of 1,000 rows is done each 20 s, however many run at once.
        load.worker = WorkerStats {
            prefill_rows: 40,
            decode_rows: 60,
            decode_us: 2_000_000,
            ..WorkerStats::default()
        };
        let rows = Flow::new(&load, 4, 1000.0);
        assert_eq!(rows.wait(0), Some(Duration::from_secs(20)));
        assert_eq!(rows.retry_after_seconds(1), 20);
        assert_eq!(rows.retry_after_seconds(100), 120);
        for _ in 0..8 {
            load.answered(8.0);
        }
        let answers = Flow::new(&load, 4, 1000.0);
        assert_eq!(answers.wait(0), Some(Duration::from_secs(2)));
        assert_eq!(answers.wait(4), Some(Duration::from_secs(10)));
        assert_eq!(answers.retry_after_seconds(1), 2);
    }

    #[test]
    fn nobody_is_sent_away_for_a_guess() {
        let seconds = Duration::from_secs;
        let mut load = Load::default();
        for _ in 1..TELLING_ANSWERS {
            load.answered(8.0);
        }
        assert!(!Flow::new(&load, 1, 0.0).is_hopeless(seconds(100), seconds(1)));
        load.answered(8.0);
        let solid = Flow::new(&load, 1, 0.0);
        assert!(solid.is_hopeless(seconds(100), seconds(1)));
        assert!(!solid.is_hopeless(seconds(100), seconds(50)));
    }
}
