//! The connection to one worker: frames in and out by tasks of their own, the count of its silence, and how it ended.

use super::launch::{Ending, Launched};
use super::wire::{self, FromWorker, RequestId};
use super::{EngineOptions, WorkerStats};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

/// How often deadlines are looked at of requests that no worker has.
pub(super) const EXPIRY_POLL: Duration = Duration::from_millis(250);
/// Parts of the stall limit that are counted.
const STALL_TICKS: u32 = 10;
/// A silent worker that computes gets this many stall limits: cores that others use as well slow a step down by factors, not
/// by shares, because llama.cpp's threads wait for each other spinning.
const PATIENCE_WITH_COMPUTING: u32 = 12;
/// Processor time that tells a computing worker from one that is stopped or waits for ever, as a part of the silence.
const COMPUTING: f64 = 0.02;
/// A cancel takes effect within one step, which is rarely longer.
const LEAVING_PATIENCE: Duration = Duration::from_secs(2);
/// How long a worker may take to end when asked.
const EXIT_PATIENCE: Duration = Duration::from_secs(2);

/// Why a worker's life is over.
pub(super) enum Over {
    /// Asked to stop.
    Stopped,
    /// It said that the model can't be loaded.
    LoadFailed(String),
    /// It hung, spoke nonsense, or ended in a way that says nothing about its requests.
    Died(String),
    /// It crashed: one of its requests may be to blame.
    Crashed {
        /// How it ended.
        reason: String,
        /// The signal, if it was one; a status otherwise.
        signal: Option<i32>,
    },
    /// Somebody else killed it: no request is to blame.
    Killed(String),
}

/// A frame that waits for its turn to be written.
pub(super) enum Outgoing {
    /// The request of a route, if there still is one.
    Submit(RequestId),
    /// Nobody reads this one any more; its place goes free with the word.
    Cancel {
        id: RequestId,
        place: OwnedSemaphorePermit,
    },
}

impl Outgoing {
    /// Whose request it is, if it is one.
    pub(super) fn submitted(&self) -> Option<RequestId> {
        match self {
            Self::Submit(id) => Some(*id),
            Self::Cancel { .. } => None,
        }
    }
}

/// The connection to one worker process.
pub(super) struct Life {
    pub(super) outgoing: mpsc::Sender<Vec<u8>>,
    pub(super) frames: mpsc::Receiver<io::Result<FromWorker>>,
    pub(super) ticks: tokio::time::Interval,
    /// When to look after requests that are held back.
    pub(super) looks: tokio::time::Interval,
    /// What is to be written, in order.
    pub(super) waiting: VecDeque<Outgoing>,
    /// Ticks since the worker was last heard.
    pub(super) silent_ticks: u32,
    /// As many of them are too many while it loads.
    load_ticks: u32,
    /// The worker's processor time when the silence began.
    cpu_before: Option<Duration>,
    pid: Option<u32>,
    /// Whether it said which build it is.
    pub(super) greeted: bool,
    /// Whether its model is loaded.
    pub(super) ready: bool,
    /// A request that was cancelled may still be in its step, until the worker says that it has none, or until this time.
    leaving: Option<Instant>,
}

impl Life {
    pub(super) fn new(
        options: &EngineOptions,
        pid: Option<u32>,
        outgoing: mpsc::Sender<Vec<u8>>,
        frames: mpsc::Receiver<io::Result<FromWorker>>,
    ) -> Self {
        let period = (options.stall / STALL_TICKS).max(Duration::from_millis(1));
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(EXPIRY_POLL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let load_ticks = options.load_stall.as_millis() / period.as_millis();
        let load_ticks = u32::try_from(load_ticks).unwrap_or(u32::MAX);
        Self {
            outgoing,
            frames,
            ticks,
            looks,
            waiting: VecDeque::new(),
            silent_ticks: 0,
            load_ticks,
            cpu_before: None,
            pid,
            greeted: false,
            ready: false,
            leaving: None,
        }
    }

    /// A cancel is on its way to the worker.
    pub(super) fn somebody_leaves(&mut self) {
        self.leaving = Some(Instant::now() + LEAVING_PATIENCE);
    }

    /// The worker has told its numbers.
    pub(super) fn heard(&mut self, stats: &WorkerStats) {
        if stats.running == 0 && stats.queued == 0 {
            self.leaving = None;
        }
    }

    /// Whether a request that was cancelled may still be in a step.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving.is_some_and(|until| Instant::now() < until)
    }

    /// Counts the silence of a busy worker in our own ticks. A tick that came late itself (an idle engine, a frozen phone) starts
    /// the count anew.
    pub(super) fn tick(&mut self, due: Instant) -> Result<(), Over> {
        if due.elapsed() > 2 * self.ticks.period() {
            self.silent_ticks = 0;
            return Ok(());
        }
        if self.silent_ticks == 0 {
            self.cpu_before = self.pid.and_then(cpu_time);
        }
        self.silent_ticks += 1;
        let (limit, most) = if self.ready {
            (STALL_TICKS, STALL_TICKS * PATIENCE_WITH_COMPUTING)
        } else {
            (self.load_ticks, self.load_ticks)
        };
        let silence = self.ticks.period() * self.silent_ticks;
        if self.silent_ticks <= limit || self.silent_ticks <= most && self.computed(silence) {
            return Ok(());
        }
        let seconds = silence.as_secs_f64();
        Err(Over::Died(format!(
            "it made no progress for {seconds:.1} s and was ended"
        )))
    }

    /// Whether the worker had processor time while it was silent.
    fn computed(&self, silence: Duration) -> bool {
        let now = self.pid.and_then(cpu_time);
        let spent = now
            .zip(self.cpu_before)
            .map(|(now, before)| now.saturating_sub(before));
        spent.is_some_and(|spent| spent >= silence.mul_f64(COMPUTING))
    }

    /// Writes a frame; there is room for one after [`can_write`], and at the start.
    pub(super) fn write(&mut self, frame: Vec<u8>) {
        // An error means that the worker is gone. What it said before that is still to be read; then its end is seen.
        let _ = self.outgoing.try_send(frame);
    }
}

/// Waits until there is room for a frame; for ever when the worker is gone.
pub(super) async fn can_write(outgoing: &mpsc::Sender<Vec<u8>>) {
    if outgoing.reserve().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The processor time that a process has had, all threads together (`utime` and `stime` of `proc_pid_stat(5)`).
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may hold anything; after its bracket come state, then 10 numbers, then the two.
    let (_, numbers) = stat.rsplit_once(')')?;
    let mut ticks = numbers
        .split_whitespace()
        .skip(11)
        .map_while(|number| number.parse::<u64>().ok());
    let ticks = ticks.next()? + ticks.next()?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Some(Duration::from_millis(ticks * 1000 / per_second))
}

/// Most frames are a few hundred bytes, and come with one read.
const READ_BYTES: usize = 16 << 10;

pub(super) async fn read_frames(from: OwnedReadHalf, to: mpsc::Sender<io::Result<FromWorker>>) {
    let mut from = BufReader::with_capacity(READ_BYTES, from);
    loop {
        let frame = match wire::read_async(&mut from).await {
            Ok(None) => return,
            Ok(Some(frame)) => Ok(frame),
            // A worker that is killed ends between two frames or in the middle of one: a plain end.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof
                ) =>
            {
                return;
            }
            Err(error) => Err(error),
        };
        let broken = frame.is_err();
        if to.send(frame).await.is_err() || broken {
            return;
        }
    }
}

pub(super) async fn write_frames(mut to: OwnedWriteHalf, mut frames: mpsc::Receiver<Vec<u8>>) {
    while let Some(frame) = frames.recv().await {
        if to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// Makes sure that the worker is gone, and tells how it went where that was not clear.
pub(super) async fn finish(over: Over, launched: &mut Launched) -> Over {
    // Closing our last clone of its socket is the word to go; dying takes it a moment.
    let asked = matches!(over, Over::Stopped | Over::LoadFailed(_));
    let expected = asked || matches!(&over, Over::Died(reason) if reason.is_empty());
    if asked {
        let _ = launched.stream.shutdown(std::net::Shutdown::Both);
    }
    let patience = if expected {
        EXIT_PATIENCE
    } else {
        Duration::ZERO
    };
    let mut killed = false;
    let ending = if let Ok(ending) = timeout(patience, &mut launched.ended).await {
        ending.ok()
    } else {
        killed = true;
        launched.kill();
        let ended = timeout(EXIT_PATIENCE, &mut launched.ended).await;
        ended.ok().and_then(Result::ok)
    };
    if let Some(ending) = &ending
        && !asked
    {
        for line in &ending.last_lines {
            tracing::warn!(target: "pocket_llm::worker_log", "{}", line.escape_debug());
        }
    }
    match (over, ending) {
        (Over::Died(reason), _) if reason.is_empty() && killed => {
            Over::Died("it closed its connection and did not end".into())
        }
        (Over::Died(reason), Some(ending)) if reason.is_empty() => obituary(&ending),
        (Over::Died(reason), None) if reason.is_empty() => {
            Over::Died("it closed its connection".into())
        }
        (over, _) => over,
    }
}

/// The end of a worker that nobody here ended.
fn obituary(ending: &Ending) -> Over {
    match (ending.signal, ending.code) {
        (Some(9), _) if ending.out_of_memory => Over::Killed(
            "killed by the system, which has no memory left: give this server less to do (a smaller --ctx-size, --parallel or \
             model) or more memory"
                .into(),
        ),
        (Some(9), _) => Over::Killed(
            "killed from outside by signal 9: by a person, by the system for memory, or by Android's limit on background \
             processes"
                .into(),
        ),
        (Some(15), _) => Over::Killed("killed from outside by signal 15".into()),
        (Some(signal), _) => Over::Crashed {
            reason: format!("it crashed with signal {signal}"),
            signal: Some(signal),
        },
        (None, Some(code)) => Over::Crashed {
            reason: format!("it ended by itself with status {code}"),
            signal: None,
        },
        (None, None) => Over::Died("it ended".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ending(signal: Option<i32>, code: Option<i32>) -> Ending {
        Ending {
            signal,
            code,
            out_of_memory: false,
            last_lines: Vec::new(),
        }
    }

    #[test]
    fn an_obituary_tells_of_memory() {
        let out_of_memory = |signal| Ending {
            out_of_memory: true,
            ..ending(Some(signal), None)
        };
        let Over::Killed(told) = obituary(&out_of_memory(9)) else {
            panic!("nobody is to blame")
        };
        assert!(told.contains("no memory left"), "{told}");
        assert!(matches!(obituary(&out_of_memory(11)), Over::Crashed { .. }));
    }

    /// Who is to blame decides whether the requests that were there are suspected.
    #[test]
    fn an_obituary_tells_a_kill_from_a_death() {
        for (signal, code, killed, words) in [
            (Some(9), None, true, "killed from outside by signal 9"),
            (Some(15), None, true, "killed from outside by signal 15"),
            (Some(6), None, false, "crashed with signal 6"),
            (Some(11), None, false, "crashed with signal 11"),
            (None, Some(0), false, "by itself with status 0"),
            (None, Some(101), false, "by itself with status 101"),
            (None, None, false, "it ended"),
        ] {
            let (was_killed, told) = match obituary(&ending(signal, code)) {
                Over::Killed(told) => (true, told),
                Over::Died(told) | Over::Crashed { reason: told, .. } => (false, told),
                Over::Stopped | Over::LoadFailed(_) => panic!("it was not asked to end"),
            };
            assert_eq!(was_killed, killed, "{told}");
            assert!(told.contains(words), "{told}");
        }
    }
}
