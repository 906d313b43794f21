//! `pocket-llm bench`: how fast a model is on this machine. Also where there is no cargo, as on phones.
//!
//! The report is standard output and nothing else is; what is being measured is told on a terminal's standard error.

use super::show;
use crate::config::{EngineArgs, Machine, StoreArgs};
use crate::device::bandwidth::{self, Bandwidth};
use crate::device::busy::Busy;
use crate::device::{Allowed, huge};
use crate::engine::Speculate;
use crate::measure::advice::advice;
use crate::measure::chart::svg;
use crate::measure::http::first_token;
use crate::measure::render::{Output, render};
use crate::measure::report::{MachineFacts, ModelFacts, Report, Roofline, RunFacts, Test, best};
use crate::measure::subject::{SHORT_PROMPT, Streams, Subject};
use crate::measure::sustained::{Sample, Sustained};
use crate::models::Model;
use crate::models::gguf::Gguf;
use crate::pool::PoolSettings;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long memory is read with each number of threads.
const BANDWIDTH_TIME: Duration = Duration::from_millis(300);
/// Tokens of an answer in a long run, which is one sample.
const SUSTAINED_TOKENS: u32 = 64;
/// A long run of four days at a sample a second has no more.
const MOST_SAMPLES: usize = 400_000;

/// What `bench` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct BenchArgs {
    /// A model's name (see `pocket-llm list`), `hf:OWNER/REPO/FILE.gguf`, or a GGUF file
    #[arg(env = "POCKET_LLM_MODEL")]
    model: String,

    /// Tokens of the prompts that are read (row pp512)
    #[arg(long, env = "POCKET_LLM_BENCH_PROMPT", default_value_t = 512, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    prompt: u32,

    /// Tokens of the answers that are generated (row tg64)
    #[arg(long, env = "POCKET_LLM_BENCH_GENERATE", default_value_t = 64, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    generate: u32,

    /// Tokens that stand before the answer; a row for each. The cache grows with them, and so does what a token reads
    #[arg(long, env = "POCKET_LLM_BENCH_DEPTH", default_value = "0,1024", value_delimiter = ',', value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(0..=262_144))]
    depth: Vec<u32>,

    /// Answers that are generated at once; a row for each. 0 leaves them out
    #[arg(long, env = "POCKET_LLM_BENCH_CONCURRENCY", default_value = "1,2,4,8", value_delimiter = ',', value_name = "N", value_parser = clap::value_parser!(u32).range(0..=64))]
    concurrency: Vec<u32>,

    /// Requests over HTTP whose first token is waited for. 0 leaves them out
    #[arg(long, env = "POCKET_LLM_BENCH_HTTP", default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1000))]
    http: u32,

    /// How often each row is measured, after a warm-up; the middle one counts
    #[arg(long, short = 'r', env = "POCKET_LLM_BENCH_REPETITIONS", default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    repetitions: u32,

    /// How long the rows may take together. What was not measured by then is left out
    #[arg(
        long,
        env = "POCKET_LLM_BENCH_MINUTES",
        default_value_t = 15.0,
        value_name = "MINUTES"
    )]
    minutes: f64,

    /// Instead of the rows, generate for so many minutes, and record speed, temperature and clocks. Ctrl-C ends it earlier,
    /// with a report
    #[arg(long, env = "POCKET_LLM_BENCH_SUSTAINED", value_name = "MINUTES")]
    sustained: Option<f64>,

    /// Draw the long run into this file
    #[arg(
        long,
        env = "POCKET_LLM_BENCH_SVG",
        value_name = "FILE",
        requires = "sustained"
    )]
    svg: Option<PathBuf>,

    /// How the report is printed
    #[arg(
        long,
        short = 'o',
        env = "POCKET_LLM_BENCH_OUTPUT",
        default_value = "table",
        value_enum
    )]
    output: Output,

    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) async fn bench(args: BenchArgs) -> Result<ExitCode> {
    if args
        .sustained
        .is_some_and(|minutes| !(0.0..=5760.0).contains(&minutes))
    {
        bail!("--sustained: give up to 5760 minutes, which are four days");
    }
    if !(0.05..=1440.0).contains(&args.minutes) {
        bail!(
            "--minutes {} can't be used: give 0.05 to 1440",
            args.minutes
        );
    }
    // A long run has its own time, and some to load the model and to end.
    let minutes = args
        .sustained
        .map_or(args.minutes, |minutes| minutes + args.minutes);
    let deadline = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let interrupts = signal(SignalKind::interrupt())?;
    let machine = Machine::here();
    let model = args.store.look()?.find(&args.model)?;
    let header = Gguf::read(&model.path)?;
    let mut bench = Bench {
        args,
        machine,
        model,
        header,
        interrupts,
        deadline,
        notes: Vec::new(),
    };
    let report = bench.report().await?;
    if let (Some(path), Some(run)) = (&bench.args.svg, &report.sustained) {
        let title = format!(
            "{}, {} tokens an answer",
            report.model.name, SUSTAINED_TOKENS
        );
        std::fs::write(path, svg(&title, run))
            .with_context(|| format!("{} can't be written", path.display()))?;
    }
    let text = render(&report, bench.args.output);
    no_progress();
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough (`| head`).
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    Ok(ExitCode::SUCCESS)
}

struct Bench {
    args: BenchArgs,
    machine: Machine,
    model: Model,
    header: Gguf,
    interrupts: Signal,
    deadline: Instant,
    /// What was left out, and why.
    notes: Vec<String>,
}

impl Bench {
    async fn report(&mut self) -> Result<Report> {
        let bandwidth = self.bandwidth().await?;
        progress("loading the model");
        let alone = Subject::load(self.settings(1)?, &self.model, self.deadline).await?;
        let facts = alone.lease().facts();
        let run = RunFacts::of(alone.pool().placement_of(facts), alone.info());
        let variant = alone.info().cpu_variant.as_deref();
        let mut report = Report {
            version: env!("CARGO_PKG_VERSION"),
            model: ModelFacts::of(&self.model.name, &self.header),
            machine: MachineFacts::of(
                &self.machine.topology,
                Allowed::here(),
                variant,
                huge::setting(),
            ),
            run,
            bandwidth,
            tests: Vec::new(),
            streams: Vec::new(),
            first_token: None,
            sustained: None,
            others: None,
            advice: Vec::new(),
        };
        alone.warm_up().await?;
        let processes = [Some(std::process::id()), alone.lease().engine().load().pid];
        let processes: Vec<u32> = processes.into_iter().flatten().collect();
        let before = Busy::now(&processes);
        if let Some(minutes) = self.args.sustained {
            report.sustained = self.sustained(&alone, minutes).await?;
        } else {
            report.tests = self.tests(&alone, &report).await?;
        }
        let after = Busy::now(&processes);
        report.others = before.and_then(|before| before.others_until(after?));
        alone.end().await;
        if self.args.sustained.is_none() {
            self.together(&mut report).await?;
        }
        let about_model = show::advice(&self.header);
        let laid_out = self.machine.kernels.laid_out(&self.header);
        report.advice = advice(&report, &self.machine.topology, about_model, laid_out);
        report.advice.append(&mut self.notes);
        Ok(report)
    }

    /// Settings for so many answers at once, with room for what is measured.
    fn settings(&self, parallel: u32) -> Result<PoolSettings> {
        let args = &self.args;
        let mut settings = args.engine.check(Some(parallel), 0, &self.machine)?;
        settings.placed.tunings = args.store.tunings(&self.machine, &args.engine);
        // Guesses are good or bad by what the text says, and random tokens say nothing.
        settings.asked.no_drafts = true;
        settings.engine.config.speculate = Speculate::Off;
        if args.engine.ctx_size.is_none() {
            let deepest = args.depth.iter().copied().max().unwrap_or(0);
            let each = match parallel {
                // Two more: the last token, and what the engine keeps free for it.
                1 => {
                    args.prompt
                        .max(deepest + args.generate)
                        .max(SUSTAINED_TOKENS * 2)
                        + 2
                }
                _ => SHORT_PROMPT + args.generate + 2,
            };
            let each = each.min(self.trained());
            let cells = each.next_multiple_of(256).min(self.trained()) * parallel;
            settings.asked.ctx_size = Some(cells);
            settings.engine.config.ctx_size = Some(cells);
        }
        Ok(settings)
    }

    fn trained(&self) -> u32 {
        match self.header.model_info().trained_context {
            0 => u32::MAX / 64,
            trained => trained,
        }
    }

    async fn bandwidth(&self) -> Result<Vec<Bandwidth>> {
        progress("reading memory");
        let most = self.machine.allowed.threads();
        // Each number up to four, then every other one and so on: it is a curve that flattens.
        let threads = (1..=most)
            .filter(move |threads| *threads <= 4 || threads.is_power_of_two() || *threads == most);
        let measured = tokio::task::spawn_blocking(|| bandwidth::measure(threads, BANDWIDTH_TIME));
        Ok(measured.await?)
    }

    /// Prompts and single answers.
    async fn tests(&mut self, subject: &Subject, report: &Report) -> Result<Vec<Test>> {
        let (args, room) = (self.args.clone(), subject.info().context_per_sequence);
        let mut tests = Vec::new();
        let name = format!("pp{}", args.prompt);
        if self.has_room(&name, args.prompt + 1, room) {
            let speeds = self.repeat(&name, async || subject.prefill(args.prompt).await);
            let speeds = speeds.await?;
            tests.extend(Test::of(name, &speeds, None));
        }
        for depth in &args.depth {
            let name = match depth {
                0 => format!("tg{}", args.generate),
                depth => format!("tg{} @ d{depth}", args.generate),
            };
            if !self.has_room(&name, depth + args.generate + 2, room) {
                continue;
            }
            // What stands before is decoded by the first of them, and not again.
            let speeds = self.repeat(&name, async || subject.decode(*depth, args.generate).await);
            let speeds = speeds.await?;
            let roofline = best(&report.bandwidth).map(|bandwidth| {
                // In the middle of the answer.
                let depth = depth + args.generate / 2;
                Roofline::of(&self.header, report.run.cache_type, depth, bandwidth)
            });
            tests.extend(Test::of(name, &speeds, roofline));
        }
        Ok(tests)
    }

    fn has_room(&mut self, name: &str, tokens: u32, room: u32) -> bool {
        if tokens > room {
            self.notes.push(format!(
                "{name} was left out: it takes {tokens} tokens, and there is room for {room}"
            ));
        }
        tokens <= room
    }

    /// Several answers at once, and the way over HTTP.
    async fn together(&mut self, report: &mut Report) -> Result<()> {
        let args = self.args.clone();
        let most = args.concurrency.iter().copied().max().unwrap_or(0);
        if most == 0 && args.http == 0 {
            return Ok(());
        }
        progress("loading the model for several answers");
        let settings = self.settings(most.max(1))?;
        let subject = match Subject::load(settings, &self.model, self.deadline).await {
            Ok(subject) => subject,
            Err(error) => {
                self.notes
                    .push(format!("{most} answers at once were left out: {error:#}"));
                return Ok(());
            }
        };
        for answers in args.concurrency.iter().filter(|answers| **answers > 0) {
            let name = match answers {
                1 => "1 answer".into(),
                answers => format!("{answers} answers at once"),
            };
            let all = self.repeat(&name, async || {
                subject.streams(*answers, args.generate).await
            });
            report.streams.extend(middle(all.await?));
        }
        if args.http > 0 && Instant::now() < self.deadline {
            progress("first token over HTTP");
            report.first_token = Some(first_token(&subject, args.http).await?);
        }
        subject.end().await;
        Ok(())
    }

    /// As many results as were asked for, after one that does not count; or as many as there was time for.
    async fn repeat<T>(
        &mut self,
        name: &str,
        measure: impl AsyncFn() -> Result<T>,
    ) -> Result<Vec<T>> {
        let wanted = self.args.repetitions as usize;
        let mut all = Vec::new();
        for repetition in 0..=wanted {
            progress(&format!("{name}, {repetition} of {wanted}"));
            match self.unless_interrupted(measure()).await {
                Ok(_) if repetition == 0 => {}
                Ok(one) => all.push(one),
                Err(_) if Instant::now() >= self.deadline => {
                    self.notes.push(format!(
                        "{name} was measured {} times instead of {wanted}: {} minutes were over; --minutes gives more",
                        all.len(),
                        self.args.minutes
                    ));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Answers one after the other, until the time is over or somebody has seen enough.
    async fn sustained(&mut self, subject: &Subject, minutes: f64) -> Result<Option<Sustained>> {
        let length = Duration::from_secs_f64(minutes * 60.0);
        let began = Instant::now();
        let mut samples: Vec<Sample> = Vec::new();
        while samples.len() < MOST_SAMPLES {
            let speed = tokio::select! {
                speed = subject.decode(SHORT_PROMPT, SUSTAINED_TOKENS) => speed?,
                _ = self.interrupts.recv() => break,
            };
            let sample = Sample::take(began.elapsed().as_secs_f64(), speed, &self.machine.topology);
            progress(&format!(
                "{:.1} of {minutes} minutes: {speed:.1} tokens/s",
                sample.seconds / 60.0
            ));
            samples.push(sample);
            if began.elapsed() >= length {
                break;
            }
        }
        Ok(Sustained::of(samples))
    }

    async fn unless_interrupted<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            _ = self.interrupts.recv() => bail!("interrupted"),
        }
    }
}

/// The repetition whose speed is in the middle.
fn middle(mut all: Vec<Streams>) -> Option<Streams> {
    all.sort_by(|one, other| one.tokens_per_second.total_cmp(&other.tokens_per_second));
    let half = all.len() / 2;
    all.into_iter().nth(half)
}

/// Tells a person who waits at a terminal what is going on, in place.
pub(super) fn progress(what: &str) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        // It is of no use to anybody else, and no loss.
        let _ = write!(err, "\r\x1b[K{what} …\r");
        let _ = err.flush();
    }
}

/// Takes away what [`progress`] said.
pub(super) fn no_progress() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}
