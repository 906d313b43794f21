//! What the test programs share: a server on a free port, a client that speaks raw HTTP, a worker that follows a script.

pub(crate) mod client;
pub(crate) mod gguf_file;
pub(crate) mod json_schema;
pub(crate) mod scripted_worker;

pub(crate) use gguf_file::write_model;
use pocket_llm::engine::{EngineHandle, EngineOptions, Launch};
use pocket_llm::http::{self, App, HttpSettings, Lifecycle, Parts};
use pocket_llm::metrics::Metrics;
use pocket_llm::models::download::{Downloads, Hub, Puller, Settings};
use pocket_llm::models::memory::{Asked, Kernels};
use pocket_llm::models::{Catalogue, Collection, Library, Model, Store};
use pocket_llm::pool::{Drafts, Lease, Placed, Pool, PoolSettings};
use scripted_worker::{LoadScript, ScriptedWorker};
use serde_json::json;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The name of the served model.
pub(crate) const MODEL: &str = "tiny";

/// A model that the tests' own hub has.
const FETCHABLE: &str = r#"
name = "fetchable"
aliases = ["FETCHABLE_1B"]
display_name = "Fetchable"
description = "A model of the tests' own hub"
parameters = "1B"
login = false
licence = "Apache-2.0"
context = 2048
capabilities = ["text"]

[source]
repo = "owner/repo"
file = "fetchable.gguf"

[sampling]
temperature = 0.25
top_k = 5
top_p = 0.5
"#;

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) worker: ScriptedWorker,
    pub(crate) engine: EngineHandle,
    pub(crate) lifecycle: Lifecycle,
    /// Has `models`, the store.
    pub(crate) folder: TempDir,
    /// The default model stays.
    _lease: Lease,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) served: JoinHandle<()>,
}

/// How it is started.
pub(crate) struct Options {
    pub(crate) settings: HttpSettings,
    pub(crate) places: u32,
    pub(crate) load: LoadScript,
    pub(crate) restart_pause: Duration,
    /// Where models can be fetched from; the catalogue then has a model `fetchable` too.
    pub(crate) hub: Option<String>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    /// Starts one, with other options. A model that loads at once is loaded when this returns.
    pub(crate) async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            settings: HttpSettings::default(),
            places: 8,
            load: LoadScript::AtOnce,
            restart_pause: Duration::from_millis(10),
            hub: None,
        };
        change(&mut options);
        let worker = ScriptedWorker::new(options.load);
        let pool = pool(&options, worker.launch());
        let folder = TempDir::new().unwrap();
        let model = Model {
            name: MODEL.into(),
            path: folder.path().join("tiny.gguf"),
            entry: None,
        };
        write_model(&model.path, "Gemma 3 Tiny");
        let lease = within(pool.lease(&model, true)).await.unwrap();
        let engine = lease.engine().clone();
        if matches!(options.load, LoadScript::AtOnce) {
            within(engine.loaded()).await;
        }
        let (collection, downloads) = collection(folder.path(), options.hub.as_deref());
        let aliases = vec!["GEMMA_3_1B_IT".into(), "gemma-3n-e2b-it".into()];
        let lifecycle = Lifecycle::default();
        let app = App::new(Parts {
            pool,
            library: Library::new(collection, Some(model), aliases),
            downloads,
            metrics: Arc::new(Metrics::new()),
            settings: options.settings,
            lifecycle: lifecycle.clone(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let settings = app.settings().clone();
        let served = http::listen::serve(vec![listener], http::router(app), settings, async {
            let _ = stopped.await;
        });
        Self {
            address,
            worker,
            engine,
            lifecycle,
            folder,
            _lease: lease,
            stop: Some(stop),
            served: tokio::spawn(served),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> client::Response {
        client::ask(self.address, "GET", path, &[], b"").await
    }

    pub(crate) async fn post(&self, path: &str, body: impl AsRef<[u8]>) -> client::Response {
        client::ask(self.address, "POST", path, &[], body.as_ref()).await
    }

    /// The value of a metric's line, 0 if it is not there.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// Waits until a metric has a value.
    pub(crate) async fn metric_becomes(&self, name: &str, value: u64) {
        within(async {
            while self.metric(name).await < value {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        assert_eq!(self.metric(name).await, value, "{name}");
    }
}

/// Two models at most, whatever they take.
fn pool(options: &Options, launch: Launch) -> Pool {
    let config = json!({
        "model": "tiny.gguf", "ctx_size": 4096, "parallel": 2, "threads": 1, "threads_batch": 1,
        "batch_size": 64, "step_ms": 100, "places": options.places,
    });
    Pool::new(PoolSettings {
        engine: EngineOptions {
            config: serde_json::from_value(config).unwrap(),
            launch,
            stall: PATIENCE,
            load_stall: PATIENCE,
            restart_pause: options.restart_pause,
        },
        asked: Asked::default(),
        kernels: Kernels::default(),
        memory: None,
        most_loaded: 2,
        keep_alive: None,
        placed: Placed::default(),
        drafts: Drafts::default(),
    })
}

/// A store in a folder, and what can be fetched from a hub into it.
fn collection(folder: &Path, hub: Option<&str>) -> (Collection, Option<Downloads>) {
    let store = Store::open(&folder.join("models")).unwrap();
    let further = folder.join("catalogue");
    std::fs::create_dir(&further).unwrap();
    if hub.is_some() {
        std::fs::write(further.join("fetchable.toml"), FETCHABLE).unwrap();
    }
    let collection = Collection {
        catalogue: Arc::new(Catalogue::load(Some(&further)).unwrap()),
        store: Some(store.clone()),
    };
    let downloads = hub.map(|hub| {
        Downloads::new(Puller {
            store,
            hub: Hub::new(hub, None).unwrap(),
            settings: Settings::default(),
        })
    });
    (collection, downloads)
}

/// The result, which must come in time.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .expect("it took longer than a test's patience")
}

/// Waits for a condition.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
