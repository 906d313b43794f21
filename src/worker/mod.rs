//! The part that computes: runs as `pocket-llm engine`, one process for each loaded model.
//!
//! One thread, the engine thread, owns the model's context and everything that changes ([`run`]). Beside it one thread reads
//! frames and two tokenise. There is no lock between them: requests and their cancel flags go through channels, and only the
//! engine thread writes frames.

pub mod cache;
pub mod decoder;
#[cfg(feature = "llama")]
pub mod llama;
pub mod process;
pub mod prompt;
pub mod run;
pub mod sampling;
pub mod scheduler;
pub mod sequence;
pub mod text;

use crate::engine::wire::{self, BUILD, FromWorker, RequestId, ToWorker};
use crate::engine::{EngineError, Request, WorkerConfig};
use decoder::{Backend, Loaded, Vocab};
use prompt::{PromptError, Template};
use run::{Inbound, Report, Sizes};
use sequence::Arrival;
use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// Threads that render templates and tokenise.
const TOKENISERS: usize = 2;
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
    thread::Builder::new()
        .name("reader".into())
        .spawn(move || read_frames(frames, &submitted, &wake, lost))?;
    let progress = report_progress(out.try_clone()?);
    let to_tokenise = Arc::new(Mutex::new(to_tokenise));
    let began = Instant::now();
    let loaded = backend.run(&config, progress, &mut |loaded| {
        let outlets = Outlets {
            to_tokenise: &to_tokenise,
            to_engine: &to_engine,
            inbox: &inbox,
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
    request: Box<Request>,
    arrived: Instant,
    cancelled: Arc<AtomicBool>,
}

/// The channels between the worker's threads.
struct Outlets<'a> {
    to_tokenise: &'a Arc<Mutex<Receiver<Submitted>>>,
    to_engine: &'a SyncSender<Inbound>,
    inbox: &'a Receiver<Inbound>,
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
    } = loaded;
    let (template, warning) = Template::new(&*vocab, config.chat_template.as_deref());
    if let Some(warning) = warning {
        tracing::warn!(warning, "the model's chat template is not used");
    }
    template.source().clone_into(&mut info.template);
    info.thinks = template.thinks();
    info.load_ms = began.elapsed().as_secs_f64() * 1000.0;
    let sizes = Sizes {
        sequences: info.sequences,
        context_per_sequence: info.context_per_sequence,
        batch_size: config.batch_size,
        step_ms: config.step_ms,
    };
    let tokeniser = Arc::new(Tokeniser {
        template,
        vocab: Arc::clone(&vocab),
        context: info.context_per_sequence,
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
        decoder,
        outlets.inbox,
        &mut |Report { events, stats }| {
            wire::write(out, &FromWorker::Step { events, stats }).is_ok()
        },
    );
}

/// Reads frames until the stream ends. Cancels take effect here, by a flag that every stage looks at.
fn read_frames(
    mut from: UnixStream,
    submitted: &SyncSender<Submitted>,
    engine: &SyncSender<Inbound>,
    lost: impl FnOnce(),
) {
    let mut live: HashMap<RequestId, Weak<AtomicBool>> = HashMap::new();
    loop {
        match wire::read(&mut from) {
            Ok(Some(ToWorker::Submit { id, request })) => {
                if live.len() >= 64
                    && live.len()
                        >= 2 * live.values().filter(|flag| flag.strong_count() > 0).count()
                {
                    live.retain(|_, flag| flag.strong_count() > 0);
                }
                let cancelled = Arc::new(AtomicBool::new(false));
                live.insert(id, Arc::downgrade(&cancelled));
                let arrived = Instant::now();
                if submitted
                    .send(Submitted {
                        id,
                        request,
                        arrived,
                        cancelled,
                    })
                    .is_err()
                {
                    break;
                }
            }
            Ok(Some(ToWorker::Cancel { id })) => {
                if let Some(flag) = live.remove(&id).and_then(|flag| flag.upgrade()) {
                    flag.store(true, Ordering::Relaxed);
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
            let inbound = match self.prepare(submitted) {
                Ok(arrival) => Inbound::Arrival(Box::new(arrival)),
                Err(error) => Inbound::Refused(id, error),
            };
            if engine.send(inbound).is_err() {
                return;
            }
        }
    }

    fn prepare(&self, submitted: Submitted) -> Result<Arrival, EngineError> {
        let Submitted {
            id,
            request,
            arrived,
            cancelled,
        } = submitted;
        let request = *request;
        let prepared = self
            .template
            .prepare(&*self.vocab, &request.prompt, self.context)
            .map_err(|error| self.refuse(&error))?;
        let prompt_tokens = u32::try_from(prepared.tokens.len()).unwrap_or(u32::MAX);
        if prompt_tokens >= self.context {
            return Err(EngineError::PromptTooLong {
                prompt_tokens,
                limit: self.context,
            });
        }
        let mut stop = request.stop;
        stop.extend(prepared.extra_stops);
        let room = self.context - prompt_tokens;
        Ok(Arrival {
            id,
            client: request.client,
            max_tokens: request.max_tokens.unwrap_or(room).clamp(1, room),
            sampler: sampling::Sampler::new(&request.sampling, &prepared.tokens),
            text: text::TextStream::new(&stop, prepared.thinking),
            prompt: prepared.tokens,
            ignore_eos: request.ignore_eos,
            reuse: request.cache_prompt,
            arrived,
            deadline: request
                .deadline_ms
                .and_then(|ms| arrived.checked_add(Duration::from_millis(ms))),
            cancelled,
        })
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
