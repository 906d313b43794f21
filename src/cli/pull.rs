//! `pocket-llm pull`: fetches models by their names, one after the other.
//!
//! Standard output gets one line per model, its file and digest; what happens meanwhile goes to standard error, as a bar on a terminal
//! and as a line now and then elsewhere. Ctrl-C leaves what came, and the next pull goes on from there.

mod display;

use crate::config::StoreArgs;
use crate::models::ModelRef;
use crate::models::download::{
    DownloadError, Existing, How, Hub, Progress, Pulled, Puller, Settings,
};
use crate::models::memory::Bytes;
use anyhow::Result;
use clap::Args;
use clap::builder::FalseyValueParser;
use display::Display;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, spawn_blocking};

/// Between two looks at a download.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What `pull` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct PullArgs {
    /// Names or aliases of the catalogue, or files on the hub: hf:owner/name/file.gguf@revision
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    #[command(flatten)]
    models: StoreArgs,

    /// Read files that are there already, and compare them with their digests
    #[arg(long, env = "POCKET_LLM_PULL_VERIFY", value_parser = FalseyValueParser::new())]
    verify: bool,

    /// Fetch again what is there already, and replace it, also if it was put there by hand
    #[arg(long, conflicts_with = "verify")]
    force: bool,

    /// Tries in a row that bring nothing new before it gives up
    #[arg(long, env = "POCKET_LLM_PULL_ATTEMPTS", default_value_t = 8, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: u32,

    /// Longest pause between two tries, in seconds; the first is half a second, the next ones double
    #[arg(long, env = "POCKET_LLM_PULL_BACKOFF_SECONDS", default_value_t = 30.0, value_name = "SECONDS",
          value_parser = seconds)]
    backoff_seconds: f64,

    /// Seconds for a connection
    #[arg(long, env = "POCKET_LLM_PULL_CONNECT_SECONDS", default_value_t = 10.0, value_name = "SECONDS",
          value_parser = seconds)]
    connect_seconds: f64,

    /// Seconds that a server may be silent
    #[arg(long, env = "POCKET_LLM_PULL_READ_SECONDS", default_value_t = 30.0, value_name = "SECONDS",
          value_parser = seconds)]
    read_seconds: f64,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.001..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds, from 0.001 to 3600".into()),
    }
}

impl PullArgs {
    fn settings(&self) -> Settings {
        let defaults = Settings::default();
        let backoff_cap = Duration::from_secs_f64(self.backoff_seconds);
        Settings {
            connect_timeout: Duration::from_secs_f64(self.connect_seconds),
            response_timeout: Duration::from_secs_f64(self.read_seconds),
            read_timeout: Duration::from_secs_f64(self.read_seconds),
            attempts: self.attempts,
            backoff_base: defaults.backoff_base.min(backoff_cap),
            backoff_cap,
            ..defaults
        }
    }

    fn existing(&self) -> Existing {
        match (self.force, self.verify) {
            (true, _) => Existing::Replace,
            (false, true) => Existing::Verify,
            (false, false) => Existing::Trust,
        }
    }
}

pub(super) async fn pull(args: PullArgs) -> Result<ExitCode> {
    let catalogue = args.models.catalogue()?;
    let puller = Arc::new(Puller {
        store: args.models.store()?,
        hub: Hub::from_environment()?,
        settings: args.settings(),
    });
    let mut stops = Stops::new()?;
    let mut code = ExitCode::SUCCESS;
    for name in &args.names {
        let reference = match ModelRef::parse(name, &catalogue) {
            Ok(reference) => reference,
            Err(error) => {
                eprintln!("pocket-llm: {error}");
                code = ExitCode::FAILURE;
                continue;
            }
        };
        let progress = Arc::new(Progress::default());
        let (puller, shared) = (Arc::clone(&puller), Arc::clone(&progress));
        let existing = args.existing();
        let pulling = spawn_blocking(move || puller.pull(&reference, existing, &shared));
        match watched(name, pulling, &progress, &mut stops).await? {
            Ended::With(Ok(pulled)) => report(name, &pulled)?,
            Ended::With(Err(error)) => {
                eprintln!("pocket-llm: {name}: {error}");
                code = ExitCode::FAILURE;
            }
            Ended::By(status) => {
                eprintln!(
                    "pocket-llm: {name}: interrupted; what came is kept, and the next pull goes on from there"
                );
                return Ok(ExitCode::from(status));
            }
        }
    }
    Ok(code)
}

/// How a pull ended.
enum Ended {
    With(Result<Pulled, DownloadError>),
    /// A signal; the exit status that a shell expects after it.
    By(u8),
}

/// Shows how it goes until it ends. A first signal cancels it, a second one does not wait for that.
async fn watched(
    name: &str,
    mut pulling: JoinHandle<Result<Pulled, DownloadError>>,
    progress: &Progress,
    stops: &mut Stops,
) -> Result<Ended> {
    let mut display = Display::new(name);
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let mut stopped = None;
    loop {
        tokio::select! {
            ended = &mut pulling => {
                display.clear();
                return Ok(match (ended?, stopped) {
                    (Err(DownloadError::Cancelled), Some(status)) => Ended::By(status),
                    (result, _) => Ended::With(result),
                });
            }
            status = stops.next() => {
                if stopped.is_some() {
                    display.clear();
                    return Ok(Ended::By(status));
                }
                stopped = Some(status);
                progress.cancel();
            }
            _ = looks.tick() => display.show(progress),
        }
    }
}

/// The signals that end a program.
struct Stops {
    interrupt: Signal,
    terminate: Signal,
}

impl Stops {
    fn new() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}

/// The result's line.
fn report(name: &str, pulled: &Pulled) -> Result<()> {
    let size = Bytes(pulled.bytes);
    match pulled.how {
        How::Fetched { .. } => eprintln!("{name}: fetched, {size}"),
        How::AlreadyThere => eprintln!("{name}: is there already, {size}"),
        How::Verified => eprintln!("{name}: is there and whole, {size}"),
    }
    let digest = pulled.sha256.map(|digest| format!("  sha256:{digest}"));
    let line = format!("{}{}\n", pulled.path.display(), digest.unwrap_or_default());
    match std::io::stdout().write_all(line.as_bytes()) {
        // Nobody reads it any more (`| head`); the model is here all the same.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
