//! `pocket-llm run`: one prompt, or a chat in the terminal.
//!
//! The answer is standard output and nothing else is. Ctrl-C stops an answer, and ends the program when there is none.

use crate::config::{EngineArgs, Machine, StoreArgs};
use crate::engine::{Event, FinishReason, Message, Prompt, Request, Role, Sampling, Usage};
use crate::pool::{Drafts, Lease, Pool};
use crate::serve;
use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// More of a pipe is not read: no context holds it.
const MOST_PIPED: u64 = 8 << 20;

/// What `run` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct RunArgs {
    /// A model's name (see `pocket-llm list`), `hf:OWNER/REPO/FILE.gguf`, or a GGUF file
    #[arg(env = "POCKET_LLM_MODEL")]
    model: String,

    /// What to ask; without it a terminal gets a chat, and a pipe is read to its end. With both, the pipe's text comes
    /// after the prompt
    prompt: Option<String>,

    /// Standing instructions
    #[arg(long, short = 's', env = "POCKET_LLM_SYSTEM")]
    system: Option<String>,

    /// Tokens of an answer at most [default: what the context has room for]
    #[arg(long, short = 'n', env = "POCKET_LLM_MAX_TOKENS", value_name = "N")]
    max_tokens: Option<u32>,

    /// 0 always takes the likeliest token; higher is more varied [default: the model's]
    #[arg(long, env = "POCKET_LLM_TEMPERATURE")]
    temperature: Option<f32>,

    /// The same seed gives the same answer [default: random]
    #[arg(long, env = "POCKET_LLM_SEED")]
    seed: Option<u64>,

    /// Print tokens and speed on standard error after each answer
    #[arg(long, short = 'v', env = "POCKET_LLM_VERBOSE", value_parser = FalseyValueParser::new())]
    verbose: bool,

    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    engine: EngineArgs,
}

pub(super) async fn run(args: RunArgs) -> Result<ExitCode> {
    if args.temperature.is_some_and(|t| !t.is_finite() || t < 0.0) {
        bail!("--temperature: give 0 or more");
    }
    // One conversation: a single sequence has the whole context.
    let machine = Machine::here();
    let mut settings = args.engine.check(Some(1), 0, &machine)?;
    settings.placed.tunings = args.store.tunings(&machine, &args.engine);
    let piped = piped().await?;
    let prompt = match (args.prompt.clone(), piped) {
        (Some(prompt), Some(piped)) => Some(format!("{prompt}\n\n{piped}")),
        (prompt, piped) => prompt.or(piped),
    };
    let collection = args.store.look()?;
    let model = collection.find(&args.model)?;
    settings.drafts = Drafts::new(args.engine.draft_model.as_deref(), &collection)?;
    let pool = Pool::new(settings);
    let lease = serve::load(&pool, &model).await?;
    let interrupts = signal(SignalKind::interrupt())?;
    let mut chat = Chat {
        lease,
        args,
        messages: Vec::new(),
        interrupts,
    };
    chat.messages.extend(
        chat.args
            .system
            .clone()
            .map(|content| Message::new(Role::System, content)),
    );
    let code = match prompt {
        Some(prompt) => chat.one(prompt).await,
        None => chat.terminal().await,
    };
    pool.shutdown().await;
    code
}

/// All of standard input, if it is not a terminal.
async fn piped() -> Result<Option<String>> {
    if std::io::stdin().is_terminal() {
        return Ok(None);
    }
    let read = tokio::task::spawn_blocking(|| {
        let mut bytes = Vec::new();
        std::io::stdin()
            .lock()
            .take(MOST_PIPED + 1)
            .read_to_end(&mut bytes)
            .map(|_| bytes)
    });
    let bytes = read.await?.context("standard input can't be read")?;
    if bytes.len() as u64 > MOST_PIPED {
        bail!("standard input has more than {MOST_PIPED} bytes");
    }
    let text = String::from_utf8(bytes).context("standard input is not UTF-8")?;
    Ok(Some(text).filter(|text| !text.trim().is_empty()))
}

struct Chat {
    lease: Lease,
    args: RunArgs,
    messages: Vec<Message>,
    interrupts: Signal,
}

/// How an answer ended.
enum Answer {
    Whole(String),
    Interrupted(String),
    /// Standard output is closed (`| head`).
    Unread,
}

impl Chat {
    /// One prompt, one answer.
    async fn one(&mut self, prompt: String) -> Result<ExitCode> {
        self.messages.push(Message::new(Role::User, prompt));
        match self.answer().await? {
            Answer::Whole(_) | Answer::Unread => Ok(ExitCode::SUCCESS),
            // What a shell expects of a program that Ctrl-C ended.
            Answer::Interrupted(_) => Ok(ExitCode::from(130)),
        }
    }

    /// A chat until end of input.
    async fn terminal(&mut self) -> Result<ExitCode> {
        eprintln!(
            "{} is ready. An empty line or Ctrl-D ends the chat, /clear begins a new one, Ctrl-C stops an answer.",
            self.lease.facts().model.name
        );
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        loop {
            eprint!("> ");
            let line = tokio::select! {
                line = lines.next_line() => line?,
                _ = self.interrupts.recv() => None,
            };
            let Some(line) = line.filter(|line| !line.trim().is_empty()) else {
                eprintln!();
                return Ok(ExitCode::SUCCESS);
            };
            if line.trim() == "/clear" {
                self.messages.retain(|message| message.role == Role::System);
                continue;
            }
            self.messages.push(Message::new(Role::User, line));
            match self.answer().await {
                Ok(Answer::Whole(content) | Answer::Interrupted(content)) => {
                    self.messages.push(Message::new(Role::Assistant, content));
                }
                Ok(Answer::Unread) => return Ok(ExitCode::SUCCESS),
                Err(error) => {
                    eprintln!("{error:#}");
                    self.messages.pop();
                }
            }
        }
    }

    /// Streams the answer to the conversation so far.
    async fn answer(&mut self) -> Result<Answer> {
        let mut generation = self.lease.engine().submit(self.request())?;
        let mut out = std::io::stdout();
        let mut answer = String::new();
        loop {
            let event = tokio::select! {
                event = generation.next() => event,
                _ = self.interrupts.recv() => {
                    eprintln!();
                    return Ok(Answer::Interrupted(answer));
                }
            };
            match event {
                Some(Event::Text { text, thinking, .. }) => {
                    // Reasoning is shown, but only the answer is a result.
                    let written = if thinking {
                        std::io::stderr().write_all(text.as_bytes())
                    } else {
                        answer.push_str(&text);
                        out.write_all(text.as_bytes()).and_then(|()| out.flush())
                    };
                    match written {
                        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                            return Ok(Answer::Unread);
                        }
                        other => other?,
                    }
                }
                Some(Event::Finished(outcome)) => {
                    if !answer.ends_with('\n') {
                        out.write_all(b"\n").or_else(ignore_closed)?;
                    }
                    if outcome.reason == FinishReason::Length && self.args.max_tokens.is_none() {
                        eprintln!(
                            "[the context is full: start with a larger --ctx-size, or /clear]"
                        );
                    }
                    if self.args.verbose {
                        report(&outcome.usage);
                    }
                    return Ok(Answer::Whole(answer));
                }
                Some(Event::Failed(error)) => return Err(error.into()),
                // A chat at the terminal has no tools, and asks no questions.
                Some(
                    Event::Accepted { .. }
                    | Event::Started { .. }
                    | Event::ToolCall { .. }
                    | Event::Answered(_),
                ) => {}
                None => bail!("the engine ended"),
            }
        }
    }

    fn request(&self) -> Request {
        let model = &self.lease.facts().sampling;
        Request {
            sampling: Sampling {
                temperature: self.args.temperature.unwrap_or(model.temperature),
                top_k: model.top_k,
                top_p: model.top_p,
                min_p: model.min_p,
                repeat_penalty: model.repeat_penalty,
                seed: self.args.seed.unwrap_or_else(Sampling::random_seed),
                ..Sampling::GREEDY
            },
            max_tokens: self.args.max_tokens,
            ..Request::new("terminal", Prompt::Messages(self.messages.clone()))
        }
    }
}

fn ignore_closed(error: std::io::Error) -> std::io::Result<()> {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        Ok(())
    } else {
        Err(error)
    }
}

fn report(usage: &Usage) {
    let speed = |tokens: u32, ms: f64| {
        if ms > 0.0 {
            f64::from(tokens) * 1000.0 / ms
        } else {
            0.0
        }
    };
    let decoded = usage.prompt_tokens - usage.cached_tokens.min(usage.prompt_tokens);
    eprintln!(
        "[prompt {} tokens ({} cached) at {:.1} tokens/s, answer {} tokens at {:.1} tokens/s, first token after {:.0} ms]",
        usage.prompt_tokens,
        usage.cached_tokens,
        speed(decoded, usage.prompt_ms),
        usage.completion_tokens,
        speed(
            usage.completion_tokens.saturating_sub(1),
            usage.predicted_ms
        ),
        usage.ttft_ms,
    );
}
