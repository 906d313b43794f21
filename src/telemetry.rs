//! Logs: lines of fields on standard error, as text or JSON. Standard output is for what a user asked for.

use anyhow::Context;
use clap::ValueEnum;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line, for collectors.
    Json,
}

/// Starts logging for the front. `filter` is in the syntax of tracing's `EnvFilter`, such as `info` or
/// `pocket_llm=debug`.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter =
        EnvFilter::try_new(filter).with_context(|| format!("--log {filter:?} can't be used"))?;
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Text => registry.with(lines).try_init()?,
        LogFormat::Json => registry.with(lines.json()).try_init()?,
    }
    Ok(())
}

/// Starts logging for a worker: bare lines that the front relays, and, where llama.cpp is built in, the layer that reads its
/// log.
pub fn start_worker() -> anyhow::Result<()> {
    use tracing_subscriber::Layer;
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_filter(EnvFilter::new("warn,llama-cpp-2=error,pocket_llm=info"));
    let registry = tracing_subscriber::registry().with(lines);
    #[cfg(feature = "llama")]
    let registry = registry
        .with(crate::worker::llama::LlamaLog.with_filter(EnvFilter::new("off,llama-cpp-2=debug")));
    registry.try_init()?;
    Ok(())
}
