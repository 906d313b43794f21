//! Downloads beside a running server: one at a time, a few that wait, and what they have done so far.
//!
//! Each download has a thread, which waits for its turn (`turns`). Handlers call in, get an answer at once and never wait for a
//! network.

use super::turns::Turns;
use super::{DownloadError, Existing, Phase, Progress, Pulled, Puller};
use crate::models::reference::{HubFile, ModelName, ModelRef};
use crate::models::store::Moment;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use ureq::http::Uri;

/// Downloads that may wait for the running one.
const MOST_WAITING: usize = 8;

/// Ended downloads that are remembered.
const MOST_ENDED: usize = 16;

/// A shutdown waits this long for a thread that is just connecting, which nothing can interrupt.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(2);

/// The downloads of this process. Clones are the same downloads.
#[derive(Clone)]
pub struct Downloads(Arc<Shared>);

/// A file that somebody wants.
#[derive(Clone, Debug)]
pub enum Wish {
    /// A model of the catalogue, or a file on the hub.
    Model(ModelRef),
    /// The file at an address that a client named.
    Url {
        /// What it is to be called.
        name: ModelName,
        /// Where it is; from [`parse_url`](super::parse_url).
        url: Uri,
    },
}

impl From<ModelRef> for Wish {
    fn from(reference: ModelRef) -> Self {
        Self::Model(reference)
    }
}

/// What became of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// It runs, or will when it is its turn.
    Started,
    /// It runs or waits already.
    AlreadyRunning,
    /// The model is on disk.
    AlreadyAvailable(Pulled),
}

/// Why a download is not begun.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Enough wait.
    #[error("{MOST_WAITING} downloads wait already: try again when one has ended")]
    Full,
    /// The server ends.
    #[error("the server is ending and begins no downloads")]
    Ending,
    /// The system has no thread for it.
    #[error("no thread could be started: {0}")]
    Thread(std::io::Error),
    /// It can't be one.
    #[error(transparent)]
    Download(#[from] DownloadError),
}

/// What a download has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownloadStatus {
    /// The model.
    pub name: ModelName,
    /// What it is doing.
    pub phase: Phase,
    /// Bytes of the file that are here.
    pub received: u64,
    /// Bytes of the whole file, once that is known.
    pub total: Option<u64>,
    /// How fast they came lately.
    pub bytes_per_second: u64,
    /// Tries in a row without progress.
    pub attempt: u32,
    /// Why it ended without the file.
    pub error: Option<String>,
    /// When it was asked for.
    pub started_at: Moment,
    /// When it ended.
    pub ended_at: Option<Moment>,
}

struct Shared {
    puller: Puller,
    // A lock, because handlers and the working thread change the same short lists. It is held for no input or output.
    state: Mutex<State>,
    idle: Condvar,
    turns: Turns,
}

#[derive(Default)]
struct State {
    /// Each has a thread, which takes it off.
    tasks: Vec<Arc<Task>>,
    ended: VecDeque<DownloadStatus>,
    closed: bool,
}

struct Task {
    name: ModelName,
    wish: Wish,
    progress: Progress,
    started_at: Moment,
}

impl Downloads {
    /// No downloads yet.
    pub fn new(puller: Puller) -> Self {
        Self(Arc::new(Shared {
            puller,
            state: Mutex::default(),
            idle: Condvar::new(),
            turns: Turns::default(),
        }))
    }

    /// Begins to fetch a model, unless that is done or being done.
    pub fn start(&self, wish: impl Into<Wish>) -> Result<Start, Refused> {
        let wish = wish.into();
        let name = name_of(&wish)?;
        let puller = &self.0.puller;
        let there = match &wish {
            Wish::Model(reference) => puller.available(reference)?,
            Wish::Url { name, url } => puller.installed(name, url)?,
        };
        if let Some(there) = there {
            return Ok(Start::AlreadyAvailable(there));
        }
        let mut state = self.0.state();
        if state.closed {
            return Err(Refused::Ending);
        }
        if state.tasks.iter().any(|task| task.name == name) {
            return Ok(Start::AlreadyRunning);
        }
        if state.tasks.len() > MOST_WAITING {
            return Err(Refused::Full);
        }
        let task = Arc::new(Task {
            name,
            wish,
            progress: Progress::in_line(self.0.turns.queue()),
            started_at: Moment::now(),
        });
        let (shared, own) = (Arc::clone(&self.0), Arc::clone(&task));
        thread::Builder::new()
            .name("download".into())
            .spawn(move || shared.work(&own))
            .map_err(Refused::Thread)?;
        state.ended.retain(|ended| ended.name != task.name);
        state.tasks.push(task);
        Ok(Start::Started)
    }

    /// Whether there is a token for repositories that want a login.
    pub fn has_token(&self) -> bool {
        self.0.puller.hub.token().is_some()
    }

    /// All that run, wait, or ended lately.
    pub fn snapshot(&self) -> Vec<DownloadStatus> {
        self.0.state().report()
    }

    /// Ends a download that runs or waits; what came of it is kept. Whether there was one.
    pub fn cancel(&self, name: &ModelName) -> bool {
        let task = self
            .0
            .state()
            .tasks
            .iter()
            .find(|task| task.name == *name)
            .cloned();
        if let Some(task) = &task {
            task.progress.cancel();
        }
        task.is_some()
    }

    /// Ends all downloads, and begins none any more. Returns when they have ended, or after two seconds: then a thread may
    /// still be connecting, and ends by itself.
    pub fn shutdown(&self) {
        let mut state = self.0.state();
        state.closed = true;
        for task in &state.tasks {
            task.progress.cancel();
        }
        let waited = self
            .0
            .idle
            .wait_timeout_while(state, SHUTDOWN_PATIENCE, |state| !state.tasks.is_empty());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shared {
    /// Fetches one model when it is its turn, and notes what came of it.
    fn work(&self, task: &Arc<Task>) {
        let error = self.run(task).err();
        task.progress.give_turn_back();
        if let Some(error) = &error {
            tracing::warn!(model = %task.name, error, "a download ended");
        } else {
            tracing::info!(model = %task.name, "a model was fetched");
        }
        let mut state = self.state();
        state.tasks.retain(|other| !Arc::ptr_eq(other, task));
        state.ended.push_back(DownloadStatus {
            phase: Phase::Ended,
            error,
            ended_at: Some(Moment::now()),
            ..task.status()
        });
        if state.ended.len() > MOST_ENDED {
            state.ended.pop_front();
        }
        self.idle.notify_all();
    }

    fn run(&self, task: &Task) -> Result<Pulled, String> {
        let fetch = || {
            task.progress.take_turn()?;
            match &task.wish {
                Wish::Model(reference) => {
                    let existing = Existing::Trust;
                    self.puller.pull(reference, existing, &task.progress)
                }
                Wish::Url { name, url } => self.puller.install(name, url, &task.progress),
            }
        };
        match catch_unwind(AssertUnwindSafe(fetch)) {
            Ok(pulled) => pulled.map_err(|error| error.to_string()),
            // One bad file must not end the queue.
            Err(_) => Err("the download panicked; the log says where".into()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The lists are whole after each statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn report(&self) -> Vec<DownloadStatus> {
        let tasks = self.tasks.iter().map(|task| task.status());
        tasks.chain(self.ended.iter().cloned()).collect()
    }
}

impl Task {
    fn status(&self) -> DownloadStatus {
        let received = self.progress.received();
        DownloadStatus {
            name: self.name.clone(),
            phase: match self.progress.phase() {
                // What came of it is told when it leaves the queue.
                Phase::Ended => Phase::Checking,
                phase => phase,
            },
            received,
            total: self.progress.total(),
            bytes_per_second: match self.progress.phase() {
                Phase::Receiving => self.progress.speed(),
                _ => 0,
            },
            attempt: self.progress.attempt(),
            error: None,
            started_at: self.started_at,
            ended_at: None,
        }
    }
}

fn name_of(wish: &Wish) -> Result<ModelName, DownloadError> {
    match wish {
        Wish::Url { name, .. } => Ok(name.clone()),
        Wish::Model(ModelRef::Known(entry)) => Ok(entry.model_name()),
        Wish::Model(ModelRef::Hub(hub)) => Ok(HubFile::clone(hub).into()),
        Wish::Model(ModelRef::Path(path)) => Err(DownloadError::Path(path.clone())),
    }
}
