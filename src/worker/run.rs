//! The loop of the engine thread: receive → admit → plan → step → emit → retire.
//!
//! It owns the decoder and everything that changes, and never waits for a reader of text. Decisions are made in
//! `scheduler.rs` and `cache.rs`; what a sequence says and when it ends is in `sequence.rs`.

mod draft;
mod prefix;
mod step;

use super::cache::{Cache, Rules};
use super::decoder::{Decoder, Draft, EmbedError, Row, Vocab};
use super::embedding::{Round, Texts};
use super::scheduler::{FairQueue, Pace, Turns};
use super::sequence::{Arrival, Sequence};
use super::speculation::{Costs, Pool};
use crate::engine::wire::RequestId;
use crate::engine::{Answer, CacheScope, EngineError, Event, FinishReason, Pooling, WorkerStats};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// What reaches the loop.
pub enum Inbound {
    /// A request, ready to run.
    Arrival(Box<Arrival>),
    /// Texts to be embedded.
    Embed(Box<Texts>),
    /// A request that needs no step, or can't have one: its last event.
    Done(RequestId, Event),
    /// Something changed that the loop looks at by itself (a request was cancelled).
    Wake,
    /// The front is gone: end.
    Closed,
}

/// What a turn of the loop brought.
pub struct Report {
    /// Events in order.
    pub events: Vec<(RequestId, Event)>,
    /// The loop's numbers.
    pub stats: WorkerStats,
    /// Whether an answer's first token is told while there is more to compute.
    pub first: bool,
}

/// Sizes that the loop works within.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Sequences that run at once.
    pub sequences: u32,
    /// Tokens that one of them has room for.
    pub context_per_sequence: u32,
    /// Rows of a step at most.
    pub batch_size: u32,
    /// How long a step should take at most, in milliseconds.
    pub step_ms: u32,
    /// How a text's embedding is made of those of its tokens.
    pub pooling: Pooling,
    /// Bytes that states of earlier prompts may take.
    pub cache_bytes: u64,
    /// Whose prompts and answers a request may profit from.
    pub cache_scope: CacheScope,
    /// What rows are taken to cost where drafts are not to depend on what was measured.
    pub costs: Option<Costs>,
    /// Rows of a step that may ask for logits, where tokens are drafted; 0 drafts none.
    pub draft_rows: u32,
    /// What embeddings need of memory is kept for this long when there are none to make.
    pub embedding_rest: Duration,
}

/// Rows of a text that is embedded beside answers, each step.
pub const EMBEDDING_ROWS: u32 = 8;

/// Runs until the inbox closes or `report` says that nobody listens.
pub fn run<'a>(
    sizes: Sizes,
    vocab: Arc<dyn Vocab>,
    (decoder, draft): (&'a mut dyn Decoder, Option<Draft<'a>>),
    inbox: &Receiver<Inbound>,
    report: &mut dyn FnMut(Report) -> bool,
) {
    let apart = sizes.cache_scope == CacheScope::Client;
    let rules = Rules {
        bytes: sizes.cache_bytes,
        bytes_per_token: decoder.bytes_per_token(),
        apart,
        forgets: decoder.forgets(),
    };
    let mut engine = Engine {
        sizes,
        vocab,
        decoder,
        queue: FairQueue::default(),
        running: Vec::new(),
        texts: Round::default(),
        embedded: None,
        rested: false,
        cache: Cache::new(sizes.sequences, rules),
        pace: Pace::new(sizes.step_ms),
        turns: Turns::default(),
        pool: Pool::new(apart),
        costs: sizes.costs.unwrap_or_default(),
        model: draft
            .filter(|_| sizes.draft_rows > 0)
            .map(|draft| draft::Model::new(draft, sizes.sequences, sizes.costs)),
        events: Vec::new(),
        first: false,
        rows: Vec::new(),
        stats: WorkerStats {
            kv_cells: sizes.context_per_sequence * sizes.sequences,
            ..WorkerStats::default()
        },
    };
    while engine.receive(inbox) {
        let turn = Instant::now();
        let (decode, cancelled) = (engine.stats.decode_us, engine.stats.cancelled);
        engine.drop_the_departed(turn);
        engine.retire();
        engine.follow();
        engine.admit();
        engine.follow();
        // Who was accepted or refused hears it now, not after a step; and when the last request has left, there is none.
        let news = !engine.events.is_empty() || engine.stats.cancelled > cancelled || engine.rested;
        if news && !engine.tell(report) {
            return;
        }
        let stepped = engine.step();
        if !engine.embed() && !stepped {
            continue;
        }
        engine.retire();
        let decode = engine.stats.decode_us - decode;
        engine.stats.overhead_us += micros(turn.elapsed()).saturating_sub(decode);
        if !engine.tell(report) {
            return;
        }
    }
}

struct Engine<'a> {
    sizes: Sizes,
    vocab: Arc<dyn Vocab>,
    decoder: &'a mut dyn Decoder,
    queue: FairQueue<Box<Arrival>>,
    /// In the order of their sequences.
    running: Vec<Sequence>,
    /// Texts to be embedded.
    texts: Round,
    /// When the decoder last made an embedding, if it holds memory for them.
    embedded: Option<Instant>,
    /// Whether that memory was given back since the last report.
    rested: bool,
    cache: Cache,
    pace: Pace,
    /// Of answers and prompts.
    turns: Turns,
    /// What was said before, for drafts.
    pool: Pool,
    costs: Costs,
    /// A smaller model that guesses.
    model: Option<draft::Model<'a>>,
    events: Vec<(RequestId, Event)>,
    /// Whether an answer began in the last step.
    first: bool,
    rows: Vec<Row>,
    stats: WorkerStats,
}

impl Engine<'_> {
    /// Takes what is waiting; waits itself when there is nothing else to do. `false` is the end.
    fn receive(&mut self, inbox: &Receiver<Inbound>) -> bool {
        if self.running.is_empty() && self.queue.is_empty() && self.texts.is_empty() {
            let Some(inbound) = self.wait(inbox) else {
                return false;
            };
            if !self.take_in(inbound) {
                return false;
            }
        }
        loop {
            match inbox.try_recv() {
                Ok(inbound) => {
                    if !self.take_in(inbound) {
                        return false;
                    }
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// The next thing that comes. What embeddings need of memory goes when none are asked for.
    fn wait(&mut self, inbox: &Receiver<Inbound>) -> Option<Inbound> {
        if let Some(embedded) = self.embedded {
            let rest = self.sizes.embedding_rest;
            let rest = rest.saturating_sub(embedded.elapsed());
            match inbox.recv_timeout(rest) {
                Ok(inbound) => return Some(inbound),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    self.end_embedding();
                    return Some(Inbound::Wake);
                }
            }
        }
        inbox.recv().ok()
    }

    fn take_in(&mut self, inbound: Inbound) -> bool {
        match inbound {
            Inbound::Closed => return false,
            Inbound::Wake => {}
            Inbound::Done(id, event) => self.events.push((id, event)),
            Inbound::Embed(texts) => self.texts.push(texts),
            Inbound::Arrival(arrival) => {
                let id = arrival.id;
                let prompt_tokens = u32::try_from(arrival.prompt.len()).unwrap_or(u32::MAX);
                let client = arrival.client.clone();
                let ahead = self.queue.push(&client, id, arrival);
                let position = u32::try_from(ahead).unwrap_or(u32::MAX);
                self.events.push((
                    id,
                    Event::Accepted {
                        prompt_tokens,
                        position,
                    },
                ));
            }
        }
        true
    }

    /// Forgets, before any work is spent on them, requests whose reader has left or whose time is over.
    fn drop_the_departed(&mut self, now: Instant) {
        for arrival in self
            .queue
            .remove(|arrival| arrival.is_cancelled() || arrival.is_late(now))
        {
            self.stats.cancelled += 1;
            if !arrival.is_cancelled() {
                self.events
                    .push((arrival.id, Event::Failed(EngineError::DeadlineExceeded)));
            }
        }
        let gone = |texts: &Texts| texts.is_cancelled() || texts.is_late(now);
        for texts in self.texts.remove(gone) {
            self.stats.cancelled += 1;
            if !texts.is_cancelled() {
                self.events
                    .push((texts.id, Event::Failed(EngineError::DeadlineExceeded)));
            }
        }
        let mut at = 0;
        while let Some(sequence) = self.running.get_mut(at) {
            let cancelled = sequence.arrival.is_cancelled();
            let late = sequence.arrival.is_late(now);
            if late && !cancelled && sequence.has_spoken() {
                self.stats.cancelled += 1;
                sequence.stop(FinishReason::Deadline);
            } else if cancelled || late {
                self.stats.cancelled += 1;
                if !cancelled {
                    let failed = Event::Failed(EngineError::DeadlineExceeded);
                    self.events.push((sequence.arrival.id, failed));
                }
                self.cache.release(sequence.seq);
                self.running.remove(at);
                continue;
            }
            at += 1;
        }
    }

    fn end_embedding(&mut self) {
        self.decoder.end_embedding();
        self.embedded = None;
        self.stats.embedding_bytes = 0;
        self.rested = true;
    }

    /// Decodes the next part of a text that is to be embedded. `false` if there is none.
    fn embed(&mut self) -> bool {
        let Some(texts) = self.texts.current() else {
            let rest = self.sizes.embedding_rest;
            if self.embedded.is_some_and(|at| at.elapsed() >= rest) {
                self.end_embedding();
            }
            return false;
        };
        // Beside answers only a few rows at a time: every stream waits for them.
        let most = if self.running.is_empty() {
            self.pace.prefill_rows(0, self.sizes.batch_size)
        } else {
            EMBEDDING_ROWS
        };
        let (tokens, position) = texts.next_chunk(most as usize);
        let mut embeddings: Vec<Vec<f32>> = Vec::with_capacity(tokens.len());
        let began = Instant::now();
        self.embedded = Some(began);
        let decoded = self.decoder.embed(tokens, position, &mut |embedding| {
            embeddings.push(embedding.to_vec());
        });
        self.stats.embedding_bytes = self.decoder.embedding_bytes();
        self.stats.decode_us += micros(began.elapsed());
        self.stats.prefill_rows += tokens.len() as u64;
        texts.take(self.sizes.pooling, embeddings.iter().map(Vec::as_slice));
        let failed = decoded.err();
        if failed.is_none() && !texts.is_done() {
            if !texts.is_mid_text() {
                self.texts.next_turn();
            }
            return true;
        }
        let Some(texts) = self.texts.end() else {
            return true;
        };
        let id = texts.id;
        let event = match failed {
            None => Event::Answered(Answer::Embeddings(texts.finish())),
            Some(EmbedError::NoRoom(reason)) => Event::Failed(EngineError::NotReady(reason)),
            Some(EmbedError::Step(error)) => {
                Event::Failed(EngineError::Internal(error.to_string()))
            }
        };
        self.events.push((id, event));
        true
    }

    /// Reports what happened since the last time. `false` means that nobody listens.
    fn tell(&mut self, report: &mut dyn FnMut(Report) -> bool) -> bool {
        self.stats.running = count(self.running.len());
        self.stats.queued = count(self.queue.len());
        self.stats.kv_cells_used = count(self.cache.cells());
        self.stats.saved_bytes = self.cache.saved_bytes();
        self.stats.padding_rows = self.decoder.padding_rows();
        self.stats.threads_left_out = self.decoder.threads_left_out();
        self.rested = false;
        let began = processor_time();
        let heard = report(Report {
            events: std::mem::take(&mut self.events),
            stats: self.stats.clone(),
            first: std::mem::take(&mut self.first) && !self.running.is_empty(),
        });
        // Told with the next report: encoding and writing are overhead too. That the front takes the core then is not.
        self.stats.overhead_us += micros(processor_time().saturating_sub(began));
        heard
    }
}

/// What the calling thread has computed so far.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
