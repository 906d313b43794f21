//! The part that computes: runs as `pocket-llm engine`, one process for each loaded model.
//!
//! One thread, the engine thread, owns the model's context and everything that changes ([`run`]). Beside it one thread reads
//! frames, two tokenise, and one compiles formats once there was one. Requests and their cancel flags go through channels, and only the
//! engine thread writes frames.

pub mod cache;
pub mod constraint;
pub mod crowd;
pub mod decoder;
pub mod embedding;
#[cfg(feature = "llama")]
pub mod llama;
pub mod padding;
pub mod process;
pub mod prompt;
pub mod run;
pub mod sampled;
pub mod sampling;
pub mod scheduler;
pub mod sequence;
pub mod speculation;
pub mod teams;
pub mod text;
pub mod tools;
pub mod watch;

use crate::engine::Token;
use crate::engine::wire::{self, BUILD, FromWorker, RequestId, ToWorker};
use crate::engine::{
    Answer, EngineError, Event, Format, Prompt, Question, Request, Speculate, ToolChoice, Tools,
    Work, WorkerConfig,
};
use crate::models::memory::logit_rows;
use constraint::{Compiler, Form, Job, Plan, Start};
use decoder::{Backend, Loaded, Vocab};
use prompt::{PromptError, Template};
use run::{Inbound, Report, Sizes};
use rustix::event::{PollFd, PollFlags, poll};
use sequence::Arrival;
use speculation::Costs;
use std::collections::{HashMap, HashSet};
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Threads that render templates and tokenise.
const TOKENISERS: usize = 2;
/// Numbers in all embeddings of one answer: 2,048 texts for a model of width 1,024.
const MOST_EMBEDDED_NUMBERS: usize = 2 << 20;
/// Biases of single tokens in one request.
const MOST_BIASES: usize = 1024;
/// Tokens of one question's answer, or of the question: a frame holds them, and the front many times their size.
const MOST_ASKED_TOKENS: usize = 1 << 16;
/// Bytes of a text that is only to be tokenised.
const MOST_ASKED_BYTES: usize = 1 << 20;
/// A worker that embeds nothing keeps what embeddings need for this long.
const EMBEDDING_REST: Duration = Duration::from_mins(1);
/// For so long the engine thread rests when it has told an answer's first token. Where the threads of a step have all cores, the kernel
/// gives the front one of them only with its next tick, up to 4 ms later; a core that becomes idle takes it over at once.
const FIRST_TOKEN_PAUSE: Duration = Duration::from_micros(400);
/// Loading reports progress no more often than this.
const PROGRESS_PAUSE: Duration = Duration::from_millis(50);

/// Serves one front over `stream`: loads what it asks for, then answers until the stream ends. `lost` runs on the reading
/// thread when the stream has ended, also in the middle of loading.
pub fn serve(stream: UnixStream, backend: &dyn Backend, lost: impl FnOnce() + Send + 'static) {
    let stream = HangUp(stream);
    if let Err(error) = try_serve(&stream.0, backend, lost) {
        tracing::debug!(%error, "the front is gone");
    }
}

/// Ends the stream for all its clones when serving ends, by a panic too: the reading thread and the front must see it.
struct HangUp(UnixStream);

impl Drop for HangUp {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

fn try_serve(
    stream: &UnixStream,
    backend: &dyn Backend,
    lost: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let mut out = stream.try_clone()?;
    wire::write(
        &mut out,
        &FromWorker::Hello {
            build: BUILD.into(),
        },
    )?;
    let mut frames = stream.try_clone()?;
    let config = match wire::read(&mut frames)? {
        Some(ToWorker::Load { build, config }) if build == BUILD => config,
        Some(ToWorker::Load { build, .. }) => {
            let reason = format!("the server is another build ({build}, the worker is {BUILD})");
            return wire::write(&mut out, &FromWorker::LoadFailed { reason });
        }
        Some(_) => return Err(std::io::Error::other("the front did not say what to load")),
        None => return Ok(()),
    };
    let places = config.places as usize;
    let (submitted, to_tokenise) = sync_channel(places.max(1));
    let (to_engine, inbox) = sync_channel(2 * places.max(1));
    let wake = to_engine.clone();
    let live = Arc::new(Live::default());
    thread::Builder::new().name("reader".into()).spawn({
        let live = Arc::clone(&live);
        move || read_frames(frames, &submitted, &wake, &live, lost)
    })?;
    let progress = report_progress(out.try_clone()?);
    let to_tokenise = Arc::new(Mutex::new(to_tokenise));
    let began = Instant::now();
    let loaded = backend.run(&config, progress, &mut |loaded| {
        let outlets = Outlets {
            to_tokenise: &to_tokenise,
            to_engine: &to_engine,
            inbox: &inbox,
            live: &live,
        };
        answer(&mut out, &config, began, loaded, &outlets);
    });
    match loaded {
        Ok(()) => Ok(()),
        Err(error) => wire::write(
            &mut out,
            &FromWorker::LoadFailed {
                reason: error.to_string(),
            },
        ),
    }
}

/// Tells how far loading is. The answer (go on?) is always yes: a front that is gone ends the process anyway.
fn report_progress(mut out: UnixStream) -> Box<dyn FnMut(f32) -> bool> {
    let mut last: Option<Instant> = None;
    Box::new(move |progress| {
        if last.is_none_or(|last| last.elapsed() >= PROGRESS_PAUSE) {
            last = Some(Instant::now());
            return wire::write(&mut out, &FromWorker::Loading { progress }).is_ok();
        }
        true
    })
}

/// A request on its way to be tokenised.
struct Submitted {
    id: RequestId,
    work: Work,
    arrived: Instant,
    cancelled: Arc<AtomicBool>,
}

/// The channels between the worker's threads.
struct Outlets<'a> {
    to_tokenise: &'a Arc<Mutex<Receiver<Submitted>>>,
    to_engine: &'a SyncSender<Inbound>,
    inbox: &'a Receiver<Inbound>,
    live: &'a Live,
}

/// The requests that came and have not gone, with their cancel flags. Locked for a look only: by the reader, and by the engine
/// thread in the rare case that an event can't be sent.
#[derive(Default)]
struct Live(Mutex<HashMap<RequestId, Weak<AtomicBool>>>);

impl Live {
    fn insert(&self, id: RequestId, cancelled: &Arc<AtomicBool>) {
        let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if live.len() >= 64
            && live.len() >= 2 * live.values().filter(|flag| flag.strong_count() > 0).count()
        {
            live.retain(|_, flag| flag.strong_count() > 0);
        }
        live.insert(id, Arc::downgrade(cancelled));
    }

    /// Whether there was something to cancel.
    fn cancel(&self, id: RequestId) -> bool {
        let mut live = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let flag = live.remove(&id).and_then(|flag| flag.upgrade());
        if let Some(flag) = &flag {
            flag.store(true, Ordering::Relaxed);
        }
        flag.is_some()
    }
}

/// Runs the loop over a loaded model until the front is gone.
fn answer(
    out: &mut UnixStream,
    config: &WorkerConfig,
    began: Instant,
    loaded: Loaded<'_>,
    outlets: &Outlets<'_>,
) {
    let Loaded {
        mut info,
        vocab,
        decoder,
        draft,
    } = loaded;
    let (template, warning) = Template::new(&*vocab, config.chat_template.as_deref());
    if let Some(warning) = warning {
        tracing::warn!(warning, "the model's chat template is not used");
    }
    template.source().clone_into(&mut info.template);
    info.thinks = template.thinks();
    info.template_knows_tools = template.knows_tools();
    info.load_ms = began.elapsed().as_secs_f64() * 1000.0;
    let sizes = Sizes {
        sequences: info.sequences,
        context_per_sequence: info.context_per_sequence,
        batch_size: config.batch_size,
        step_ms: config.step_ms,
        pooling: info.pooling,
        cache_bytes: info.cache_bytes,
        cache_scope: config.cache_scope,
        costs: match config.speculate {
            Speculate::Always => Some(Costs::little()),
            Speculate::Auto | Speculate::Off => None,
        },
        draft_rows: if config.speculate != Speculate::Off && decoder.takes_back() {
            logit_rows(info.vocab_size).min(config.batch_size)
        } else {
            0
        },
        embedding_rest: EMBEDDING_REST,
    };
    let tokeniser = Arc::new(Tokeniser {
        template,
        vocab: Arc::clone(&vocab),
        context: info.context_per_sequence,
        embedding_width: info.embedding_width,
        compiler: Compiler::new(
            Arc::clone(&vocab),
            outlets.to_engine.clone(),
            config.places as usize,
        ),
    });
    for _ in 0..TOKENISERS {
        let (tokeniser, inbox) = (Arc::clone(&tokeniser), Arc::clone(outlets.to_tokenise));
        let to_engine = outlets.to_engine.clone();
        let spawned = thread::Builder::new()
            .name("tokeniser".into())
            .spawn(move || tokeniser.work(&inbox, &to_engine));
        if let Err(error) = spawned {
            let reason = format!("no thread for the tokeniser: {error}");
            // The front is told as well as can be; when it is gone, so are we.
            let _ = wire::write(out, &FromWorker::LoadFailed { reason });
            return;
        }
    }
    if wire::write(out, &FromWorker::Loaded(Box::new(info))).is_err() {
        return;
    }
    run::run(
        sizes,
        vocab,
        (decoder, draft),
        outlets.inbox,
        &mut |report| tell(out, outlets.live, report),
    );
}

/// Sends what a turn of the loop brought; `false` if nobody listens. An event that fits into no frame is the failure of its request:
/// the front hears of it and the request is cancelled.
fn tell(out: &mut impl Write, live: &Live, report: Report) -> bool {
    let Report {
        events,
        stats,
        first,
    } = report;
    let too_large = |error: &std::io::Error| error.kind() == ErrorKind::FileTooLarge;
    let whole = FromWorker::Step { events, stats };
    let told = wire::write(out, &whole);
    let (Err(error), FromWorker::Step { events, stats }) = (told, whole) else {
        if first {
            thread::sleep(FIRST_TOKEN_PAUSE);
        }
        return true;
    };
    if !too_large(&error) {
        return false;
    }
    let mut failed = HashSet::new();
    for (id, event) in events {
        if failed.contains(&id) {
            continue;
        }
        let mut send = |event| {
            let (events, stats) = (vec![(id, event)], stats.clone());
            wire::write(out, &FromWorker::Step { events, stats })
        };
        let mut told = send(event);
        if told.as_ref().is_err_and(too_large) {
            tracing::warn!(request = id, "an answer was too large for a frame");
            failed.insert(id);
            live.cancel(id);
            told = send(Event::Failed(EngineError::BadRequest(
                "the answer is too large to be passed on: ask for less at once".into(),
            )));
        }
        if told.is_err() {
            return false;
        }
    }
    true
}

/// Waits until there is something to read. A thread that waits in a read of a local socket is woken whenever the other end has taken
/// what was written to it, which is after each step (Linux 6.18); one that polls is not.
fn await_bytes(from: &UnixStream) {
    let mut wanted = [PollFd::new(from, PollFlags::IN)];
    // A signal, or anything else that is wrong, is the read's to tell.
    let _ = poll(&mut wanted, None);
}

/// Reads frames until the stream ends. Cancels take effect here, by a flag that every stage looks at.
fn read_frames(
    mut from: UnixStream,
    submitted: &SyncSender<Submitted>,
    engine: &SyncSender<Inbound>,
    live: &Live,
    lost: impl FnOnce(),
) {
    loop {
        await_bytes(&from);
        match wire::read(&mut from) {
            Ok(Some(ToWorker::Submit { id, work })) => {
                let cancelled = Arc::new(AtomicBool::new(false));
                live.insert(id, &cancelled);
                let arrived = Instant::now();
                if submitted
                    .send(Submitted {
                        id,
                        work,
                        arrived,
                        cancelled,
                    })
                    .is_err()
                {
                    break;
                }
            }
            Ok(Some(ToWorker::Cancel { id })) => {
                if live.cancel(id) {
                    // A full inbox wakes the loop anyway.
                    let _ = engine.try_send(Inbound::Wake);
                }
            }
            Ok(Some(ToWorker::Load { .. })) => {
                tracing::error!("the front asked for a second model");
                break;
            }
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "no more frames");
                break;
            }
        }
    }
    lost();
    // The loop may have ended already.
    let _ = engine.send(Inbound::Closed);
}

/// Turns requests into arrivals, beside the engine thread.
struct Tokeniser {
    template: Template,
    vocab: Arc<dyn Vocab>,
    context: u32,
    embedding_width: u32,
    compiler: Compiler,
}

impl Tokeniser {
    fn work(&self, inbox: &Mutex<Receiver<Submitted>>, engine: &SyncSender<Inbound>) {
        loop {
            // The lock is held while waiting: whoever has it takes the next request, the other one is at work.
            let next = inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(submitted) = next else { return };
            let id = submitted.id;
            if submitted.cancelled.load(Ordering::Relaxed) {
                continue;
            }
            let inbound = match self.inbound(submitted) {
                Ok(Some(inbound)) => inbound,
                // It has a form, and comes from the compiler.
                Ok(None) => continue,
                Err(error) => Inbound::Done(id, Event::Failed(error)),
            };
            if engine.send(inbound).is_err() {
                return;
            }
        }
    }

    fn inbound(&self, submitted: Submitted) -> Result<Option<Inbound>, EngineError> {
        let Submitted {
            id,
            work,
            arrived,
            cancelled,
        } = submitted;
        let inbound = match work {
            Work::Generate(request) => {
                let (arrival, held) = self.prepare(id, *request, arrived, cancelled)?;
                let arrival = Box::new(arrival);
                let Some((form, plan)) = held else {
                    return Ok(Some(Inbound::Arrival(arrival)));
                };
                let job = Job {
                    arrival,
                    form,
                    plan,
                };
                return self.compiler.submit(job).map(|()| None);
            }
            Work::Ask(question) => match *question {
                Question::Embed {
                    client,
                    inputs,
                    deadline_ms,
                } => self.texts(&inputs).map(|texts| {
                    let deadline = deadline(arrived, deadline_ms);
                    let texts = embedding::Texts::new((id, client), texts, deadline, cancelled);
                    Inbound::Embed(Box::new(texts))
                }),
                other => self
                    .answer(other)
                    .map(|answer| Inbound::Done(id, Event::Answered(answer))),
            },
        };
        inbound.map(Some)
    }

    /// Answers what needs the vocabulary and the template only.
    fn answer(&self, question: Question) -> Result<Answer, EngineError> {
        Ok(match question {
            Question::Tokenize {
                text,
                add_special,
                parse_special,
            } => {
                if text.len() > MOST_ASKED_BYTES {
                    return Err(too_much("bytes", MOST_ASKED_BYTES));
                }
                let mut tokens = self.vocab.tokenize(&text, false, parse_special);
                check_asked(&tokens)?;
                if add_special {
                    tokens.splice(0..0, prompt::opening(&*self.vocab));
                }
                Answer::Tokens(tokens.into_iter().map(|token| self.spelt(token)).collect())
            }
            Question::Detokenize { tokens } => {
                check_asked(&tokens)?;
                tokens.iter().try_for_each(|token| self.check(*token))?;
                Answer::Text(self.text(&tokens))
            }
            Question::Render { messages, tools } => {
                check_tools(tools.as_ref())?;
                let rendered = self.template.render(&messages, tools.as_ref());
                let rendered = rendered.map_err(|error| self.refuse(&error))?;
                Answer::Text(rendered.text().into_owned())
            }
            Question::Embed { .. } => {
                return Err(EngineError::Internal("not answered beside the loop".into()));
            }
        })
    }

    /// The tokens' text; what is no whole character is replaced.
    fn text(&self, tokens: &[Token]) -> String {
        let mut bytes = Vec::new();
        for token in tokens {
            self.vocab.append_bytes(*token, &mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn spelt(&self, token: Token) -> (Token, Vec<u8>) {
        let mut bytes = Vec::new();
        self.vocab.append_bytes(token, &mut bytes);
        (token, bytes)
    }

    fn check(&self, token: Token) -> Result<(), EngineError> {
        let size = self.vocab.size();
        if token.0 < size {
            return Ok(());
        }
        Err(EngineError::BadRequest(format!(
            "there is no token {}: this model's are 0 to {}",
            token.0,
            size.saturating_sub(1)
        )))
    }

    fn check_biases(&self, biases: &[(Token, f32)]) -> Result<(), EngineError> {
        if biases.len() > MOST_BIASES {
            return Err(EngineError::BadRequest(format!(
                "at most {MOST_BIASES} tokens can have a bias"
            )));
        }
        biases.iter().try_for_each(|(token, bias)| {
            self.check(*token)?;
            if bias.is_finite() {
                return Ok(());
            }
            let why = format!("the bias of token {} is no number", token.0);
            Err(EngineError::BadRequest(why))
        })
    }

    /// The tokens of texts that are to be embedded.
    fn texts(&self, inputs: &[Prompt]) -> Result<Vec<Vec<Token>>, EngineError> {
        // The answer is one frame.
        let most = MOST_EMBEDDED_NUMBERS / (self.embedding_width as usize).max(1);
        let most = most.min(Question::MOST_INPUTS);
        if inputs.is_empty() || inputs.len() > most {
            return Err(EngineError::BadRequest(format!(
                "send 1 to {most} texts at once"
            )));
        }
        let mut texts = Vec::with_capacity(inputs.len());
        for input in inputs {
            match input {
                Prompt::Messages(_) => {
                    return Err(EngineError::BadRequest("a chat has no embedding".into()));
                }
                Prompt::Tokens(tokens) => {
                    tokens.iter().try_for_each(|token| self.check(*token))?;
                }
                Prompt::Text(_) => {}
            }
            let prepared = self
                .template
                .prepare(&*self.vocab, input, None, self.context);
            texts.push(prepared.map_err(|error| self.refuse(&error))?.tokens);
        }
        Ok(texts)
    }

    /// The request as the loop takes it, and the form that its answer is held to.
    fn prepare(
        &self,
        id: RequestId,
        request: Request,
        arrived: Instant,
        cancelled: Arc<AtomicBool>,
    ) -> Result<(Arrival, Option<(Form, Plan)>), EngineError> {
        if let Prompt::Tokens(tokens) = &request.prompt {
            tokens.iter().try_for_each(|token| self.check(*token))?;
        }
        check_tools(request.tools.as_ref())?;
        if request.tools.is_some() && !matches!(request.prompt, Prompt::Messages(_)) {
            return Err(EngineError::BadRequest("only a chat has tools".into()));
        }
        let prepared = self
            .template
            .prepare(
                &*self.vocab,
                &request.prompt,
                request.tools.as_ref(),
                self.context,
            )
            .map_err(|error| self.refuse(&error))?;
        let prompt_tokens = u32::try_from(prepared.tokens.len()).unwrap_or(u32::MAX);
        if prompt_tokens >= self.context {
            return Err(EngineError::PromptTooLong {
                prompt_tokens,
                limit: self.context,
            });
        }
        let syntax = self.template.syntax();
        let tools = request.tools.as_ref();
        let held = held(request.format.as_ref(), tools, syntax, prepared.thinking)?;
        self.check_biases(&request.sampling.logit_bias)?;
        let echo = match &request.prompt {
            _ if !request.echo => None,
            Prompt::Text(text) => Some(text.clone()),
            Prompt::Tokens(tokens) => Some(self.text(tokens)),
            Prompt::Messages(_) => {
                return Err(EngineError::BadRequest("a chat is not echoed".into()));
            }
        };
        let likelihoods = request.logprobs.map(sampling::Likelihoods::new);
        let least = u32::from(echo.is_none());
        let mut stop = request.stop;
        stop.extend(prepared.extra_stops);
        let room = self.context - prompt_tokens;
        let arrival = Arrival {
            id,
            client: request.client,
            max_tokens: request.max_tokens.unwrap_or(room).clamp(least, room),
            sampler: sampling::Sampler::new(&request.sampling, &prepared.tokens),
            // From the compiler, where there is a format.
            constraint: None,
            text: text::TextStream::new(&stop, prepared.thinking),
            calls: tools.and_then(|tools| tools::CallSplitter::new(tools, syntax)),
            prompt: prepared.tokens,
            ignore_eos: request.ignore_eos,
            // What is not decoded has no logits.
            reuse: request.cache_prompt && (echo.is_none() || likelihoods.is_none()),
            likelihoods,
            echo,
            arrived,
            deadline: deadline(arrived, request.deadline_ms),
            cancelled,
        };
        Ok((arrival, held))
    }

    fn refuse(&self, error: &PromptError) -> EngineError {
        match error {
            PromptError::TooLong { prompt_tokens } => EngineError::PromptTooLong {
                prompt_tokens: *prompt_tokens,
                limit: self.context,
            },
            other => EngineError::BadRequest(other.to_string()),
        }
    }
}

/// When a request that arrived then must have its answer.
fn deadline(arrived: Instant, ms: Option<u64>) -> Option<Instant> {
    arrived.checked_add(Duration::from_millis(ms?))
}

fn check_asked(tokens: &[Token]) -> Result<(), EngineError> {
    if tokens.len() > MOST_ASKED_TOKENS {
        return Err(too_much("tokens", MOST_ASKED_TOKENS));
    }
    Ok(())
}

fn too_much(what: &str, most: usize) -> EngineError {
    EngineError::BadRequest(format!("send at most {most} {what} at once"))
}

fn check_tools(tools: Option<&Tools>) -> Result<(), EngineError> {
    tools.map_or(Ok(()), |tools| {
        tools.check().map_err(EngineError::BadRequest)
    })
}

/// What an answer is held to, and from where on. An answer that may call tools has the format where it is text.
fn held(
    format: Option<&Format>,
    tools: Option<&Tools>,
    syntax: tools::Syntax,
    thinking: text::Think,
) -> Result<Option<(Form, Plan)>, EngineError> {
    let answer = Plan::of_answer(thinking);
    let calls = tools.filter(|tools| tools.choice != ToolChoice::None);
    let Some(tools) = calls else {
        let form = format.cloned().map(Form::Asked);
        return Ok(form.map(|form| (form, answer)));
    };
    let plan = tools::plan(tools, syntax, format).map_err(EngineError::BadRequest)?;
    let place = match plan.start_after {
        None => answer,
        Some(marker) => Plan {
            start: Start::After(marker.into()),
            optional: true,
            again: plan.again,
            thinking,
        },
    };
    Ok(Some((plan.form, place)))
}
