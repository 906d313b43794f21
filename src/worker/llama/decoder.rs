//! Steps and KV cells. Keeps its own book of positions, because llama.cpp accepts some wrong ones and aborts on others.

use super::context::TeamContext;
use super::embedder::Embedder;
use crate::engine::ModelInfo;
use crate::engine::Token;
use crate::worker::decoder::{Decoder, EmbedError, Position, Row, SeqId, StepError};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use std::ops::RangeInclusive;

pub(super) struct LlamaDecoder<'m> {
    context: TeamContext<'m>,
    embedder: Embedder<'m>,
    batch: LlamaBatch<'static>,
    /// Tokens that each sequence holds.
    held: Vec<Position>,
    context_per_sequence: Position,
    vocab_size: u32,
    most_rows: usize,
    /// Width of the sliding window, if the model has one.
    window: Option<Position>,
    /// Whether the state has no cells that could be cut off (recurrent and hybrid models).
    uncuttable: bool,
}

impl<'m> LlamaDecoder<'m> {
    pub(super) fn new(
        model: &LlamaModel,
        context: TeamContext<'m>,
        embedder: Embedder<'m>,
        info: &ModelInfo,
        batch: u32,
    ) -> Self {
        let window = model.meta_val_str(&format!("{}.attention.sliding_window", info.architecture));
        Self {
            context,
            embedder,
            batch: LlamaBatch::new(batch as usize, 1),
            held: vec![0; info.sequences as usize],
            context_per_sequence: info.context_per_sequence,
            vocab_size: info.vocab_size,
            most_rows: batch as usize,
            window: window
                .ok()
                .and_then(|width| width.parse().ok())
                .filter(|width| *width > 0),
            uncuttable: model.is_recurrent() || model.is_hybrid(),
        }
    }

    /// Fills the batch with rows of which every number was looked at.
    fn fill(&mut self, rows: &[Row]) -> Result<(), StepError> {
        let wrong = |what: &str, row: &Row| Err(StepError(format!("{what}: {row:?}")));
        if rows.is_empty() || rows.len() > self.most_rows {
            return Err(StepError(format!(
                "{} rows; a step has 1 to {}",
                rows.len(),
                self.most_rows
            )));
        }
        let mut next = self.held.clone();
        self.batch.clear();
        for row in rows {
            let Some(position) = next.get_mut(row.seq.0 as usize) else {
                return wrong("no such sequence", row);
            };
            if row.position != *position || row.position >= self.context_per_sequence {
                return wrong("not the sequence's next position", row);
            }
            *position += 1;
            let (Ok(token), true) = (i32::try_from(row.token.0), row.token.0 < self.vocab_size)
            else {
                return wrong("no such token", row);
            };
            let added = self.batch.add(
                LlamaToken::new(token),
                row.position.cast_signed(),
                &[row.seq.0.cast_signed()],
                row.logits,
            );
            if added.is_err() {
                return wrong("no room in the batch", row);
            }
        }
        Ok(())
    }
}

impl Decoder for LlamaDecoder<'_> {
    fn step(
        &mut self,
        rows: &[Row],
        logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), StepError> {
        self.fill(rows)?;
        self.context.prepare(rows.len())?;
        self.context
            .decode(&mut self.batch)
            .map_err(|error| StepError(error.to_string()))?;
        for row in rows {
            self.held[row.seq.0 as usize] += 1;
        }
        for (index, _) in rows.iter().enumerate().filter(|(_, row)| row.logits) {
            // The index is below the batch size, and this row asked for logits: it can't panic.
            logits(
                index,
                self.context
                    .get_logits_ith(i32::try_from(index).unwrap_or(0)),
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
        let from = (to > 0).then_some(to);
        if let Err(error) = self
            .context
            .kv_cache_seq_rm(seq.0.cast_signed(), from, None)
        {
            // Only caches that can't be cut refuse, and those are never asked to (`cuttable`).
            tracing::error!(%error, ?seq, to, "a sequence could not be cut");
        }
        *held = to;
    }

    fn embed(
        &mut self,
        tokens: &[Token],
        position: Position,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<(), EmbedError> {
        self.embedder.embed(tokens, position, each)
    }

    fn end_embedding(&mut self) {
        self.embedder.rest();
    }

    fn clear(&mut self, seq: SeqId) {
        let Some(held) = self.held.get_mut(seq.0 as usize) else {
            return;
        };
        // Also when it holds nothing in our book: a failed step may have left cells.
        if let Err(error) = self
            .context
            .kv_cache_seq_rm(seq.0.cast_signed(), None, None)
        {
            tracing::error!(%error, ?seq, "a sequence could not be cleared");
        }
        *held = 0;
    }
}
