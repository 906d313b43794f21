//! What is not computed again: prompts that others had, and tokens that were said before. The real loop over a scripted model that
//! records every row.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod drafts;
mod model;
#[cfg(feature = "llama")]
#[path = "../support/models.rs"]
mod models;
mod prefix;
#[cfg(feature = "llama")]
mod real;
#[path = "../support/scripted.rs"]
mod scripted;

use pocket_llm::engine::{EngineHandle, EngineOptions, WorkerConfig};
use scripted::{Script, options};
use std::sync::Arc;

/// A running engine with `parallel` sequences of 1,024 tokens and twice as many places, otherwise as wanted.
async fn engine_with(
    script: &Arc<Script>,
    parallel: u32,
    wanted: impl FnOnce(&mut WorkerConfig),
) -> EngineHandle {
    let mut options: EngineOptions = options(script, parallel, parallel);
    wanted(&mut options.config);
    let engine = EngineHandle::start(options).expect("an engine");
    engine.loaded().await;
    engine
}

/// Rows that were decoded so far.
fn rows(script: &Script) -> usize {
    script.steps().iter().map(Vec::len).sum()
}
