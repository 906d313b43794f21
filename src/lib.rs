//! pocket-llm: an LLM server for phones.
//!
//! Modules in reading order: the door ([`http`]), what an engine is ([`engine`]), the process that computes
//! ([`worker`]), what is known about models ([`models`]), and what is counted ([`metrics`]).

pub mod engine;
pub mod http;
pub mod metrics;
pub mod models;
pub mod worker;
