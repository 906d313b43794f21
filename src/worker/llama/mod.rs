//! llama.cpp behind the seam. Nothing else in the program names `llama_cpp_2`.
//!
//! Many safe calls of the binding end the *process* on a bad number, and some answer Ok and compute nonsense. So
//! every number is checked here before it is passed on: sequences, tokens and positions in `decoder.rs`, token ids in
//! `vocab.rs`, sizes below.

#[cfg(feature = "dynamic")]
mod backends;
mod decoder;
mod log;
mod memory;
mod vocab;

use super::decoder::{Backend, LoadError, Loaded};
use crate::engine::{
    DEFAULT_CONTEXT_PER_SEQUENCE, MOST_ROWS, MOST_SEQUENCES, ModelInfo, WorkerConfig,
};
use decoder::LlamaDecoder;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use std::fs::File;
use std::io::Read;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use vocab::LlamaVocabulary;

pub use log::LlamaLog;

/// Loads GGUF files through llama.cpp.
#[derive(Clone, Copy, Debug, Default)]
pub struct Llama;

impl Backend for Llama {
    fn run(
        &self,
        config: &WorkerConfig,
        progress: Box<dyn FnMut(f32) -> bool>,
        serve: &mut dyn FnMut(Loaded<'_>),
    ) -> Result<(), LoadError> {
        let backend = backend()?;
        check_file(&config.model)?;
        log::forget();
        let params = LlamaModelParams::default().with_progress_callback(progress);
        let model = LlamaModel::load_from_file(backend, &config.model, &params).map_err(|_| {
            // The binding's error says nothing; the reason stands in the log.
            let why = log::errors()
                .pop()
                .unwrap_or_else(|| "llama.cpp did not say why".into());
            LoadError(format!("{} can't be loaded: {why}", config.model.display()))
        })?;
        let model = Arc::new(model);
        let sizes = Sizes::new(config, &model)?;
        memory::check(&model, &sizes)?;
        let vocab = Arc::new(LlamaVocabulary::new(&model)?);
        // The context borrows from the model, so it lives on this stack, and is made on this thread only: making two at
        // once is not sound.
        let context = model
            .new_context(backend, sizes.context_params())
            .map_err(|_| {
                let why = log::errors()
                    .pop()
                    .unwrap_or_else(|| "llama.cpp did not say why".into());
                LoadError(format!("no context for {}: {why}", config.model.display()))
            })?;
        let info = describe(&model, &sizes, context.n_ctx());
        let mut decoder = LlamaDecoder::new(&model, context, &info, sizes.batch);
        serve(Loaded {
            info,
            vocab,
            decoder: &mut decoder,
        });
        Ok(())
    }
}

/// The process's one backend.
fn backend() -> Result<&'static LlamaBackend, LoadError> {
    static BACKEND: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        log::connect();
        #[cfg(feature = "dynamic")]
        backends::load()?;
        LlamaBackend::init().map_err(|error| format!("llama.cpp does not start: {error}"))
    });
    backend.as_ref().map_err(|error| LoadError(error.clone()))
}

/// The CPU kernels that a build with the feature `dynamic` chose when it started, such as `armv8.6_0`; `None` where they are
/// part of the program.
pub fn cpu_variant() -> Result<Option<String>, LoadError> {
    backend()?;
    #[cfg(feature = "dynamic")]
    let variant = backends::variant();
    #[cfg(not(feature = "dynamic"))]
    let variant = None;
    Ok(variant)
}

/// Says plainly what llama.cpp would only hint at.
fn check_file(path: &Path) -> Result<(), LoadError> {
    let name = path.display();
    if path.to_str().is_none_or(|path| path.contains('\0')) {
        return Err(LoadError(format!(
            "{name}: llama.cpp needs a path in UTF-8"
        )));
    }
    let mut file =
        File::open(path).map_err(|error| LoadError(format!("{name} can't be opened: {error}")))?;
    let mut magic = [0; 4];
    if path.is_dir() {
        return Err(LoadError(format!("{name} is a directory, not a GGUF file")));
    }
    match file.read_exact(&mut magic) {
        Ok(()) if &magic == b"GGUF" => Ok(()),
        Ok(()) => Err(LoadError(format!("{name} is not a GGUF file"))),
        Err(_) => Err(LoadError(format!("{name} is too short for a GGUF file"))),
    }
}

/// Checked sizes of a context.
struct Sizes {
    /// Cells in all.
    context: NonZeroU32,
    sequences: u32,
    trained: u32,
    batch: u32,
    threads: i32,
    threads_batch: i32,
}

impl Sizes {
    fn new(config: &WorkerConfig, model: &LlamaModel) -> Result<Self, LoadError> {
        let sequences = config.parallel;
        if !(1..=MOST_SEQUENCES).contains(&sequences) {
            return Err(LoadError(format!(
                "--parallel {sequences}: use 1 to {MOST_SEQUENCES}"
            )));
        }
        let trained = match model.n_ctx_train() {
            0 => DEFAULT_CONTEXT_PER_SEQUENCE,
            trained => trained,
        };
        let share = match config.ctx_size {
            Some(cells) => cells / sequences,
            None => DEFAULT_CONTEXT_PER_SEQUENCE.min(trained),
        };
        if share > trained {
            return Err(LoadError(format!(
                "--ctx-size {} gives each of {sequences} sequences {share} tokens, but the model was trained for {trained}: \
                 use --ctx-size {} or less",
                share * sequences,
                u64::from(trained) * u64::from(sequences),
            )));
        }
        let context = share.checked_mul(sequences).and_then(NonZeroU32::new);
        let context =
            context.ok_or_else(|| LoadError("--ctx-size is too small or too large".into()))?;
        let batch = config.batch_size;
        if batch < sequences || batch > MOST_ROWS {
            return Err(LoadError(format!(
                "--batch-size {batch}: a step needs a row for each of {sequences} sequences; use {sequences} to {MOST_ROWS}"
            )));
        }
        let threads = |n: u32| i32::try_from(n.clamp(1, 512)).unwrap_or(1);
        Ok(Self {
            context,
            sequences,
            trained,
            batch,
            threads: threads(config.threads),
            threads_batch: threads(config.threads_batch),
        })
    }

    fn context_params(&self) -> LlamaContextParams {
        LlamaContextParams::default()
            .with_n_ctx(Some(self.context))
            .with_n_batch(self.batch)
            .with_n_ubatch(self.batch)
            .with_n_seq_max(self.sequences)
            .with_n_threads(self.threads)
            .with_n_threads_batch(self.threads_batch)
            // One stream per sequence: measured 22 to 30 % less time per step than one unified cache.
            .with_kv_unified(false)
            // A sliding window keeps only its window; `LlamaDecoder::cuttable` knows what that allows.
            .with_swa_full(false)
    }
}

fn describe(model: &LlamaModel, sizes: &Sizes, padded: u32) -> ModelInfo {
    let meta = |key: &str| {
        model
            .meta_val_str(key)
            .ok()
            .filter(|value| !value.is_empty())
    };
    ModelInfo {
        name: meta("general.name"),
        architecture: meta("general.architecture").unwrap_or_default(),
        licence: meta("general.license"),
        quantisation: meta("general.file_type").and_then(|value| file_type(&value)),
        size_bytes: model.size(),
        parameters: model.n_params(),
        vocab_size: u32::try_from(model.n_vocab()).unwrap_or(0),
        trained_context: sizes.trained,
        // llama.cpp rounds a share up to 256 cells; the model's own limit stays.
        context_per_sequence: (padded / sizes.sequences).min(sizes.trained),
        sequences: sizes.sequences,
        kernels: log::kernels(),
        cpu_variant: cpu_variant().ok().flatten(),
        buffers: log::buffers(),
        ..ModelInfo::default()
    }
}

/// The name of a `general.file_type` (`enum llama_ftype` of llama.h).
fn file_type(number: &str) -> Option<String> {
    let name = match number.parse().ok()? {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        23 => "IQ3_XXS",
        25 => "IQ4_NL",
        30 => "IQ4_XS",
        32 => "BF16",
        other => return Some(format!("file type {other}")),
    };
    Some(name.into())
}
