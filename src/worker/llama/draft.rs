//! A second model beside the one that answers, to guess what it will say.

use super::context::TeamContext;
use super::decoder::LlamaDecoder;
use super::vocab::LlamaVocabulary;
use super::{context_params, describe, read_header};
use crate::device::memory::Free;
use crate::engine::{ModelInfo, Speculate, Token, WorkerConfig};
use crate::models::gguf::Gguf;
use crate::models::memory::{Asked, Bytes, Kernels, Plan, plan_draft};
use crate::worker::decoder::Vocab;
use crate::worker::teams::Teams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) use crate::models::memory::DRAFT_ROWS as ROWS;

/// A loaded draft model.
pub(super) struct Partner {
    pub(super) path: PathBuf,
    header: Gguf,
    model: Arc<LlamaModel>,
    plan: Plan,
}

/// Loads the draft model, if there is to be one. What stands in its way is told in the log: answers need none.
pub(super) fn load(
    backend: &LlamaBackend,
    config: &WorkerConfig,
    info: &ModelInfo,
    vocab: &dyn Vocab,
) -> Option<Partner> {
    let path = config.draft_model.as_ref()?;
    if config.speculate == Speculate::Off {
        return None;
    }
    let loaded = try_load(backend, path, config, info, vocab);
    loaded.inspect_err(|reason| left_out(path, reason)).ok()
}

pub(super) fn left_out(path: &Path, reason: &str) {
    tracing::warn!(draft_model = %path.display(), reason, "the draft model is not used");
}

fn try_load(
    backend: &LlamaBackend,
    path: &Path,
    config: &WorkerConfig,
    info: &ModelInfo,
    vocab: &dyn Vocab,
) -> Result<Partner, String> {
    let header = read_header(path).map_err(|error| error.to_string())?;
    let asked = Asked {
        ctx_size: Some(info.context_per_sequence.saturating_mul(info.sequences)),
        parallel: Some(info.sequences),
        cache_type: config.cache_type,
        ..Asked::default()
    };
    let plan = plan_draft(&header, &asked, Kernels::here()).map_err(|error| error.to_string())?;
    let bytes = plan.needs.total();
    if let Some(free) = Free::here().filter(|free| free.bytes < bytes) {
        return Err(format!(
            "it needs {} more memory, but {} are free",
            Bytes(bytes),
            Bytes(free.bytes)
        ));
    }
    // Without a callback llama.cpp draws dots into the log.
    let params = LlamaModelParams::default().with_progress_callback(|_| true);
    let model = super::load(backend, path, &params).map_err(|error| error.to_string())?;
    let model = Arc::new(model);
    let own = LlamaVocabulary::new(&model).map_err(|error| error.to_string())?;
    same_words(&own, vocab)?;
    Ok(Partner {
        path: path.to_owned(),
        header,
        model,
        plan,
    })
}

/// A guess is a number, so both models must mean the same by it.
fn same_words(own: &dyn Vocab, other: &dyn Vocab) -> Result<(), String> {
    let (tokens, others) = (own.size(), other.size());
    if tokens != others {
        return Err(format!(
            "its vocabulary has {tokens} tokens instead of {others}"
        ));
    }
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for token in (0..tokens).map(Token) {
        one.clear();
        two.clear();
        own.append_bytes(token, &mut one);
        other.append_bytes(token, &mut two);
        if one != two || own.is_end(token) != other.is_end(token) {
            return Err(format!("its token {} is another one", token.0));
        }
    }
    Ok(())
}

impl Partner {
    /// What it is called in status and log.
    pub(super) fn name(&self) -> &str {
        let stem = self.path.file_stem().and_then(|stem| stem.to_str());
        stem.unwrap_or("draft")
    }

    /// Bytes of its weights for each byte of the other model's.
    pub(super) fn weight(&self, other: &ModelInfo) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let weight = self.header.model_info().size_bytes as f32 / other.size_bytes.max(1) as f32;
        weight
    }

    /// Its sequences, computed by these teams. To be made and used on the engine thread.
    pub(super) fn decoder(
        &self,
        backend: &'static LlamaBackend,
        config: &WorkerConfig,
        teams: Teams,
    ) -> Result<LlamaDecoder<'_>, String> {
        let params = context_params(&self.plan, config).map_err(|error| error.to_string())?;
        let context = TeamContext::new(backend, &self.model, params, teams)
            .map_err(|error| format!("it can't be given a context: {error}"))?;
        let info = describe(&self.header, &self.model, &self.plan, context.n_ctx());
        Ok(LlamaDecoder::new(
            &self.model,
            context,
            None,
            &info,
            &self.plan,
        ))
    }
}
