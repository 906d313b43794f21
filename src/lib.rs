//! t
pub mod config;
pub mod engine;
pub mod worker;
pub mod device;
pub mod telemetry;
