//! Logs: lines of fields on standard error, as text or JSON. Standard output is for what a user asked for.

use anyhow::Context;
use clap::ValueEnum;
use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Where llama.cpp's lines come from.
const LLAMA: &str = "llama-cpp-2";

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line, for collectors.
    Json,
}

/// Starts logging for the front. `filter` is in the syntax of tracing's `Targets`, such as `info` or
/// `warn,pocket_llm=debug`.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter: Targets = filter
        .parse()
        .with_context(|| format!("--log {filter:?} can't be used"))?;
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
        .with_filter(
            Targets::new()
                .with_default(Level::WARN)
                .with_target(LLAMA, Level::ERROR)
                .with_target("pocket_llm", Level::INFO),
        );
    let registry = tracing_subscriber::registry().with(lines);
    #[cfg(feature = "llama")]
    let registry = {
        let filter = Targets::new()
            .with_default(tracing::level_filters::LevelFilter::OFF)
            .with_target(LLAMA, Level::DEBUG);
        registry.with(crate::worker::llama::LlamaLog.with_filter(filter))
    };
    registry.try_init()?;
    Ok(())
}
