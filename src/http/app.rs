//! What every handler shares.

use super::auth::ApiKey;
use super::lifecycle::Lifecycle;
use crate::engine::{EngineError, EngineHandle, EngineState, ModelInfo};
use crate::metrics::{ConnectionMeters, Metrics};
use crate::models::ServedModel;
use axum::http::HeaderValue;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;

/// The door's limits and names. Every field is a number that somebody may have to change.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Largest request body in bytes; a larger one gets 413.
    pub body_limit: usize,
    /// Bytes of all bodies that are read at once; a request that would need more gets 429.
    pub body_memory: usize,
    /// A body of which nothing comes for this long gets 408.
    pub body_pause: Duration,
    /// A body that is not complete after this long gets 408.
    pub body_time: Duration,
    /// Bytes of an unwanted body that are read, so that its sender can read the answer.
    pub drain_limit: u64,
    /// How long such a body is read.
    pub drain_time: Duration,
    /// Between the keep-alives of a stream that has nothing to say.
    pub keep_alive: Duration,
    /// Open connections at most; one more is accepted and waits, further ones wait in the system's backlog.
    pub max_connections: usize,
    /// How long a request's head may take, also the first byte of the next one on an open connection.
    pub header_timeout: Duration,
    /// A client that takes no byte of its answer for this long is cut off.
    pub send_timeout: Duration,
    /// How long connections may take to close at the end.
    pub close_time: Duration,
    /// Keys of which a client must show one; none for an open door.
    pub keys: Vec<ApiKey>,
    /// The pod that this server runs in.
    pub pod_name: Option<String>,
    /// The node that this server runs on.
    pub node_name: Option<String>,
    /// What the listener counts; [`App::new`] connects it with the metrics.
    pub meters: ConnectionMeters,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            body_limit: 8 << 20,
            body_memory: 64 << 20,
            body_pause: Duration::from_secs(30),
            body_time: Duration::from_mins(5),
            drain_limit: 64 << 20,
            drain_time: Duration::from_secs(10),
            keep_alive: Duration::from_secs(5),
            max_connections: 1024,
            header_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_mins(1),
            close_time: Duration::from_secs(2),
            keys: Vec::new(),
            pod_name: None,
            node_name: None,
            meters: ConnectionMeters::default(),
        }
    }
}

/// A server's shared parts. Clones are handles on the same ones.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    engine: EngineHandle,
    model: ServedModel,
    metrics: Arc<Metrics>,
    settings: HttpSettings,
    lifecycle: Lifecycle,
    served_by: Option<HeaderValue>,
    /// What was last loaded: requests are prepared by it while the worker is started again. Locked for a clone only.
    last_info: Mutex<Option<Arc<ModelInfo>>>,
    /// Places for requests that wait for the first load.
    waiting: Semaphore,
    /// One permit is one KiB.
    body_memory: Arc<Semaphore>,
    started: Instant,
    /// Locked for an addition only.
    busy: Mutex<Busy>,
}

/// Requests for an answer that are under way.
#[derive(Default)]
struct Busy {
    requests: u32,
    since: Option<SystemTime>,
}

impl App {
    /// Brings the parts together.
    pub fn new(
        engine: EngineHandle,
        model: ServedModel,
        metrics: Arc<Metrics>,
        mut settings: HttpSettings,
        lifecycle: Lifecycle,
    ) -> Self {
        settings.meters = metrics.connections();
        let named = settings.pod_name.as_ref().or(settings.node_name.as_ref());
        let served_by = named.and_then(|name| HeaderValue::from_str(name).ok());
        // No body may be too large for the memory of all.
        let body_memory = settings.body_memory.max(settings.body_limit) / 1024 + 1;
        let inner = Inner {
            waiting: Semaphore::new(engine.places() as usize),
            body_memory: Arc::new(Semaphore::new(body_memory.min(Semaphore::MAX_PERMITS))),
            engine,
            model,
            metrics,
            settings,
            lifecycle,
            served_by,
            last_info: Mutex::new(None),
            started: Instant::now(),
            busy: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The engine behind the door.
    pub fn engine(&self) -> &EngineHandle {
        &self.inner.engine
    }

    /// The model that is served.
    pub fn model(&self) -> &ServedModel {
        &self.inner.model
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Limits and names.
    pub fn settings(&self) -> &HttpSettings {
        &self.inner.settings
    }

    /// Whether the server drains.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.inner.lifecycle
    }

    pub(super) fn served_by(&self) -> Option<&HeaderValue> {
        self.inner.served_by.as_ref()
    }

    /// Requests that wait for the model's first load.
    pub fn waiting_for_load(&self) -> u32 {
        let free = u32::try_from(self.inner.waiting.available_permits()).unwrap_or(u32::MAX);
        self.engine().places().saturating_sub(free)
    }

    pub(super) fn body_memory(&self) -> Arc<Semaphore> {
        Arc::clone(&self.inner.body_memory)
    }

    pub(super) fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }

    /// What the model is, if it is or was loaded.
    pub(super) fn known_info(&self) -> Option<Arc<ModelInfo>> {
        let mut last = lock(&self.inner.last_info);
        if let EngineState::Ready(info) = self.engine().state() {
            *last = Some(info);
        }
        last.clone()
    }

    /// What the model is; waits for its first load. Requests that wait here are as many as the engine has places.
    pub(super) async fn model_info(&self) -> Result<Arc<ModelInfo>, EngineError> {
        if let Some(info) = self.known_info() {
            return Ok(info);
        }
        let Ok(_place) = self.inner.waiting.try_acquire() else {
            return Err(EngineError::Overloaded {
                places: self.engine().places(),
                retry_after_seconds: 2,
            });
        };
        match self.engine().loaded().await {
            EngineState::Ready(info) => Ok(info),
            EngineState::Restarting { reason } | EngineState::Failed { reason } => {
                Err(EngineError::NotReady(format!(
                    "the model is not available ({reason}); it is tried again"
                )))
            }
            EngineState::Stopped => Err(EngineError::ShuttingDown),
            EngineState::Loading { .. } => {
                Err(EngineError::NotReady("the model is being loaded".into()))
            }
        }
    }

    /// Why no request should be sent here now, if so, in one line.
    pub(super) fn readiness(&self) -> Result<(), String> {
        if self.lifecycle().is_draining() {
            return Err("draining: this server is going down".into());
        }
        match self.engine().state() {
            EngineState::Ready(_) | EngineState::Loading { first: false, .. } => Ok(()),
            EngineState::Loading { progress, .. } => Err(format!(
                "the model is being loaded ({:.0} %)",
                progress * 100.0
            )),
            EngineState::Restarting { reason } => Err(format!(
                "the model's process is started again; it ended: {}",
                one_line(&reason)
            )),
            EngineState::Failed { reason } => {
                Err(format!("the model can't be loaded: {}", one_line(&reason)))
            }
            EngineState::Stopped => Err("stopped".into()),
        }
    }

    /// A request for an answer begins.
    pub(super) fn request_begins(&self) {
        let mut busy = lock(&self.inner.busy);
        busy.requests += 1;
        busy.since.get_or_insert_with(SystemTime::now);
    }

    /// A request for an answer is over.
    pub(super) fn request_ends(&self) {
        let mut busy = lock(&self.inner.busy);
        busy.requests = busy.requests.saturating_sub(1);
        if busy.requests == 0 {
            busy.since = None;
        }
    }

    /// Since when there was always a request under way.
    pub(super) fn busy_since(&self) -> Option<SystemTime> {
        lock(&self.inner.busy).since
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
