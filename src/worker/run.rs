//! The loop of the engine thread: receive → admit → plan → step → emit → retire.
//!
//! It owns the decoder and everything that changes, and never waits for a reader of text. Decisions are made in
//! `scheduler.rs` and `cache.rs`; what a sequence says and when it ends is in `sequence.rs`.

use super::cache::Cache;
use super::decoder::{Decoder, EmbedError, Row, SeqId, Vocab};
use super::embedding::{Round, Texts};
use super::scheduler::{FairQueue, Pace, share_rows};
use super::sequence::{Arrival, Sequence};
use super::text::Piece;
use crate::engine::wire::RequestId;
use crate::engine::{Answer, EngineError, Event, FinishReason, Pooling, Token, WorkerStats};
use std::collections::HashMap;
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
    /// What embeddings need of memory is kept for this long when there are none to make.
    pub embedding_rest: Duration,
}

/// Rows of a text that is embedded beside answers, each step.
pub const EMBEDDING_ROWS: u32 = 8;

/// Runs until the inbox closes or `report` says that nobody listens.
pub fn run(
    sizes: Sizes,
    vocab: Arc<dyn Vocab>,
    decoder: &mut dyn Decoder,
    inbox: &Receiver<Inbound>,
    report: &mut dyn FnMut(Report) -> bool,
) {
    let mut engine = Engine {
        sizes,
        vocab,
        decoder,
        queue: FairQueue::default(),
        running: Vec::new(),
        texts: Round::default(),
        embedded: None,
        rested: false,
        cache: Cache::new(sizes.sequences),
        pace: Pace::new(sizes.step_ms),
        events: Vec::new(),
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
        engine.admit();
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
    events: Vec<(RequestId, Event)>,
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

    /// Gives free sequences to those who are next. A request is admitted only when a whole sequence is free, so a step
    /// never lacks cells.
    fn admit(&mut self) {
        while self.cache.any_idle() {
            let Some(arrival) = self.queue.pop() else {
                return;
            };
            let decoder = &self.decoder;
            let choice = self
                .cache
                .take(&arrival.prompt, arrival.reuse, |seq| decoder.cuttable(seq));
            // There is one: `any_idle` said so.
            let Some(choice) = choice else { return };
            if choice.keep == 0 {
                self.decoder.clear(choice.seq);
            } else {
                self.decoder.truncate(choice.seq, choice.keep);
            }
            let sequence = Sequence::new(*arrival, choice.seq, choice.keep);
            let started = Event::Started {
                cached_tokens: sequence.cached(),
            };
            self.events.push((sequence.arrival.id, started));
            let place = self
                .running
                .partition_point(|other| other.seq < sequence.seq);
            self.running.insert(place, sequence);
        }
    }

    /// One step: a row for each running answer, and prefill chunks in what time is left. Rows are in the order of their
    /// sequences, which llama.cpp needs to take them all in one pass over the weights.
    fn step(&mut self) -> bool {
        self.rows.clear();
        let running = || self.running.iter().filter(|sequence| !sequence.is_done());
        let decoding = count(
            running()
                .filter(|sequence| sequence.decode_row().is_some())
                .count(),
        );
        let prompts: Vec<u32> = running().map(Sequence::prefill_left).collect();
        let budget = self.pace.prefill_rows(decoding, self.sizes.batch_size);
        for (sequence, share) in running().zip(share_rows(&prompts, budget)) {
            match sequence.decode_row() {
                Some(row) => self.rows.push(row),
                None => sequence.append_prefill(share, &mut self.rows),
            }
        }
        if self.rows.is_empty() {
            return false;
        }
        let prefill = count(self.rows.len()) - decoding;
        let began = Instant::now();
        for sequence in &mut self.running {
            sequence.begin(began);
        }
        self.decode(decoding, prefill);
        true
    }

    fn decode(&mut self, decoding: u32, prefill: u32) {
        let owners: HashMap<SeqId, usize> = self
            .running
            .iter()
            .enumerate()
            .map(|(index, sequence)| (sequence.seq, index))
            .collect();
        let mut chosen: Vec<(usize, Token)> = Vec::with_capacity(self.running.len());
        let mut sampling = Duration::ZERO;
        let began = Instant::now();
        let (rows, running, vocab) = (&self.rows, &mut self.running, &*self.vocab);
        let result = self.decoder.step(rows, &mut |row, logits| {
            let began = Instant::now();
            if let Some(row) = rows.get(row)
                && let Some(owner) = owners.get(&row.seq)
            {
                let token = running[*owner].sample(logits, row.position + 1, vocab);
                chosen.extend(token.map(|token| (*owner, token)));
            }
            sampling += began.elapsed();
        });
        let took = began.elapsed().saturating_sub(sampling);
        self.stats.steps += 1;
        self.stats.decode_us += micros(took);
        if let Err(error) = result {
            tracing::error!(%error, rows = self.rows.len(), "a step failed");
            self.fail_step(&error.to_string());
            return;
        }
        self.pace
            .observe(decoding, prefill, took.as_secs_f64() * 1000.0);
        self.stats.decode_rows += u64::from(decoding);
        self.stats.prefill_rows += u64::from(prefill);
        for row in &self.rows {
            self.cache.push(row.seq, row.token);
            if let Some(owner) = owners.get(&row.seq) {
                self.running[*owner].decoded();
            }
        }
        self.take_tokens(&chosen);
    }

    /// Makes text of the tokens that were chosen.
    fn take_tokens(&mut self, chosen: &[(usize, Token)]) {
        let now = Instant::now();
        for sequence in &mut self.running {
            if sequence.prefill_left() == 0
                && let Some(echo) = sequence.take_echo(&*self.vocab)
            {
                self.events.push((sequence.arrival.id, echo));
            }
        }
        let (mut bytes, mut pieces) = (Vec::new(), Vec::new());
        for (owner, token) in chosen {
            let sequence = &mut self.running[*owner];
            bytes.clear();
            let said = if self.vocab.is_end(*token) {
                None
            } else {
                self.vocab.append_bytes(*token, &mut bytes);
                Some(bytes.as_slice())
            };
            sequence.accept(*token, said, now, &mut pieces);
            emit(&mut self.events, sequence, &mut pieces);
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

    /// After a failed step the sequences of its rows can't be trusted: their requests end, their cells are cleared.
    fn fail_step(&mut self, error: &str) {
        let failed: Vec<SeqId> = self.rows.iter().map(|row| row.seq).collect();
        let ended = self
            .running
            .extract_if(.., |sequence| failed.contains(&sequence.seq));
        for sequence in ended {
            self.decoder.clear(sequence.seq);
            self.cache.forget(sequence.seq);
            self.cache.release(sequence.seq);
            let error = EngineError::Internal(error.to_owned());
            self.events
                .push((sequence.arrival.id, Event::Failed(error)));
        }
    }

    /// Ends what is done; the sequence keeps its cells for whoever continues them.
    fn retire(&mut self) {
        for mut sequence in self.running.extract_if(.., |sequence| sequence.is_done()) {
            let (id, mut said) = (sequence.arrival.id, Vec::new());
            let finished = sequence.finish(&mut said);
            self.events
                .extend(said.into_iter().map(|event| (id, event)));
            let left = sequence.take_logprobs();
            // What a stop string cut off is no part of the answer; the bytes of a broken character are.
            if !left.is_empty()
                && matches!(&finished, Event::Finished(outcome)
                    if !matches!(outcome.reason, FinishReason::Stop | FinishReason::ToolCalls))
            {
                self.events.push((
                    sequence.arrival.id,
                    Event::Text {
                        text: String::new(),
                        thinking: false,
                        logprobs: left,
                    },
                ));
            }
            self.events.push((sequence.arrival.id, finished));
            self.cache.release(sequence.seq);
        }
    }

    /// Reports what happened since the last time. `false` means that nobody listens.
    fn tell(&mut self, report: &mut dyn FnMut(Report) -> bool) -> bool {
        self.stats.running = count(self.running.len());
        self.stats.queued = count(self.queue.len());
        self.stats.kv_cells_used = count(self.cache.cells());
        self.rested = false;
        let began = Instant::now();
        let heard = report(Report {
            events: std::mem::take(&mut self.events),
            stats: self.stats.clone(),
        });
        // Told with the next report: encoding and writing are overhead too.
        self.stats.overhead_us += micros(began.elapsed());
        heard
    }
}

fn emit(events: &mut Vec<(RequestId, Event)>, sequence: &mut Sequence, pieces: &mut Vec<Piece>) {
    let (id, mut said) = (sequence.arrival.id, Vec::new());
    sequence.tell(pieces, &mut said);
    events.extend(said.into_iter().map(|event| (id, event)));
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
