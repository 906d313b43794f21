//! pocket-llm: an LLM server for phones.
//!
//! Modules in reading order: the command line and what it sets up ([`cli`], [`config`], [`serve`]), the door ([`http`]), what an
//! engine is, seen from outside ([`engine`]), which engines are in memory ([`pool`]), the process that computes ([`worker`]), which
//! models are known and on disk ([`models`]), what the machine gives ([`device`]), and what is told about it all ([`metrics`], [`telemetry`]).

pub mod cli;
pub mod config;
pub mod serve;

pub mod http;

pub mod engine;
pub mod pool;

pub mod worker;

pub mod models;

pub mod measure;

pub mod device;

pub mod metrics;
pub mod telemetry;
