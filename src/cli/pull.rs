//! `pocket-llm pull`: fetches models by their names, one after the other.
//!
//! Standard output gets one line per model, its file and digest; what happens meanwhile goes to standard error, as a bar on a terminal
//! and as a line now and then elsewhere. Ctrl-C leaves what came, and the next pull goes on from there.

use crate::models::download::{
    DownloadError, Existing, How, Hub, Phase, Progress, Pulled, Puller, Settings,
};
use crate::models::store::{Store, default_root};
use crate::models::{Catalogue, ModelRef};
use anyhow::Result;
use clap::Args;
use clap::builder::FalseyValueParser;
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::{JoinHandle, spawn_blocking};

/// Between two looks at a download.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Without a terminal a line is written when this long has gone by, or
const LINE_EVERY: Duration = Duration::from_secs(5);

/// this much of the file has come, in percent.
const LINE_STEP: u64 = 5;

/// What `pull` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct PullArgs {
    /// Names or aliases of the catalogue, or files on the hub: hf:owner/name/file.gguf@revision
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    /// The directory of models [default: pocket-llm/models in the user's data directory]
    #[arg(long, env = "POCKET_LLM_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,

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
    let root = match &args.models {
        Some(models) => models.clone(),
        None => default_root()?,
    };
    let puller = Arc::new(Puller {
        store: Store::open(&root)?,
        hub: Hub::from_environment()?,
        settings: args.settings(),
    });
    let mut stops = Stops::new()?;
    let mut code = ExitCode::SUCCESS;
    for name in &args.names {
        let reference = match ModelRef::parse(name, Catalogue::builtin()) {
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
    let size = HumanBytes(pulled.bytes);
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

/// A bar, or lines.
enum Display {
    Bar(ProgressBar),
    Lines(Lines),
}

struct Lines {
    name: String,
    /// When the last line was written, and the bytes then.
    last: Option<(Instant, u64)>,
}

impl Display {
    fn new(name: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Lines(Lines {
                name: name.to_owned(),
                last: None,
            });
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_prefix(name.to_owned());
        Self::Bar(bar)
    }

    fn show(&mut self, progress: &Progress) {
        match self {
            Self::Bar(bar) => show_bar(bar, progress),
            Self::Lines(lines) => lines.show(progress),
        }
    }

    fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn show_bar(bar: &ProgressBar, progress: &Progress) {
    let template = match (progress.total(), progress.phase()) {
        (Some(total), Phase::Receiving) => {
            bar.set_length(total);
            "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left{msg}"
        }
        (None, Phase::Receiving) => "{prefix} {bytes} {bytes_per_sec}{msg}",
        _ => "{prefix} {bytes}: {msg}",
    };
    bar.set_style(
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.set_message(match (progress.phase(), progress.attempt()) {
        (Phase::Receiving, 0 | 1) => String::new(),
        (Phase::Receiving, attempt) => format!(" (try {attempt})"),
        (phase, 0 | 1) => words(phase).into(),
        (phase, attempt) => format!("{} (try {attempt})", words(phase)),
    });
    bar.set_position(progress.received());
    bar.tick();
}

impl Lines {
    fn show(&mut self, progress: &Progress) {
        let (now, received, total) = (Instant::now(), progress.received(), progress.total());
        let Some((when, then)) = self.last else {
            self.last = Some((now, received));
            return;
        };
        let step = total.map_or(u64::MAX, |total| (total * LINE_STEP).div_ceil(100));
        let is_due = now - when >= LINE_EVERY || received.saturating_sub(then) >= step;
        if !is_due {
            return;
        }
        let of = total.map_or(String::new(), |total| format!(" of {}", HumanBytes(total)));
        let milliseconds = u64::try_from((now - when).as_millis()).unwrap_or(u64::MAX);
        let came = received.saturating_sub(then).saturating_mul(1000);
        let speed = came.checked_div(milliseconds).unwrap_or(0);
        let mut rest = String::new();
        if progress.phase() == Phase::Receiving && speed > 0 {
            let left = total.map_or(0, |total| total.saturating_sub(received) / speed);
            let left = HumanDuration(Duration::from_secs(left));
            rest = format!(", {}/s, {left} left", HumanBytes(speed));
        }
        if progress.attempt() > 1 {
            rest = format!("{rest} (try {})", progress.attempt());
        }
        let (name, doing) = (&self.name, words(progress.phase()));
        eprintln!("{name}: {doing}, {}{of}{rest}", HumanBytes(received));
        self.last = Some((now, received));
    }
}

fn words(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Asking => "asking the hub",
        Phase::Locked => "another process fetches it, waiting",
        Phase::Rereading => "reading what is there",
        Phase::Connecting => "connecting",
        Phase::Receiving => "receiving",
        Phase::Pausing => "pausing before another try",
        Phase::Checking => "checking",
        Phase::Ended => "done",
    }
}
