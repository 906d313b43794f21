//! Steps and KV cells. Keeps its own book of positions, because llama.cpp accepts some wrong ones and aborts on others.

use super::context::TeamContext;
use super::embedder::Embedder;
use crate::engine::{ModelInfo, Token};
use crate::models::memory::Plan;
use crate::worker::decoder::{Decoder, EmbedError, Position, Row, SeqId, StateId, StepError};
use crate::worker::padding::Padding;
use llama_cpp_2::context::session::{LlamaStateSeqFlags, SeqState};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::Instant;

pub(super) struct LlamaDecoder<'m> {
    context: TeamContext<'m>,
    /// Draft models have none.
    embedder: Option<Embedder<'m>>,
    batch: LlamaBatch<'static>,
    padding: Padding,
    padding_rows: u64,
    /// Tokens that each sequence holds.
    held: Vec<Position>,
    context_per_sequence: Position,
    vocab_size: u32,
    most_rows: usize,
    /// Width of the sliding window, if the model has one.
    window: Option<Position>,
    /// Whether the state has no cells that could be cut off (recurrent and hybrid models).
    uncuttable: bool,
    bytes_per_token: u64,
    /// States kept aside, and how many tokens each has.
    states: HashMap<StateId, (SeqState, Position)>,
    next_state: u64,
}

impl<'m> LlamaDecoder<'m> {
    pub(super) fn new(
        model: &LlamaModel,
        context: TeamContext<'m>,
        embedder: Option<Embedder<'m>>,
        info: &ModelInfo,
        plan: &Plan,
    ) -> Self {
        let batch = plan.batch_size;
        let window = model.meta_val_str(&format!("{}.attention.sliding_window", info.architecture));
        Self {
            context,
            embedder,
            batch: LlamaBatch::new(batch as usize, 1),
            padding: Padding::default(),
            padding_rows: 0,
            held: vec![0; info.sequences as usize],
            context_per_sequence: info.context_per_sequence,
            vocab_size: info.vocab_size,
            most_rows: batch as usize,
            window: window
                .ok()
                .and_then(|width| width.parse().ok())
                .filter(|width| *width > 0),
            uncuttable: model.is_recurrent() || model.is_hybrid(),
            bytes_per_token: plan.needs.kv / u64::from(plan.ctx_size.max(1)),
            states: HashMap::new(),
            next_state: 0,
        }
    }

    /// Fills the batch with rows of which every number was looked at, and one of each sequence of `idle`, in the order of sequences.
    fn fill(&mut self, rows: &[Row], idle: &[SeqId]) -> Result<(), StepError> {
        if rows.is_empty() || rows.len() > self.most_rows {
            return Err(StepError(format!(
                "{} rows; a step has 1 to {}",
                rows.len(),
                self.most_rows
            )));
        }
        let mut next = self.held.clone();
        let mut idle = idle.iter().copied().peekable();
        self.batch.clear();
        for row in rows {
            while let Some(seq) = idle.next_if(|idle| *idle < row.seq) {
                self.add(self.row_of_padding(seq), &mut next)?;
            }
            self.add(*row, &mut next)?;
        }
        for seq in idle {
            self.add(self.row_of_padding(seq), &mut next)?;
        }
        Ok(())
    }

    /// Any token does. Its logits are computed as all others are, or the last multiplication would have no whole group.
    fn row_of_padding(&self, seq: SeqId) -> Row {
        Row {
            seq,
            position: self.held[seq.0 as usize],
            token: Token(0),
            logits: true,
        }
    }

    fn add(&mut self, row: Row, next: &mut [Position]) -> Result<(), StepError> {
        let wrong = |what: &str| Err(StepError(format!("{what}: {row:?}")));
        let Some(position) = next.get_mut(row.seq.0 as usize) else {
            return wrong("no such sequence");
        };
        if row.position != *position || row.position >= self.context_per_sequence {
            return wrong("not the sequence's next position");
        }
        *position += 1;
        let (Ok(token), true) = (i32::try_from(row.token.0), row.token.0 < self.vocab_size) else {
            return wrong("no such token");
        };
        let added = self.batch.add(
            LlamaToken::new(token),
            row.position.cast_signed(),
            &[row.seq.0.cast_signed()],
            row.logits,
        );
        if added.is_err() {
            return wrong("no room in the batch");
        }
        Ok(())
    }

    /// Removes a sequence's cells from a position on.
    fn remove(&mut self, seq: SeqId, to: Position) {
        let from = (to > 0).then_some(to);
        if let Err(error) = self
            .context
            .kv_cache_seq_rm(seq.0.cast_signed(), from, None)
        {
            // Only caches that can't be cut refuse, and those are never asked to (`cuttable`).
            tracing::error!(%error, ?seq, to, "a sequence could not be cut");
        }
    }

    /// The idle sequences that join a step, as far as the batch has room for them.
    fn padding(&mut self, rows: &[Row]) -> Vec<SeqId> {
        // They are never more than the others.
        if 2 * rows.len() > self.most_rows {
            return Vec::new();
        }
        let (held, uncuttable) = (&self.held, self.uncuttable);
        // What can't be taken back may join only while it is empty.
        let may = |seq: SeqId| !uncuttable || held[seq.0 as usize] == 0;
        self.padding
            .choose(rows, held, self.context_per_sequence, may)
    }
}

impl Decoder for LlamaDecoder<'_> {
    fn step(
        &mut self,
        rows: &[Row],
        logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), StepError> {
        let idle = self.padding(rows);
        self.fill(rows, &idle)?;
        self.context.prepare(rows.len())?;
        let began = Instant::now();
        let decoded = self.context.decode(&mut self.batch);
        let took = began.elapsed();
        self.padding.took(took);
        // One that failed at once is not a fast one.
        if decoded.is_ok() {
            self.context.took(rows.len(), took);
        }
        for seq in &idle {
            self.remove(*seq, self.held[seq.0 as usize]);
        }
        decoded.map_err(|error| StepError(error.to_string()))?;
        self.padding_rows += idle.len() as u64;
        for row in rows {
            self.held[row.seq.0 as usize] += 1;
        }
        for (index, row) in rows.iter().enumerate().filter(|(_, row)| row.logits) {
            let place = index + idle.partition_point(|idle| *idle < row.seq);
            // The place is in the batch, and this row asked for logits: it can't panic.
            logits(
                index,
                self.context
                    .get_logits_ith(i32::try_from(place).unwrap_or(0)),
            );
        }
        Ok(())
    }

    fn cuttable(&self, seq: SeqId) -> RangeInclusive<Position> {
        let Some(held) = self.held.get(seq.0 as usize).copied() else {
            return 0..=0;
        };
        if self.uncuttable {
            return held..=held;
        }
        // -1 is an empty sequence. A full cache holds everything from 0 on.
        let oldest = self.context.kv_cache_seq_pos_min(seq.0.cast_signed());
        let Ok(oldest) = Position::try_from(oldest) else {
            return 0..=0;
        };
        match self.window {
            // A token at n sees from n - window + 1 on: all of that must still be there.
            Some(window) if oldest > 0 => oldest.saturating_add(window).min(held)..=held,
            None if oldest > 0 => held..=held,
            _ => 0..=held,
        }
    }

    fn truncate(&mut self, seq: SeqId, to: Position) {
        let Some(held) = self.held.get_mut(seq.0 as usize) else {
            return;
        };
        if to >= *held {
            return;
        }
        *held = to;
        self.remove(seq, to);
    }

    fn forgets(&self) -> bool {
        self.uncuttable || self.window.is_some()
    }

    fn takes_back(&self) -> bool {
        // A window's cache has room for the rows of a step besides the window: what a step wrote over was out of sight before it.
        !self.uncuttable
    }

    fn state_bytes(&self, seq: SeqId) -> u64 {
        if self.held.get(seq.0 as usize).is_none_or(|held| *held == 0) {
            return 0;
        }
        let bytes = self
            .context
            .state_seq_get_size_ext(seq.0.cast_signed(), LlamaStateSeqFlags::empty());
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    fn bytes_per_token(&self) -> u64 {
        self.bytes_per_token
    }

    fn save(&mut self, seq: SeqId) -> Option<StateId> {
        let held = *self.held.get(seq.0 as usize).filter(|held| **held > 0)?;
        let state = self
            .context
            .state_seq_get(seq.0.cast_signed(), LlamaStateSeqFlags::empty())
            .inspect_err(|error| tracing::warn!(%error, ?seq, "a sequence could not be saved"))
            .ok()?;
        let id = StateId(self.next_state);
        self.next_state += 1;
        self.states.insert(id, (state, held));
        Some(id)
    }

    fn restore(&mut self, state: StateId, seq: SeqId) -> bool {
        self.clear(seq);
        let Some((state, tokens)) = self.states.get(&state) else {
            return false;
        };
        let Some(held) = self.held.get_mut(seq.0 as usize) else {
            return false;
        };
        // What does not fit leaves the sequence empty.
        match self.context.state_seq_set(state, seq.0.cast_signed()) {
            Ok(()) => *held = *tokens,
            Err(error) => {
                tracing::warn!(%error, ?seq, "a sequence could not be restored");
                return false;
            }
        }
        true
    }

    fn discard(&mut self, state: StateId) {
        self.states.remove(&state);
    }

    fn embed(
        &mut self,
        tokens: &[Token],
        position: Position,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<(), EmbedError> {
        match &mut self.embedder {
            Some(embedder) => embedder.embed(tokens, position, each),
            None => Err(StepError("a draft model makes no embeddings".into()).into()),
        }
    }

    fn embedding_bytes(&self) -> u64 {
        self.embedder.as_ref().map_or(0, Embedder::bytes)
    }

    fn padding_rows(&self) -> u64 {
        self.padding_rows
    }

    fn threads_left_out(&self) -> u32 {
        self.context.left_out()
    }

    fn end_embedding(&mut self) {
        if let Some(embedder) = &mut self.embedder {
            embedder.rest();
        }
    }

    fn clear(&mut self, seq: SeqId) {
        let Some(held) = self.held.get_mut(seq.0 as usize) else {
            return;
        };
        // Also when it holds nothing in our book: a failed step may have left cells.
        *held = 0;
        self.remove(seq, 0);
    }
}
