//! llama.cpp behind the seam. Nothing else in the program names `llama_cpp_2`.
//!
//! Many safe calls of the binding end the *process* on a bad number, and some answer Ok and compute nonsense. So
//! every number is checked before it is passed on: sequences, tokens and positions in `decoder.rs`, token ids in `vocab.rs`, sizes
//! by the memory plan. Damaged files are found by our own reader, because llama.cpp aborts on some of them.

#[cfg(feature = "dynamic")]
mod backends;
mod context;
mod decoder;
mod draft;
mod embedder;
mod log;
mod tokenize;
mod vocab;

use super::decoder::{Backend, Draft, LoadError, Loaded};
use super::teams::Teams;
use crate::device::huge::HugePages;
use crate::device::memory::Free;
use crate::engine::{CacheType, ModelInfo, Pooling, Speculate, WorkerConfig};
use crate::models::gguf::Gguf;
use crate::models::memory::{Asked, Bytes, Kernels, Needs, Plan, plan};
use context::TeamContext;
use decoder::LlamaDecoder;
use embedder::Embedder;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use vocab::LlamaVocabulary;

pub use log::LlamaLog;
pub use tokenize::answer as answer_texts;

/// `LLAMA_FLASH_ATTN_TYPE_ENABLED`.
const FLASH_ATTENTION: i32 = 1;
/// Plan and report may differ by one part in so many before it is told.
const TOLERATED_PART: u64 = 20;

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
        let header = read_header(&config.model)?;
        let plan = make_plan(&header, config)?;
        log::forget();
        let params = LlamaModelParams::default().with_progress_callback(progress);
        let model = load(backend, &config.model, &params)?;
        let model = Arc::new(model);
        let vocab = Arc::new(LlamaVocabulary::new(&model)?);
        // The context borrows from the model, so it lives on this stack, and is made on this thread only: making two at
        // once is not sound.
        let teams = Teams::new(config.placement());
        let partner_teams = teams.of_partner();
        let params = context_params(&plan, config)?;
        let context = TeamContext::new(backend, &model, params, teams)
            .map_err(|_| failed(&config.model, "can't be given a context"))?;
        compare(&plan.needs);
        let mut info = describe(&header, &model, &plan, context.n_ctx());
        let embedder = Embedder::new(backend, &model, &header, config, &info);
        let mut decoder = LlamaDecoder::new(&model, context, Some(embedder), &info, &plan);
        let partner = draft::load(backend, config, &info, &*vocab);
        let mut partner_decoder = None;
        if let Some(partner) = &partner {
            match partner.decoder(backend, config, partner_teams) {
                Ok(decoder) => {
                    info.draft_model = Some(partner.name().to_owned());
                    partner_decoder = Some((decoder, partner.weight(&info)));
                }
                Err(reason) => draft::left_out(&partner.path, &reason),
            }
        }
        let draft = partner_decoder.as_mut().map(|(decoder, weight)| Draft {
            decoder,
            batch_size: draft::ROWS,
            weight: *weight,
        });
        serve(Loaded {
            info,
            vocab,
            decoder: &mut decoder,
            draft,
        });
        Ok(())
    }
}

/// Weights that are repacked lie in huge pages where there are some.
fn load(
    backend: &LlamaBackend,
    path: &Path,
    params: &LlamaModelParams,
) -> Result<LlamaModel, LoadError> {
    let _huge = HugePages::allow();
    LlamaModel::load_from_file(backend, path, params).map_err(|_| failed(path, "can't be loaded"))
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

/// The binding's error says nothing; the reason stands in the log.
fn failed(model: &Path, what: &str) -> LoadError {
    let why = log::errors()
        .pop()
        .unwrap_or_else(|| "llama.cpp did not say why".into());
    LoadError(format!("{} {what}: {why}", model.display()))
}

fn read_header(path: &Path) -> Result<Gguf, LoadError> {
    if path.to_str().is_none_or(|path| path.contains('\0')) {
        return Err(LoadError(format!(
            "{}: llama.cpp needs a path in UTF-8",
            path.display()
        )));
    }
    Gguf::read(path).map_err(|error| LoadError(error.to_string()))
}

/// Looks at the memory once more, although the front has planned: it was some time ago, and others take memory too.
fn make_plan(header: &Gguf, config: &WorkerConfig) -> Result<Plan, LoadError> {
    let asked = Asked {
        ctx_size: config.ctx_size,
        parallel: Some(config.parallel),
        batch_size: Some(config.batch_size),
        cache_type: config.cache_type,
        cache_bytes: config.cache_bytes,
        no_drafts: config.speculate == Speculate::Off,
    };
    let available = Free::here().map(|free| free.bytes);
    let plan = plan(header, &asked, Kernels::here(), available)
        .map_err(|error| LoadError(error.to_string()))?;
    tracing::info!(needs = %plan.needs, available = available.map(|bytes| Bytes(bytes).to_string()), "memory");
    Ok(plan)
}

/// The plan's numbers, which are checked.
fn context_params(plan: &Plan, config: &WorkerConfig) -> Result<LlamaContextParams, LoadError> {
    let cells = NonZeroU32::new(plan.ctx_size)
        .ok_or_else(|| LoadError("--ctx-size is too small or too large".into()))?;
    let params = match config.cache_type {
        CacheType::F16 => LlamaContextParams::default(),
        // Values in blocks want flash attention, which is on by itself where it can be; here it must be.
        CacheType::Q8_0 => LlamaContextParams::default()
            .with_type_k(KvCacheType::Q8_0)
            .with_type_v(KvCacheType::Q8_0)
            .with_flash_attention_policy(FLASH_ATTENTION),
    };
    let threads = crate::device::allowed_threads();
    let threads = i32::try_from(threads.min(config.threads_batch)).unwrap_or(1);
    Ok(params
        .with_n_ctx(Some(cells))
        .with_n_batch(plan.batch_size)
        .with_n_ubatch(plan.batch_size)
        .with_n_seq_max(plan.parallel)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        // One stream per sequence: measured 22 to 30 % less time per step than one unified cache.
        .with_kv_unified(false)
        // A sliding window keeps only its window; `LlamaDecoder::cuttable` knows what that allows.
        .with_swa_full(false))
}

/// How the file says that embeddings are pooled; the numbers are llama.cpp's `llama_pooling_type`.
fn pooling(model: &LlamaModel, architecture: &str) -> Pooling {
    let key = format!("{architecture}.pooling_type");
    match model.meta_val_str(&key).as_deref() {
        Ok("1") => Pooling::Mean,
        Ok("2") => Pooling::Cls,
        _ => Pooling::Last,
    }
}

/// Tells when the plan was wrong: the next model might not be refused although it does not fit.
fn compare(needs: &Needs) {
    let buffers = log::buffers();
    let reported: u64 = buffers.iter().map(|(_, bytes)| bytes).sum();
    let planned = needs.buffers();
    if planned.abs_diff(reported) > reported / TOLERATED_PART {
        tracing::warn!(
            planned = %Bytes(planned),
            reported = %Bytes(reported),
            %needs,
            ?buffers,
            "the memory plan was wrong"
        );
    }
}

fn describe(header: &Gguf, model: &LlamaModel, plan: &Plan, padded: u32) -> ModelInfo {
    let info = header.model_info();
    let trained = match info.trained_context {
        0 => u32::MAX,
        trained => trained,
    };
    ModelInfo {
        vocab_size: u32::try_from(model.n_vocab()).unwrap_or(0),
        // llama.cpp rounds a share up to 256 cells; the model's own limit stays.
        context_per_sequence: (padded / plan.parallel).min(trained),
        sequences: plan.parallel,
        batch_size: plan.batch_size,
        cache_bytes: plan.needs.prompt_cache,
        kernels: log::kernels(),
        cpu_variant: cpu_variant().ok().flatten(),
        buffers: log::buffers(),
        embedding_width: u32::try_from(model.n_embd()).unwrap_or(0),
        pooling: pooling(model, &info.architecture),
        ..info
    }
}
