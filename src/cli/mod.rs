//! The command line: what can be typed, and what is run for it.

mod bench;
mod list;
mod models;
mod prepare;
mod pull;
mod rm;
mod run;
mod show;
mod tokenise;
mod tune;
mod verify;
#[cfg(feature = "tokenizers")]
mod vocabulary;

use crate::config::{Machine, ServeArgs};
use crate::models::download::QUIET;
use crate::serve;
use crate::telemetry::{self, LogFormat};
use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;
use std::sync::LazyLock;

static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    format!(
        "{}\nbuild {}\nllama.cpp: {}\nCPU features compiled in: {}{}",
        env!("CARGO_PKG_VERSION"),
        crate::engine::wire::BUILD,
        if cfg!(feature = "llama") {
            env!("POCKET_LLM_LLAMA")
        } else {
            "not built in"
        },
        crate::device::compiled_features().join(" "),
        cpu_kernels(),
    )
});

/// A line on the kernels for this CPU, where they are chosen at start. It is made for every command line, but only those that ask
/// for the version pay for loading them.
fn cpu_kernels() -> String {
    #[cfg(feature = "dynamic")]
    if std::env::args_os().any(|argument| argument == "--version") {
        return match crate::worker::llama::cpu_variant() {
            Ok(variant) => format!(
                "\nCPU kernels: {}",
                variant.as_deref().unwrap_or("of an unknown kind")
            ),
            Err(error) => format!("\nCPU kernels: {error}"),
        };
    }
    String::new()
}

/// An LLM server for phones: loads a GGUF model through llama.cpp on the CPU, and answers over HTTP.
#[derive(Parser, Debug)]
#[command(name = "pocket-llm", version, long_version = LONG_VERSION.as_str(), max_term_width = 120)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// What to log, in tracing's filter syntax: `off`, `warn`, `info`, `pocket_llm=debug` [default: info for serve,
    /// warn for pull, off for the others]
    #[arg(long, env = "POCKET_LLM_LOG", global = true, value_name = "FILTER")]
    log: Option<String>,

    /// Log lines for people or for collectors
    #[arg(
        long,
        env = "POCKET_LLM_LOG_FORMAT",
        default_value = "text",
        global = true,
        value_enum
    )]
    log_format: LogFormat,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve models over HTTP
    Serve(ServeArgs),
    /// Ask a model here in the terminal: one prompt, or a chat
    Run(run::RunArgs),
    /// Fetch models from the hub, and go on with what an earlier pull left
    Pull(pull::PullArgs),
    /// Show which models are on disk, and which are known
    List(list::ListArgs),
    /// Tell what a model file holds, and what it needs
    Show(show::ShowArgs),
    /// Check model files: size, digest, structure, vocabulary
    Verify(verify::VerifyArgs),
    /// Remove models from disk
    Rm(rm::RmArgs),
    /// Measure how fast a model is here, and tell what would make it faster
    Bench(bench::BenchArgs),
    /// Find the best cores and threads for a model here, for `serve` and `run`
    Tune(tune::TuneArgs),
    /// Make the models' folder somebody's own, for an init container
    #[command(hide = true)]
    PrepareStore(prepare::PrepareArgs),
    /// The worker process that computes; started by `serve` and `run`
    #[command(hide = true)]
    Engine,
    /// Token ids of texts, for `verify`
    #[command(hide = true)]
    Tokenise(tokenise::TokeniseArgs),
}

/// Runs what was typed.
pub fn main(cli: Cli) -> Result<ExitCode> {
    // What goes wrong is said in a sentence; a log line beside it would say it twice.
    let quiet = || telemetry::start(cli.log.as_deref().unwrap_or("off"), cli.log_format);
    match cli.command {
        Command::Engine => {
            telemetry::start_worker()?;
            worker()?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Tokenise(args) => {
            telemetry::start_worker()?;
            tokenise::run(&args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::List(args) => {
            quiet()?;
            list::run(&args)
        }
        Command::Rm(args) => {
            quiet()?;
            rm::run(&args)
        }
        Command::Verify(args) => {
            quiet()?;
            verify::run(&args)
        }
        Command::Serve(args) => {
            let config = args.check(&Machine::here())?;
            telemetry::start(cli.log.as_deref().unwrap_or("info"), cli.log_format)?;
            on_runtime(serve::serve(config))
        }
        Command::Pull(args) => {
            let filter = cli.log.as_deref().unwrap_or("warn");
            telemetry::start(&format!("{filter},{QUIET}"), cli.log_format)?;
            on_runtime(pull::pull(args))
        }
        Command::Run(args) => {
            quiet()?;
            on_runtime(run::run(args))
        }
        Command::Bench(args) => {
            quiet()?;
            on_runtime(bench::bench(args))
        }
        Command::Tune(args) => {
            quiet()?;
            on_runtime(tune::tune(args))
        }
        Command::PrepareStore(args) => prepare::run(&args),
        Command::Show(args) => show::show(&args),
    }
}

#[cfg(feature = "llama")]
fn worker() -> Result<()> {
    crate::worker::process::main(&crate::worker::llama::Llama)
}

#[cfg(not(feature = "llama"))]
fn worker() -> Result<()> {
    anyhow::bail!("this binary was built without llama.cpp (feature `llama`) and can't load models")
}

/// The front waits and passes on; two threads are plenty, and leave the cores to the worker.
fn on_runtime(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let result = runtime.block_on(work);
    // A thread that reads a terminal can't be waited for.
    runtime.shutdown_background();
    result
}
