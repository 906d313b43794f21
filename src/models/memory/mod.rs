//! How much memory a model takes, told from its file's header before anything is loaded.
//!
//! Pure: the facts about the CPU and the free memory come in as values. The formulae follow the pinned llama.cpp, which neither looks
//! at free memory nor tells its needs beforehand; the worker compares them with what was reported after each load, and a test
//! holds them to 5 %.

mod kernels;
mod layers;
mod needs;
mod plan;

pub use kernels::Kernels;
pub use layers::cache_bytes_read;
pub use needs::{Bytes, Needs, SCORED_ROWS, logit_rows};
pub use plan::{
    Asked, DEFAULT_PARALLEL, DEFAULT_ROWS, DRAFT_ROWS, DoesNotFit, Plan, plan, plan_draft,
};
