//! Embeddings: a context of its own, made at the first text and given back when there was none for a while.
//!
//! One text at a time, because llama.cpp's streams mix up texts of unequal length, and every token's embedding, because it would pool a
//! text that comes in parts wrongly.

use super::context_params;
use crate::device::memory::Free;
use crate::engine::{ModelInfo, Token, WorkerConfig};
use crate::models::gguf::Gguf;
use crate::models::memory::{Asked, Bytes, Kernels, plan};
use crate::worker::decoder::{EmbedError, Position, StepError};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;

/// Rows of one decode: the compute buffer grows with them.
const MOST_ROWS: u32 = 64;

pub(super) struct Embedder<'m> {
    backend: &'static LlamaBackend,
    model: &'m LlamaModel,
    /// What the context is to be like, and the bytes that it takes; or why there can be none.
    recipe: Result<(LlamaContextParams, u64), String>,
    context: Option<LlamaContext<'m>>,
    batch: LlamaBatch<'static>,
    /// Rows that it has room for.
    rows: usize,
    context_size: Position,
    vocab_size: u32,
    /// Tokens of the text under way.
    held: Position,
}

impl<'m> Embedder<'m> {
    pub(super) fn new(
        backend: &'static LlamaBackend,
        model: &'m LlamaModel,
        header: &Gguf,
        config: &WorkerConfig,
        info: &ModelInfo,
    ) -> Self {
        let rows = MOST_ROWS.min(config.batch_size).max(1);
        Self {
            backend,
            model,
            recipe: recipe(model, header, config, info, rows),
            context: None,
            batch: LlamaBatch::new(rows as usize, 1),
            rows: rows as usize,
            context_size: info.context_per_sequence,
            vocab_size: info.vocab_size,
            held: 0,
        }
    }

    pub(super) fn embed(
        &mut self,
        tokens: &[Token],
        position: Position,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<(), EmbedError> {
        let mut context = match self.context.take() {
            Some(context) => context,
            None => self.make()?,
        };
        if position == 0 {
            context.clear_kv_cache();
            self.held = 0;
        }
        let decoded = self.decode(&mut context, tokens, position, each);
        // After an error the cells can't be trusted: the next text gets a new context.
        if decoded.is_ok() {
            self.context = Some(context);
        }
        Ok(decoded?)
    }

    /// Bytes that the context takes, if there is one.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = self.recipe.as_ref().map_or(0, |(_, bytes)| *bytes);
        if self.context.is_some() { bytes } else { 0 }
    }

    /// Gives the memory back.
    pub(super) fn rest(&mut self) {
        self.context = None;
    }

    fn make(&self) -> Result<LlamaContext<'m>, EmbedError> {
        let (params, bytes) = self.recipe.clone().map_err(EmbedError::NoRoom)?;
        if let Some(free) = Free::here().filter(|free| free.bytes < bytes) {
            return Err(EmbedError::NoRoom(format!(
                "embeddings need {} more memory, but {} are free: give this server more, or a smaller --ctx-size",
                Bytes(bytes),
                Bytes(free.bytes)
            )));
        }
        // This thread may be on fewer cores than when the model was loaded.
        let threads = i32::try_from(crate::device::allowed_threads()).unwrap_or(1);
        let threads = params.n_threads_batch().min(threads);
        let params = params.with_n_threads_batch(threads);
        let made = self.model.new_context(self.backend, params);
        let context = made.map_err(|error| StepError(format!("no context: {error}")))?;
        tracing::info!(needs = %Bytes(bytes), "a context for embeddings");
        Ok(context)
    }

    fn decode(
        &mut self,
        context: &mut LlamaContext<'m>,
        tokens: &[Token],
        position: Position,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<(), StepError> {
        let end = tokens.len() as u64 + u64::from(position);
        if position != self.held || end > u64::from(self.context_size) {
            return Err(StepError(format!(
                "{} tokens at {position} of a text that has {}",
                tokens.len(),
                self.held
            )));
        }
        for rows in tokens.chunks(self.rows) {
            self.batch.clear();
            for (position, token) in (self.held..).zip(rows) {
                let id = i32::try_from(token.0).ok();
                let id = id.filter(|_| token.0 < self.vocab_size);
                let id = id.ok_or_else(|| StepError(format!("no such token: {}", token.0)))?;
                let added = self
                    .batch
                    .add(LlamaToken::new(id), position.cast_signed(), &[0], true);
                added.map_err(|error| StepError(error.to_string()))?;
            }
            let decoded = context.decode(&mut self.batch);
            decoded.map_err(|error| StepError(error.to_string()))?;
            for row in 0..self.batch.n_tokens() {
                let embedding = context.embeddings_ith(row);
                each(embedding.map_err(|error| StepError(error.to_string()))?);
            }
            self.held += Position::try_from(rows.len()).unwrap_or(Position::MAX);
        }
        Ok(())
    }
}

fn recipe(
    model: &LlamaModel,
    header: &Gguf,
    config: &WorkerConfig,
    info: &ModelInfo,
    rows: u32,
) -> Result<(LlamaContextParams, u64), String> {
    let causal = model.meta_val_str(&format!("{}.attention.causal", info.architecture));
    if causal.is_ok_and(|causal| causal == "false") {
        return Err("this model reads texts as a whole, which this server can't give it: use another one for embeddings".into());
    }
    let asked = Asked {
        ctx_size: Some(info.context_per_sequence),
        parallel: Some(1),
        batch_size: Some(rows),
        cache_type: config.cache_type,
        cache_bytes: Some(0),
        no_drafts: true,
    };
    let plan = plan(header, &asked, Kernels::here(), None).map_err(|error| error.to_string())?;
    // Each row is put out here, so all of the compute buffer is written to.
    let needs = &plan.needs;
    let bytes = needs.kv + needs.compute + needs.reserved + needs.output;
    let params = context_params(&plan, config).map_err(|error| error.to_string())?;
    let params = params
        .with_embeddings(true)
        .with_pooling_type(LlamaPoolingType::None);
    Ok((params, bytes))
}
