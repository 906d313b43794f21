//! The sum of what a loaded model takes.

use super::kernels::{Kernels, Weights};
use super::layers::Cells;
use crate::engine::CacheType;
use crate::models::gguf::Gguf;
use std::fmt;

/// Cells come in multiples of this (`GGML_PAD(…, 256)` in llama-context.cpp and llama-kv-cache-iswa.cpp).
pub(super) const CELLS: u64 = 256;

/// Bytes that a loaded model takes, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Of the mapped file, what computing reads.
    pub weights: u64,
    /// Of the mapped file, what is read while loading or a row at a time: weights that are computed with in a copy, and
    /// embeddings that are looked up. The system drops such pages when it needs room, so [`Needs::total`] leaves them out.
    /// (Tried: Gemma 3 1B in four bits loads and answers in a cgroup of 830 MiB, although its buffers sum up to 1,090.)
    pub cold: u64,
    /// Copies of weights in the layout that the kernels like best.
    pub repacked: u64,
    /// Keys and values of all cells, and states of recurrent layers.
    pub kv: u64,
    /// Of llama.cpp's compute buffer, what steps write to: what the layers compute for all rows, and logits for as many rows as ask
    /// for them.
    pub compute: u64,
    /// The rest of the compute buffer: room for logits of all rows of a step. It takes addresses and no memory, as long as no step
    /// asks for so many, so [`Needs::total`] leaves it out. (Measured with 512 rows beside 128, by `RssAnon` after long prompts and
    /// four streams: 4 MiB more for SmolLM2-135M and 3 for Qwen 2.5 1.5B, whose logits alone would be 72 and 223 MiB more.)
    pub reserved: u64,
    /// llama.cpp's output buffer: a row of logits for each sequence.
    pub output: u64,
    /// Logits of drafted tokens, beside the output buffer that is there from the start.
    pub drafts: u64,
    /// States of earlier prompts, beside the KV cache.
    pub prompt_cache: u64,
    /// A draft model with its own cells and buffers.
    pub draft_model: u64,
    /// The worker itself: vocabulary, tokeniser, graphs, code.
    pub process: u64,
}

/// Logits that a step may take while tokens are drafted.
const LOGITS: u64 = 20 << 20;

/// Rows of a step that may ask for logits while tokens are drafted: 32, or 16 where a vocabulary is so large that they would take more
/// than 20 MiB, or fewer still, but 8 in any case. Kernels take groups of 16 rows: 16 of Qwen 2.5 1.5B in 158 ms, 20 in 211, 24 in 239 and
/// 32 in 269 (llama-batched-bench b11549, two cores of an AMD EPYC, 2026-11-28).
pub fn logit_rows(vocabulary: u32) -> u32 {
    let rows = match LOGITS / (4 * u64::from(vocabulary.max(1))) {
        few @ 0..16 => few.max(8),
        enough => enough.min(32) / 16 * 16,
    };
    u32::try_from(rows).unwrap_or(8)
}

/// Rows of a step that may ask for logits because somebody wants to know how likely a prompt was.
pub const SCORED_ROWS: u32 = 16;

/// How a model is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// Cells in all, before rounding.
    pub(super) cells: u32,
    pub(super) sequences: u32,
    pub(super) rows: u32,
    /// Whether tokens are drafted.
    pub(super) drafts: bool,
}

/// What a header tells, looked up once: a plan tries many sizes.
pub(super) struct Facts {
    weights: Weights,
    cells: Cells,
    vocabulary: u64,
    /// Numbers that the layers compute for a row at the fullest, without masks.
    row_numbers: u64,
    /// The same where a row's logits take more: what llama.cpp reserves.
    reserved_numbers: u64,
    process: u64,
}

impl Facts {
    pub(super) fn of(model: &Gguf, kernels: Kernels, cache_type: CacheType) -> Self {
        let width = model.setting("embedding_length").unwrap_or(0);
        let (layer, vocabulary) = (layer_numbers(model), model.vocab_size());
        let beside = |numbers: u64| numbers.saturating_add(width.saturating_mul(5));
        Self {
            weights: Weights::of(model, kernels),
            cells: Cells::of(model, cache_type),
            vocabulary,
            row_numbers: beside(layer),
            reserved_numbers: beside(layer.max(vocabulary)),
            process: process(model),
        }
    }

    /// What one way to run the model takes more than another, in bytes.
    pub(super) fn apart(&self, more: Run, less: Run) -> u64 {
        let [more, less] = [more, less].map(|run| self.needs(run).total());
        more.saturating_sub(less)
    }

    pub(super) fn needs(&self, run: Run) -> Needs {
        let (weights, cells) = (self.weights, self.cells);
        let sequences = u64::from(run.sequences.max(1));
        // A step has no more rows than there are cells.
        let rows = u64::from(run.rows.min(run.cells));
        let share = (u64::from(run.cells) / sequences).next_multiple_of(CELLS);
        let windowed = cells
            .window
            .saturating_add(rows)
            .min(share)
            .next_multiple_of(CELLS);
        let per_sequence = cells
            .full
            .saturating_mul(share)
            .saturating_add(cells.windowed.saturating_mul(windowed))
            .saturating_add(cells.state);
        let seen = |bytes: u64, cells: u64| if bytes > 0 { cells } else { 0 };
        let masked = seen(cells.full, share) + seen(cells.windowed, windowed);
        let row_bytes = |numbers: u64| numbers.saturating_mul(4).saturating_add(masked * 2);
        let drafted = if run.drafts {
            let vocabulary = u32::try_from(self.vocabulary).unwrap_or(u32::MAX);
            u64::from(logit_rows(vocabulary)).min(rows)
        } else {
            0
        };
        let arena = rows.saturating_mul(row_bytes(self.reserved_numbers));
        // Drafts or one scored prompt, and one row of each other sequence.
        let asking = drafted.max(u64::from(SCORED_ROWS)) + sequences - 1;
        let compute = rows
            .saturating_mul(row_bytes(self.row_numbers))
            .saturating_add(self.vocabulary.saturating_mul(4 * asking.min(rows)))
            .min(arena);
        Needs {
            weights: weights.read,
            cold: weights.mapped.saturating_sub(weights.read),
            repacked: weights.repacked,
            kv: per_sequence.saturating_mul(sequences),
            compute,
            reserved: arena - compute,
            output: self.vocabulary.saturating_mul(4 * sequences),
            drafts: self
                .vocabulary
                .saturating_mul(4 * drafted.saturating_sub(sequences)),
            prompt_cache: 0,
            draft_model: 0,
            process: self.process,
        }
    }
}

impl Needs {
    /// What has to be there, in bytes, or the system kills or crawls.
    pub fn total(&self) -> u64 {
        [
            self.weights,
            self.repacked,
            self.kv,
            self.compute,
            self.output,
            self.drafts,
            self.prompt_cache,
            self.draft_model,
            self.process,
        ]
        .into_iter()
        .fold(0, u64::saturating_add)
    }

    /// What llama.cpp reports as buffers when it has loaded a model: with the cold part of the mapping and all of the compute buffer,
    /// and without what comes later.
    pub fn buffers(&self) -> u64 {
        let ours = self.process + self.drafts + self.prompt_cache + self.draft_model;
        (self.total() - ours)
            .saturating_add(self.cold)
            .saturating_add(self.reserved)
    }
}

/// Numbers of 4 bytes that the widest part of a layer computes for a row.
///
/// Calibrated against what llama.cpp reserves: the logits of all rows, or three matrices of the feed-forward part where those are
/// wider than the vocabulary, beside five of the model's width; and, counted above, a 16-bit mask for each kind of layer. With this
/// the sum of all buffers was right to 0.5 % for nine models of 0.02 to 1.5 billion weights.
fn layer_numbers(model: &Gguf) -> u64 {
    let heads = model.layer_setting("attention.head_count", 0).unwrap_or(0);
    let key = model.setting("attention.key_length").unwrap_or(0);
    hidden(model)
        .max(heads.saturating_mul(key))
        .saturating_mul(3)
}

/// Width of the widest feed-forward part; of experts all that one token uses.
fn hidden(model: &Gguf) -> u64 {
    let dense = model.setting("feed_forward_length");
    let key = format!("{}.feed_forward_length", model.architecture());
    let widest = model
        .numbers(&key)
        .and_then(|all| all.iter().max())
        .and_then(|most| u64::try_from(most).ok());
    let expert = model.layer_setting("expert_feed_forward_length", 0);
    let used = model.layer_setting("expert_used_count", 0).unwrap_or(0);
    let dense = dense.or(widest).unwrap_or(0);
    dense.max(expert.unwrap_or(dense).saturating_mul(used))
}

/// Code, graphs, threads, and what a few requests leave behind.
const PROCESS: u64 = 20 << 20;
/// A token's entries in both directions of the vocabulary and in ours.
const TOKEN: u64 = 160;
/// A merge rule's entry.
const MERGE: u64 = 130;

/// Bytes of the worker beside llama.cpp's buffers.
///
/// Measured as `RssAnon` less the buffers that are touched while loading: 19 MB with 49,152 tokens and as many merges, 48 MB with
/// 151,936 and as many, 46 MB with 262,144 and no merges; after some requests 3 to 4 MB more; and 10 MB of mapped code.
fn process(model: &Gguf) -> u64 {
    let tokens = model.vocab_size();
    let merges = model.array_len("tokenizer.ggml.merges").unwrap_or(0);
    tokens
        .saturating_mul(TOKEN)
        .saturating_add(merges.saturating_mul(MERGE))
        .saturating_add(PROCESS)
}

impl fmt::Display for Needs {
    /// `weights 170.0 MiB + repacked copy 12.7 MiB + … = 412.9 MiB`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("weights", self.weights),
            ("repacked copy", self.repacked),
            ("KV cache", self.kv),
            ("compute buffer", self.compute),
            ("output buffer", self.output),
            ("drafts", self.drafts),
            ("prompt cache", self.prompt_cache),
            ("draft model", self.draft_model),
            ("process", self.process),
        ];
        let mut parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
        if let Some((name, bytes)) = parts.next() {
            write!(f, "{name} {}", Bytes(*bytes))?;
        }
        for (name, bytes) in parts {
            write!(f, " + {name} {}", Bytes(*bytes))?;
        }
        write!(f, " = {}", Bytes(self.total()))
    }
}

/// A number of bytes as people read it: `26 MiB`, `1.6 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
        let mut number = self.0 as f64 / 1024.0;
        let mut unit = 0;
        while number >= 1000.0 && unit + 1 < UNITS.len() {
            number /= 1024.0;
            unit += 1;
        }
        let digits = usize::from(number < 10.0 && unit > 0);
        write!(f, "{number:.digits$} {}", UNITS[unit])
    }
}
