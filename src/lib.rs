//! pocket-llm: an LLM server for phones.
//!
//! Modules in reading order: what an engine is ([`engine`]), the process that computes ([`worker`]).

pub mod engine;
pub mod worker;
