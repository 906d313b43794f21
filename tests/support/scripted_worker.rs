//! A worker that speaks the frames and follows a script. It computes nothing.
//!
//! A prompt that begins with `hold` is left to the test, which sends events by hand; every other one is answered at once
//! by [`script`].

mod answers;

use super::within;
use pocket_llm::engine::wire::{self, BUILD, FromWorker, RequestId, ToWorker};
use pocket_llm::engine::{
    Event, FinishReason, Launch, ModelInfo, Outcome, Prompt, Request, Usage, Work, WorkerStats,
};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use tokio::sync::mpsc;

/// What a life of the worker does when it is asked to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadScript {
    /// Loads.
    AtOnce,
    /// Waits for [`ScriptedWorker::load`] or [`ScriptedWorker::fail_to_load`].
    ByHand,
}

/// The test's end of a worker. It outlives the worker's lives.
#[derive(Clone)]
pub(crate) struct ScriptedWorker {
    shared: Arc<Shared>,
    seen: Arc<tokio::sync::Mutex<mpsc::Receiver<ToWorker>>>,
}

struct Shared {
    load: LoadScript,
    seen: mpsc::Sender<ToWorker>,
    /// Of the current life.
    orders: Mutex<Option<SyncSender<Order>>>,
}

enum Order {
    Send(FromWorker),
    Die,
}

impl ScriptedWorker {
    pub(crate) fn new(load: LoadScript) -> Self {
        let (seen, reader) = mpsc::channel(1024);
        Self {
            shared: Arc::new(Shared {
                load,
                seen,
                orders: Mutex::new(None),
            }),
            seen: Arc::new(tokio::sync::Mutex::new(reader)),
        }
    }

    pub(crate) fn launch(&self) -> Launch {
        let shared = Arc::clone(&self.shared);
        Launch::Thread(Arc::new(move |stream| shared.live(stream)))
    }

    /// The next frame that the worker gets; `Load` frames are left out.
    pub(crate) async fn next_frame(&self) -> ToWorker {
        within(async {
            let frame = self.seen.lock().await.recv().await;
            frame.expect("the sender lives in this struct")
        })
        .await
    }

    /// The next request that the worker gets.
    pub(crate) async fn next_request(&self) -> (RequestId, Request) {
        match self.next_frame().await {
            ToWorker::Submit {
                id,
                work: Work::Generate(request),
            } => (id, *request),
            other => panic!("no request but {other:?}"),
        }
    }

    /// Waits for the cancel of a request.
    pub(crate) async fn cancelled(&self, id: RequestId) {
        assert_eq!(self.next_frame().await, ToWorker::Cancel { id });
    }

    /// Sends events of a request.
    pub(crate) fn emit(&self, id: RequestId, events: impl IntoIterator<Item = Event>) {
        self.shared.order(step(id, events));
    }

    /// The same, and the worker's numbers of that moment.
    pub(crate) fn tell(&self, id: RequestId, event: Event, stats: WorkerStats) {
        let events = vec![(id, event)];
        self.shared
            .order(Order::Send(FromWorker::Step { events, stats }));
    }

    /// Finishes loading.
    pub(crate) fn load(&self) {
        self.shared
            .order(Order::Send(FromWorker::Loaded(Box::new(info()))));
    }

    pub(crate) fn fail_to_load(&self, reason: &str) {
        let reason = reason.into();
        self.shared
            .order(Order::Send(FromWorker::LoadFailed { reason }));
    }

    /// Ends this life of the worker.
    pub(crate) fn die(&self) {
        self.shared.order(Order::Die);
    }

    /// Whether a worker lives that can take orders.
    pub(crate) fn lives(&self) -> bool {
        self.shared.orders.lock().unwrap().is_some()
    }
}

impl Shared {
    fn order(&self, order: Order) {
        let orders = self.orders.lock().unwrap();
        orders.as_ref().unwrap().send(order).unwrap();
    }

    fn live(self: &Arc<Self>, mut stream: UnixStream) {
        let (orders, inbox) = sync_channel(1024);
        let reader = stream.try_clone().unwrap();
        let build = BUILD.into();
        wire::write(&mut stream, &FromWorker::Hello { build }).unwrap();
        *self.orders.lock().unwrap() = Some(orders.clone());
        let shared = Arc::clone(self);
        thread::spawn(move || shared.read(reader, &orders));
        obey(&mut stream, &inbox);
        *self.orders.lock().unwrap() = None;
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }

    fn read(&self, mut stream: UnixStream, orders: &SyncSender<Order>) {
        while let Ok(Some(frame)) = wire::read::<ToWorker>(&mut stream) {
            let order = match &frame {
                ToWorker::Load { .. } if self.load == LoadScript::AtOnce => {
                    Some(Order::Send(FromWorker::Loaded(Box::new(info()))))
                }
                ToWorker::Submit {
                    id,
                    work: Work::Generate(request),
                } => script(request).map(|events| step(*id, events)),
                ToWorker::Submit {
                    id,
                    work: Work::Ask(question),
                } => Some(step(*id, [answers::answer(question)])),
                _ => None,
            };
            if !matches!(frame, ToWorker::Load { .. }) {
                let _ = self.seen.try_send(frame);
            }
            if let Some(order) = order {
                let _ = orders.send(order);
            }
        }
        let _ = orders.send(Order::Die);
    }
}

fn obey(stream: &mut UnixStream, inbox: &Receiver<Order>) {
    while let Ok(Order::Send(frame)) = inbox.recv() {
        if wire::write(stream, &frame).is_err() {
            return;
        }
    }
}

fn step(id: RequestId, events: impl IntoIterator<Item = Event>) -> Order {
    let events = events.into_iter().map(|event| (id, event)).collect();
    let stats = WorkerStats {
        kv_cells: 4096,
        kv_cells_used: 7,
        threads_left_out: 1,
        steps: 3,
        ..WorkerStats::default()
    };
    Order::Send(FromWorker::Step { events, stats })
}

/// How a prompt is answered; `None` leaves it to the test.
fn script(request: &Request) -> Option<Vec<Event>> {
    let said = match &request.prompt {
        Prompt::Messages(messages) => messages.last()?.content.as_str(),
        Prompt::Text(text) => text,
        Prompt::Tokens(_) => "tokens",
    };
    let plain = request.logprobs.is_none() && !request.echo;
    match said.split_whitespace().next().unwrap_or("") {
        "hold" => None,
        "call" | "calls" if request.tools.is_some() => {
            Some(answers::calls(said.starts_with("calls")))
        }
        "think" if !plain => Some(answers::with_thoughts(request)),
        _ if !plain => Some(answers::with_logprobs(request)),
        "think" => Some(vec![
            accepted(),
            Event::Started { cached_tokens: 2 },
            thought("Let me "),
            thought("see."),
            text("Done"),
            text("!"),
            thoughtful(2),
        ]),
        "long" => Some(vec![
            accepted(),
            Event::Started { cached_tokens: 2 },
            text("and so on"),
            finished(FinishReason::Length),
        ]),
        _ => Some(vec![
            accepted(),
            Event::Started { cached_tokens: 2 },
            text(" Hello"),
            text(", \"wörld\"\n"),
            finished(FinishReason::Stop),
        ]),
    }
}

pub(crate) fn accepted() -> Event {
    Event::Accepted {
        prompt_tokens: 5,
        position: 0,
    }
}

pub(crate) fn text(text: &str) -> Event {
    Event::Text {
        text: text.into(),
        thinking: false,
        logprobs: Vec::new(),
    }
}

pub(crate) fn thought(text: &str) -> Event {
    Event::Text {
        text: text.into(),
        thinking: true,
        logprobs: Vec::new(),
    }
}

pub(crate) fn finished(reason: FinishReason) -> Event {
    Event::Finished(Outcome {
        reason,
        usage: Usage {
            prompt_tokens: 5,
            cached_tokens: 2,
            completion_tokens: 4,
            drafted_tokens: 0,
            draft_tokens_kept: 0,
            reasoning_tokens: 0,
            queue_ms: 1.5,
            prompt_ms: 30.0,
            ttft_ms: 31.5,
            predicted_ms: 20.0,
        },
    })
}

/// As [`finished`], after reasoning of so many tokens.
fn thoughtful(tokens: u32) -> Event {
    match finished(FinishReason::Stop) {
        Event::Finished(mut outcome) => {
            outcome.usage.reasoning_tokens = tokens;
            Event::Finished(outcome)
        }
        other => other,
    }
}

/// The model that every life loads.
fn info() -> ModelInfo {
    ModelInfo {
        name: Some("Gemma 3 Tiny".into()),
        architecture: "gemma3".into(),
        licence: Some("gemma".into()),
        quantisation: Some("Q4_0".into()),
        size_bytes: 123_456,
        parameters: 1_000_000_000,
        vocab_size: 262_144,
        trained_context: 32_768,
        context_per_sequence: 2048,
        sequences: 2,
        batch_size: 256,
        template: "model".into(),
        thinks: false,
        kernels: vec!["q4_0_8x8".into()],
        cpu_variant: Some("armv8.6_0".into()),
        buffers: vec![("KV".into(), 1024)],
        load_ms: 12.5,
        ..ModelInfo::default()
    }
}
