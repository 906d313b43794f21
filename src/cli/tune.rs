//! `pocket-llm tune`: tries cores, threads, rows and ways to store the cache with the real model, and keeps what is best.
//!
//! Each team of threads gets a worker of its own, as `serve` would start it. The whole takes no longer than it may: teams are tried in
//! the order in which they promise something, and what was not tried when the time is over is not chosen.

use super::bench::{no_progress, progress};
use crate::config::{EngineArgs, Machine, StoreArgs};
use crate::device::bandwidth;
use crate::device::busy::Busy;
use crate::device::{Placement, Team};
use crate::engine::wire::BUILD;
use crate::engine::{CacheType, Speculate};
use crate::measure::advice::busy;
use crate::measure::render::{placement, speed, team};
use crate::measure::report::best as best_bandwidth;
use crate::measure::search::{Trial, best, rows, rows_around, teams};
use crate::measure::subject::{SHORT_PROMPT, Subject};
use crate::models::gguf::Gguf;
use crate::models::memory::{DEFAULT_PARALLEL, DEFAULT_ROWS, plan};
use crate::models::{Figures, Model, Tuned, Tunings};
use crate::pool::PoolSettings;
use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use serde_json::json;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Tokens of a prompt whose speed is measured.
const PROMPT: u32 = 384;
/// Tokens of an answer whose speed is measured.
const ANSWER: u32 = 32;
/// Tokens before an answer when ways to store the cache are compared: where it is large enough to matter.
const DEPTH: u32 = 1024;
/// Each speed is measured so often, and the best one counts: whatever else runs only makes it slower.
const REPETITIONS: u32 = 2;
/// Another way to store the cache changes answers a little, so it must be worth it.
const CACHE_WORTH: f64 = 1.05;
/// The share of the rest of the teams' time that one of them may take.
const MOST_OF_REST: f64 = 0.5;
/// The share of the time that is left for rows and caches.
const LATER: f64 = 0.25;

/// What `tune` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct TuneArgs {
    /// A model's name (see `pocket-llm list`), `hf:OWNER/REPO/FILE.gguf`, or a GGUF file
    #[arg(env = "POCKET_LLM_MODEL")]
    model: String,

    /// How long it may take at most. What was not tried by then is not chosen
    #[arg(
        long,
        env = "POCKET_LLM_TUNE_MINUTES",
        default_value_t = 5.0,
        value_name = "MINUTES"
    )]
    minutes: f64,

    /// Keep `q8_0` for the KV cache if it is faster, although answers may differ a little. Without this it is only told
    #[arg(long, env = "POCKET_LLM_TUNE_ALLOW_Q8_CACHE", value_parser = FalseyValueParser::new())]
    allow_q8_cache: bool,

    /// Print one JSON object instead of lines for people
    #[arg(long, env = "POCKET_LLM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) async fn tune(args: TuneArgs) -> Result<ExitCode> {
    if args.engine.is_placed_by_hand() || args.engine.ctx_size.is_some() {
        bail!(
            "tune chooses --threads, --threads-batch, --cores and --ctx-size itself: leave them out"
        );
    }
    if !(0.05..=240.0).contains(&args.minutes) {
        bail!("--minutes {} can't be used: give 0.05 to 240", args.minutes);
    }
    let interrupts = signal(SignalKind::interrupt())?;
    let machine = Machine::here();
    let model = args.store.look()?.find(&args.model)?;
    let header = Gguf::read(&model.path)?;
    let tunings = args.store.tunings(&machine, &args.engine);
    let tunings =
        tunings.context("there is no folder of models to keep the result in: give --models DIR")?;
    let began = Instant::now();
    let mut tuner = Tuner {
        deadline: began + Duration::from_secs_f64(args.minutes * 60.0),
        args,
        machine,
        model,
        header,
        interrupts,
    };
    let found = tuner.search().await?;
    no_progress();
    tuner.keep(&found, &tunings)
}

struct Tuner {
    args: TuneArgs,
    machine: Machine,
    model: Model,
    header: Gguf,
    interrupts: Signal,
    deadline: Instant,
}

/// What was tried, and what is best.
struct Found {
    /// The team that is used without a result.
    rule: Team,
    trials: Vec<Trial>,
    /// Teams for which there was no time, or not enough.
    untried: usize,
    /// Rows, and the speed of prompts.
    rows: Vec<(u32, f64)>,
    /// Ways to store the cache, and the speed behind [`DEPTH`] tokens.
    caches: Vec<(CacheType, f64)>,
    tuned: Tuned,
    /// The share of all cores that other programs had meanwhile, if the system tells.
    others: Option<f64>,
}

impl Tuner {
    async fn search(&mut self) -> Result<Found> {
        let teams = teams(&self.machine.topology, &self.machine.allowed);
        // Workers are our children, and their times ours once they have ended.
        let processes = [std::process::id()];
        let before = Busy::now(&processes);
        let all = self.deadline.saturating_duration_since(Instant::now());
        let for_teams = Instant::now() + all.mul_f64(1.0 - LATER);
        let mut trials = Vec::new();
        for (index, team) in teams.iter().enumerate() {
            progress(&format!(
                "team {} of {}: {}",
                index + 1,
                teams.len(),
                self::team(team)
            ));
            // On busy cores a team may be many times slower than the next one, and must leave time for it.
            let left = for_teams.saturating_duration_since(Instant::now());
            let until = Instant::now() + left.mul_f64(MOST_OF_REST);
            match self.trial(team, until).await {
                Ok(trial) => trials.push(trial),
                Err(_) if Instant::now() >= for_teams => break,
                Err(_) if Instant::now() >= until => {}
                Err(error) => return Err(error),
            }
        }
        let placement = best(&trials).with_context(|| {
            format!("no team of threads was measured within {} minutes: give more with --minutes, or end what else computes here", self.args.minutes)
        })?;
        let rows_tried = self.rows(&placement).await?;
        let caches = self.caches(&placement).await?;
        let bandwidth = self.bandwidth().await?;
        let most = |speed: fn(&Trial) -> f64| trials.iter().map(speed).fold(0.0, f64::max);
        let tuned = Tuned {
            build: BUILD.into(),
            model: self.model.name.clone(),
            measured_at: SystemTime::UNIX_EPOCH
                .elapsed()
                .map_or(0, |since| since.as_secs()),
            batch_size: self.args.engine.batch_size.or(rows(&rows_tried)),
            cache_type: self.cache_type(&caches),
            bandwidth,
            figures: Figures {
                prefill: most(|trial| trial.prefill),
                decode: most(|trial| trial.decode),
                decode_few: most(|trial| trial.decode_few),
            },
            placement: Some(placement),
        };
        let after = Busy::now(&processes);
        Ok(Found {
            others: before.and_then(|before| before.others_until(after?)),
            rule: teams.first().cloned().unwrap_or_default(),
            untried: teams.len() - trials.len(),
            trials,
            rows: rows_tried,
            caches,
            tuned,
        })
    }

    /// What a team reaches. An error also when the time is over.
    async fn trial(&mut self, team: &Team, until: Instant) -> Result<Trial> {
        let answers = DEFAULT_PARALLEL;
        let prompt = PROMPT.min(self.trained() / 2);
        let settings = self.settings(&Placement::of(team), answers, PROMPT + 2)?;
        let subject = self.load(settings, until).await?;
        let measured = async {
            subject.warm_up().await?;
            let mut trial = Trial {
                team: team.clone(),
                prefill: 0.0,
                decode: 0.0,
                decode_few: 0.0,
            };
            for repetition in 0..REPETITIONS {
                let once = async {
                    let prefill = subject.prefill(prompt).await?;
                    let decode = subject.decode(1, ANSWER).await?;
                    let few = subject.streams(answers, ANSWER).await?;
                    anyhow::Ok((prefill, decode, few.tokens_per_second))
                };
                let (prefill, decode, few) = match once.await {
                    Ok(speeds) => speeds,
                    // One is better than none.
                    Err(_) if repetition > 0 => break,
                    Err(error) => return Err(error),
                };
                trial.prefill = trial.prefill.max(prefill);
                trial.decode = trial.decode.max(decode);
                trial.decode_few = trial.decode_few.max(few);
            }
            Ok(trial)
        };
        let measured = unless_interrupted(&mut self.interrupts, measured).await;
        subject.end().await;
        measured
    }

    /// The speed of prompts in steps of other sizes, for which there is memory and time.
    async fn rows(&mut self, placement: &Placement) -> Result<Vec<(u32, f64)>> {
        let mut tried = Vec::new();
        if self.args.engine.batch_size.is_some() {
            return Ok(tried);
        }
        let settings = self.settings(placement, 1, PROMPT + 2)?;
        let planned = plan(&self.header, &settings.asked, settings.kernels, None);
        let usual = planned.map_or(DEFAULT_ROWS, |plan| plan.batch_size);
        for rows in rows_around(usual) {
            progress(&format!("{rows} rows a step"));
            let mut settings = self.settings(placement, 1, PROMPT + 2)?;
            settings.asked.batch_size = Some(rows);
            settings.engine.config.batch_size = rows;
            let speed = self.one(settings, async |subject| {
                subject
                    .prefill(PROMPT.min(subject.info().context_per_sequence - 2))
                    .await
            });
            match speed.await? {
                Some(speed) => tried.push((rows, speed)),
                None => break,
            }
        }
        Ok(tried)
    }

    /// The speed of an answer behind a long text, for each way to store the cache.
    async fn caches(&mut self, placement: &Placement) -> Result<Vec<(CacheType, f64)>> {
        let mut tried = Vec::new();
        if self.args.engine.cache_type.is_some() || self.trained() < DEPTH + ANSWER + 2 {
            return Ok(tried);
        }
        for cache_type in [CacheType::F16, CacheType::Q8_0] {
            progress(&format!("KV cache in {cache_type}"));
            let mut settings = self.settings(placement, 1, DEPTH + ANSWER + 2)?;
            settings.asked.cache_type = cache_type;
            settings.engine.config.cache_type = cache_type;
            let speed = self.one(settings, async |subject| {
                // What stands before is decoded now.
                subject.decode(DEPTH, 1).await?;
                subject.decode(DEPTH, ANSWER).await
            });
            match speed.await? {
                Some(speed) => tried.push((cache_type, speed)),
                None => break,
            }
        }
        Ok(tried)
    }

    /// The best of some measurements; `None` where there is no time or no memory for them.
    async fn one(
        &mut self,
        settings: PoolSettings,
        measure: impl AsyncFn(&Subject) -> Result<f64>,
    ) -> Result<Option<f64>> {
        let until = self.deadline;
        let subject = match self.load(settings, until).await {
            Ok(subject) => subject,
            Err(error) if error.is::<Interrupted>() => return Err(error),
            // No memory for it, or no time.
            Err(_) => return Ok(None),
        };
        let measured = async {
            subject.warm_up().await?;
            let mut most = 0.0_f64;
            for _ in 0..REPETITIONS {
                most = most.max(measure(&subject).await?);
            }
            Ok(most)
        };
        let measured = unless_interrupted(&mut self.interrupts, measured).await;
        subject.end().await;
        match measured {
            Ok(speed) => Ok(Some(speed)),
            Err(_) if Instant::now() >= until => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn load(&mut self, settings: PoolSettings, until: Instant) -> Result<Subject> {
        unless_interrupted(
            &mut self.interrupts,
            Subject::load(settings, &self.model, until),
        )
        .await
    }

    async fn bandwidth(&self) -> Result<Option<u64>> {
        progress("reading memory");
        let threads = self.machine.allowed.threads();
        let measure = move || {
            bandwidth::measure(
                [1, threads.div_ceil(2), threads].into_iter(),
                Duration::from_millis(200),
            )
        };
        Ok(best_bandwidth(&tokio::task::spawn_blocking(measure).await?))
    }

    /// Settings for so many answers at once, each with room for so many tokens.
    fn settings(&self, placement: &Placement, answers: u32, tokens: u32) -> Result<PoolSettings> {
        let mut settings = self.args.engine.check(Some(answers), 0, &self.machine)?;
        let each = tokens.max(SHORT_PROMPT + ANSWER + 2).next_multiple_of(256);
        let cells = each.min(self.trained()) * answers;
        settings.asked.ctx_size = Some(cells);
        settings.engine.config.ctx_size = Some(cells);
        settings.engine.config.place(placement.clone());
        // Guesses are good or bad by what the text says, and random tokens say nothing.
        settings.asked.no_drafts = true;
        settings.engine.config.speculate = Speculate::Off;
        Ok(settings)
    }

    fn trained(&self) -> u32 {
        match self.header.model_info().trained_context {
            0 => u32::MAX / 64,
            trained => trained,
        }
    }

    /// Another way to store the cache, if it may be kept and is worth it.
    fn cache_type(&self, tried: &[(CacheType, f64)]) -> Option<CacheType> {
        let of = |wanted: CacheType| tried.iter().find(|(cache_type, _)| *cache_type == wanted);
        let (_, f16) = of(CacheType::F16)?;
        let (_, q8) = of(CacheType::Q8_0)?;
        (self.args.allow_q8_cache && *q8 >= f16 * CACHE_WORTH).then_some(CacheType::Q8_0)
    }

    fn keep(&self, found: &Found, tunings: &Tunings) -> Result<ExitCode> {
        let path = tunings.save(&self.header, &found.tuned);
        let path = path.context("the result can't be kept: give a folder of models that can be written, with --models DIR")?;
        let text = if self.args.json {
            let json = json!({
                "file": path, "tuned": found.tuned, "trials": found.trials, "untried_teams": found.untried,
                "others": found.others, "rows": found.rows, "cache_types": found.caches,
            });
            format!("{json:#}\n")
        } else {
            format!(
                "{}\nkept in {}\n`serve` and `run` use it for this model on this machine; --threads or --cores by hand count more\n",
                self.told(found),
                path.display()
            )
        };
        match std::io::stdout().write_all(text.as_bytes()) {
            // Whoever reads has seen enough (`| head`).
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn told(&self, found: &Found) -> String {
        let mut lines = vec![format!(
            "{:<28} {:>9} {:>11} {:>10}   tokens/s",
            "",
            "prompts",
            "one answer",
            format!("{DEFAULT_PARALLEL} answers")
        )];
        lines.extend(found.trials.iter().map(|trial| {
            let is_rule = trial.team == found.rule;
            let rule = if is_rule { " (the rule)" } else { "" };
            format!(
                "{:<28} {:>9} {:>11} {:>10}",
                team(&trial.team) + rule,
                speed(trial.prefill),
                speed(trial.decode),
                speed(trial.decode_few)
            )
        }));
        if found.untried > 0 {
            lines.push(format!(
                "{} more could not be measured in {} minutes; --minutes gives more",
                found.untried, self.args.minutes
            ));
        }
        let list = |all: Vec<String>| all.join(", ");
        if !found.rows.is_empty() {
            let rows = found
                .rows
                .iter()
                .map(|(rows, reached)| format!("{rows}: {}", speed(*reached)));
            lines.push(format!(
                "\nprompts by rows a step: {}",
                list(rows.collect())
            ));
        }
        if let [(_, f16), (_, q8)] = found.caches.as_slice() {
            lines.push(format!(
                "an answer behind {DEPTH} tokens: {} with the KV cache in f16, {} in q8_0",
                speed(*f16),
                speed(*q8)
            ));
            if *q8 >= f16 * CACHE_WORTH && found.tuned.cache_type.is_none() {
                lines.push("q8_0 would be faster: --allow-q8-cache keeps it, or serve with --cache-type q8_0".into());
            }
        }
        lines.extend(busy(found.others).map(|sentence| format!("\n{sentence}")));
        let tuned = &found.tuned;
        let teams = tuned.placement.as_ref().map(placement).unwrap_or_default();
        let rows = tuned.batch_size.map(|rows| format!(", {rows} rows a step"));
        let cache = tuned
            .cache_type
            .map(|cache_type| format!(", KV cache in {cache_type}"));
        lines.push(format!(
            "\nbest: {teams}{}{}",
            rows.unwrap_or_default(),
            cache.unwrap_or_default()
        ));
        lines.join("\n")
    }
}

/// Somebody pressed Ctrl-C.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: nothing was kept")]
struct Interrupted;

async fn unless_interrupted<T>(
    interrupts: &mut Signal,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        done = work => done,
        _ = interrupts.recv() => Err(Interrupted.into()),
    }
}
