//! The composition root: listeners, engine, router, signals, and a drain with a deadline.

use crate::config::Config;
use crate::device::children;
use crate::engine::EngineState;
use crate::http::{self, App, HttpSettings, Keys, Lifecycle, Parts};
use crate::metrics::Metrics;
use crate::models::download::{Downloads, Hub, Puller, Settings};
use crate::models::{Collection, Library, Model};
use crate::pool::{Drafts, Lease, Pool};
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// A part of a download that has not grown for so long is of no use.
const STALE: Duration = Duration::from_hours(7 * 24);
/// Beside the time that the listener gives connections to close.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// Serves until a signal, then drains.
pub async fn serve(config: Config) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    // Ends with the runtime.
    tokio::spawn(adopt());
    let collection = config.store.open()?;
    let default = config.model.as_deref();
    let default = default.map(|name| collection.find(name)).transpose()?;
    let keys = Keys::new(&config.api_keys, config.api_key_file.as_deref())?;
    let listeners = bind(&config, &keys).await?;
    let watching = tokio::spawn(keys.clone().watch());
    clean_up(&collection);
    let lifecycle = Lifecycle::default();
    let pool = pool(&config, &collection)?;
    // From the first request on it is known that the default model is being loaded.
    let preload = match &default {
        Some(model) => Some(pool.lease(model, true).await?),
        None => None,
    };
    let library = Library::new(collection, default, config.aliases.clone());
    let app = app(&config, keys, library, pool, &lifecycle)?;
    let settings = app.settings().clone();
    introduce(&settings);
    let close_time = settings.close_time;
    for listener in &listeners {
        announce(listener)?;
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let server = tokio::spawn(http::listen::serve(
        listeners,
        http::router(app.clone()),
        settings,
        async {
            // A dropped sender means the same.
            let _ = stopped.await;
        },
    ));
    let ended = tokio::select! {
        loaded = loaded(preload) => loaded.map(|_| false),
        () = signals.any() => Ok(true),
    };
    match ended {
        Ok(true) => {}
        Ok(false) => signals.any().await,
        Err(error) => {
            app.pool().shutdown().await;
            return Err(error);
        }
    }
    tracing::info!(
        drain_delay = config.drain_delay.as_secs_f64(),
        grace = config.grace.as_secs_f64(),
        in_flight = app.pool().in_flight(),
        "stopping; a second signal stops at once"
    );
    lifecycle.drain();
    tokio::select! {
        () = drain(&config, &app) => {}
        () = signals.any() => {
            tracing::warn!(in_flight = app.pool().in_flight(), "stopped at once by a second signal");
            return Ok(ExitCode::FAILURE);
        }
    }
    if let Some(downloads) = app.downloads().cloned() {
        // What came is kept; the next start goes on from there.
        tokio::task::spawn_blocking(move || downloads.shutdown()).await?;
    }
    drop(stop);
    watching.abort();
    if timeout(close_time + LAST_BYTES, server).await.is_err() {
        tracing::warn!("some connections did not close in time");
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

fn pool(config: &Config, collection: &Collection) -> Result<Pool> {
    let mut settings = config.pool.clone();
    let draft = config.draft_model.as_deref();
    settings.drafts = Drafts::new(draft, collection).context("--draft-model")?;
    Ok(Pool::new(settings))
}

async fn adopt() {
    if let Err(error) = children::adopt().await {
        tracing::warn!(%error, "processes that lose their parents will stay as zombies");
    }
}

/// Says which pod this is, where that is known.
fn introduce(settings: &HttpSettings) {
    let (pod, node) = (&settings.pod_name, &settings.node_name);
    if pod.is_some() || node.is_some() {
        tracing::info!(pod, node, "this is a pod of Kubernetes");
    }
}

/// Removes what broken-off downloads left long ago, beside everything else.
fn clean_up(collection: &Collection) {
    let Some(store) = collection.store.clone() else {
        return;
    };
    tokio::task::spawn_blocking(move || match store.clean(STALE) {
        Ok(cleaned) if cleaned.files.is_empty() => {}
        Ok(cleaned) => tracing::info!(
            files = cleaned.files.len(),
            bytes = cleaned.bytes,
            "removed what downloads left long ago"
        ),
        Err(error) => tracing::debug!(%error, "the model directory is not cleaned"),
    });
}

/// Waits for the model of a lease, if there is one; or says why it can't be loaded.
async fn loaded(lease: Option<Lease>) -> Result<Option<Lease>> {
    let Some(lease) = lease else { return Ok(None) };
    match lease.engine().loaded().await {
        EngineState::Ready(_) | EngineState::Loading { .. } => Ok(Some(lease)),
        EngineState::Failed { reason } | EngineState::Restarting { reason } => bail!(reason),
        EngineState::Stopped => bail!("the engine ended"),
    }
}

/// A model, loaded; or why it can't be.
pub(crate) async fn load(pool: &Pool, model: &Model) -> Result<Lease> {
    let lease = pool.lease(model, true).await?;
    loaded(Some(lease)).await?.context("a lease is given back")
}

async fn bind(config: &Config, keys: &Keys) -> Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    for address in &config.listen {
        let mut address = *address;
        // A free port is chosen once and is the same on every address.
        if let (0, Some(first)) = (address.port(), listeners.first()) {
            address.set_port(first.local_addr()?.port());
        }
        let listener = TcpListener::bind(address).await;
        listeners.push(listener.with_context(|| format!("can't listen on {address}"))?);
        if !address.ip().is_loopback() && keys.is_open() {
            tracing::warn!(%address, "anyone who reaches this address can use the model: set --api-key or --api-key-file");
        }
    }
    Ok(listeners)
}

fn app(
    config: &Config,
    keys: Keys,
    library: Library,
    pool: Pool,
    lifecycle: &Lifecycle,
) -> Result<App> {
    let downloads = match &library.collection().store {
        Some(store) => Some(Downloads::new(Puller {
            store: store.clone(),
            hub: Hub::from_environment()?,
            settings: Settings::default(),
        })),
        None => None,
    };
    let named = |name: Result<String, _>| name.ok().filter(|name| !name.is_empty());
    let settings = HttpSettings {
        body_limit: config.body_limit,
        max_connections: config.max_connections,
        keep_alive: config.keep_alive,
        keys,
        origins: config.origins.clone(),
        hosts: config.hosts.clone(),
        allow_install: config.allow_install,
        allow_delete: config.allow_delete,
        pod_name: named(std::env::var("POD_NAME")),
        node_name: named(std::env::var("NODE_NAME")),
        ..HttpSettings::default()
    };
    Ok(App::new(Parts {
        pool,
        library,
        downloads,
        metrics: Arc::new(Metrics::new()),
        settings,
        lifecycle: lifecycle.clone(),
    }))
}

/// The one thing on standard output: where to reach us.
fn announce(listener: &TcpListener) -> Result<()> {
    let address = listener.local_addr()?;
    if let Err(error) = writeln!(std::io::stdout(), "listening on http://{address}") {
        // Whoever started us has stopped reading (`| head -1`); clients come all the same.
        tracing::warn!(%error, %address, "the address can't be printed");
    }
    Ok(())
}

/// Lets load balancers notice, then lets running and waiting requests finish, then ends those that are left.
async fn drain(config: &Config, app: &App) {
    let pool = app.pool();
    tokio::time::sleep(config.drain_delay).await;
    pool.close();
    if timeout(config.grace, pool.idle()).await.is_err() {
        tracing::warn!(
            in_flight = pool.in_flight(),
            "the grace is over; requests are ended"
        );
    }
    pool.shutdown().await;
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("signals can't be received");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for one of them.
    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
