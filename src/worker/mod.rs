//! The part that computes: runs as `pocket-llm engine`, one process for each loaded model.
//!
//! One thread, the engine thread, owns the model's context and everything that changes ([`run`]). Beside it one thread reads
//! frames and two tokenise. There is no lock between them: requests and their cancel flags go through channels, and only the
//! engine thread writes frames.

pub mod cache;
pub mod decoder;
pub mod sampling;
pub mod text;
