//! What every handler shares.

use super::error::{ApiError, Code};
use super::foreign::Origins;
use super::keys::Keys;
use super::lifecycle::Lifecycle;
use crate::engine::EngineState;
use crate::metrics::{ConnectionMeters, Metrics};
use crate::models::download::Downloads;
use crate::models::{Library, Listed, Model};
use crate::pool::{Lease, Pool, Seen};
use axum::http::HeaderValue;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;

/// Between two notes of a model's use.
const NOTE_EVERY: Duration = Duration::from_mins(10);

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
    pub keys: Keys,
    /// The web pages that may use this server besides its own.
    pub origins: Origins,
    /// Names under which it may be called over loopback, besides those of loopback.
    pub hosts: Vec<String>,
    /// Whether clients may install models from any address.
    pub allow_install: bool,
    /// Whether clients may delete models.
    pub allow_delete: bool,
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
            keys: Keys::default(),
            origins: Origins::default(),
            hosts: Vec::new(),
            allow_install: false,
            allow_delete: false,
            pod_name: None,
            node_name: None,
            meters: ConnectionMeters::default(),
        }
    }
}

/// What a server is made of.
pub struct Parts {
    /// The engines.
    pub pool: Pool,
    /// The models that they can be.
    pub library: Library,
    /// Downloads that run; `None` without a store.
    pub downloads: Option<Downloads>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Limits and names.
    pub settings: HttpSettings,
    /// Whether the server drains.
    pub lifecycle: Lifecycle,
}

/// A server's shared parts. Clones are handles on the same ones.
#[derive(Clone)]
pub struct App {
    inner: Arc<Inner>,
}

struct Inner {
    parts: Parts,
    served_by: Option<HeaderValue>,
    /// One permit is one KiB.
    body_memory: Arc<Semaphore>,
    started: Instant,
    /// Locked for an addition only.
    busy: Mutex<Busy>,
    /// When the use of a model was last written down. Locked for a look only.
    noted: Mutex<HashMap<PathBuf, Instant>>,
}

/// Requests for an answer that are under way.
#[derive(Default)]
struct Busy {
    requests: u32,
    since: Option<SystemTime>,
}

impl App {
    /// Brings the parts together.
    pub fn new(mut parts: Parts) -> Self {
        let settings = &mut parts.settings;
        settings.meters = parts.metrics.connections();
        let named = settings.pod_name.as_ref().or(settings.node_name.as_ref());
        let served_by = named.and_then(|name| HeaderValue::from_str(name).ok());
        // No body may be too large for the memory of all.
        let body_memory = settings.body_memory.max(settings.body_limit) / 1024 + 1;
        let inner = Inner {
            body_memory: Arc::new(Semaphore::new(body_memory.min(Semaphore::MAX_PERMITS))),
            parts,
            served_by,
            started: Instant::now(),
            busy: Mutex::default(),
            noted: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The engines behind the door.
    pub fn pool(&self) -> &Pool {
        &self.inner.parts.pool
    }

    /// The models that can be asked.
    pub fn library(&self) -> &Library {
        &self.inner.parts.library
    }

    /// Downloads that run.
    pub fn downloads(&self) -> Option<&Downloads> {
        self.inner.parts.downloads.as_ref()
    }

    /// The counters.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.parts.metrics
    }

    /// Limits and names.
    pub fn settings(&self) -> &HttpSettings {
        &self.inner.parts.settings
    }

    /// Whether the server drains.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.inner.parts.lifecycle
    }

    pub(super) fn served_by(&self) -> Option<&HeaderValue> {
        self.inner.served_by.as_ref()
    }

    pub(super) fn body_memory(&self) -> Arc<Semaphore> {
        Arc::clone(&self.inner.body_memory)
    }

    pub(super) fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }

    /// The model that a request names, for as long as the request needs it. One that is not in memory begins to come in.
    pub(super) async fn lease(&self, asked: Option<&str>) -> Result<Lease, ApiError> {
        let model = self.resolve(asked).await?;
        let kept = self.library().is_default(&model.path);
        let lease = self.pool().lease(&model, kept).await;
        let lease = lease.map_err(|error| ApiError::from(&error))?;
        self.note_use(&model.path);
        Ok(lease)
    }

    /// The model that a name means; the default one for none.
    pub(super) async fn resolve(&self, asked: Option<&str>) -> Result<Model, ApiError> {
        let library = self.library();
        match asked {
            // Looks at disks beside the runtime's threads, where it holds nobody up.
            Some(name) if !name.is_empty() && !library.is_name_of_default(name) => {
                let (app, name) = (self.clone(), name.to_owned());
                let resolved = blocking(move || app.library().resolve(Some(&name))).await?;
                Ok(resolved?)
            }
            _ => Ok(library.default()?),
        }
    }

    /// All models. Their headers may have to be read.
    pub(super) async fn listed(&self) -> Result<Vec<Listed>, ApiError> {
        let app = self.clone();
        Ok(blocking(move || app.library().list()).await??)
    }

    /// Writes down that a model is used, now and then: flash memory wears, and days are all that matters.
    fn note_use(&self, path: &Path) {
        let Some(store) = self.library().collection().store.clone() else {
            return;
        };
        let mut noted = lock(&self.inner.noted);
        let is_due = noted.get(path).is_none_or(|at| at.elapsed() >= NOTE_EVERY);
        if is_due && path.parent() == Some(store.root()) {
            noted.insert(path.to_owned(), Instant::now());
            let path = path.to_owned();
            tokio::task::spawn_blocking(move || store.touch(&path));
        }
    }

    /// The model that is spoken of where one is: the default one, else the one that was used last.
    pub(super) fn current(&self) -> Option<Seen> {
        let default = self.library().default().ok();
        let seen = default.and_then(|model| self.pool().seen_of(&model.path));
        seen.or_else(|| self.pool().seen().into_iter().min_by_key(|seen| seen.idle))
    }

    /// Why no request should be sent here now, if so, in one line. A default model that is not in memory is no reason: the next
    /// request brings it back.
    pub(super) fn readiness(&self) -> Result<(), String> {
        if self.lifecycle().is_draining() {
            return Err("draining: this server is going down".into());
        }
        let default = self.library().default();
        let default = default.map_err(|error| one_line(&error.to_string()))?;
        match self.pool().seen_of(&default.path).map(|seen| seen.state) {
            None | Some(EngineState::Ready(_) | EngineState::Loading { first: false, .. }) => {
                Ok(())
            }
            Some(EngineState::Loading { progress, .. }) => Err(format!(
                "the model is being loaded ({:.0} %)",
                progress * 100.0
            )),
            Some(EngineState::Restarting { reason }) => Err(format!(
                "the model's process is started again; it ended: {}",
                one_line(&reason)
            )),
            Some(EngineState::Failed { reason }) => {
                Err(format!("the model can't be loaded: {}", one_line(&reason)))
            }
            Some(EngineState::Stopped) => Err("stopped".into()),
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

/// Work on the disk, beside the runtime's threads.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "work on the disk failed");
        ApiError::new(Code::AiError, "internal error")
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
