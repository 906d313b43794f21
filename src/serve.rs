//! The composition root: listeners, engine, router, signals, and a drain with a deadline.

use crate::config::Config;
use crate::engine::{EngineHandle, EngineState};
use crate::http::{self, App, HttpSettings, Lifecycle};
use crate::metrics::Metrics;
use crate::models::ServedModel;
use anyhow::{Context, Result, bail};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How often a drain looks whether the model is loaded.
const LOAD_POLL: Duration = Duration::from_millis(20);
/// Beside the time that the listener gives connections to close.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// Serves until a signal, then drains.
pub async fn serve(config: Config) -> Result<ExitCode> {
    let mut signals = Signals::new()?;
    let listeners = bind(&config).await?;
    let engine = EngineHandle::start(config.engine.clone())?;
    let lifecycle = Lifecycle::default();
    let app = app(&config, engine.clone(), lifecycle.clone());
    let settings = app.settings().clone();
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
    let first = tokio::select! {
        state = engine.loaded() => Some(state),
        () = signals.any() => None,
    };
    if let Some(EngineState::Failed { reason } | EngineState::Restarting { reason }) = first {
        engine.shutdown().await;
        bail!(reason);
    }
    if first.is_some() {
        signals.any().await;
    }
    tracing::info!(
        drain_delay = config.drain_delay.as_secs_f64(),
        grace = config.grace.as_secs_f64(),
        in_flight = engine.in_flight(),
        "stopping; a second signal stops at once"
    );
    lifecycle.drain();
    tokio::select! {
        () = drain(&config, &app) => {}
        () = signals.any() => {
            tracing::warn!(in_flight = engine.in_flight(), "stopped at once by a second signal");
            return Ok(ExitCode::FAILURE);
        }
    }
    drop(stop);
    if timeout(close_time + LAST_BYTES, server).await.is_err() {
        tracing::warn!("some connections did not close in time");
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

async fn bind(config: &Config) -> Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    for address in &config.listen {
        let mut address = *address;
        // A free port is chosen once and is the same on every address.
        if let (0, Some(first)) = (address.port(), listeners.first()) {
            address.set_port(first.local_addr()?.port());
        }
        let listener = TcpListener::bind(address).await;
        listeners.push(listener.with_context(|| format!("can't listen on {address}"))?);
        if !address.ip().is_loopback() && config.api_keys.is_empty() {
            tracing::warn!(%address, "anyone who reaches this address can use the model: set --api-key");
        }
    }
    Ok(listeners)
}

fn app(config: &Config, engine: EngineHandle, lifecycle: Lifecycle) -> App {
    let settings = HttpSettings {
        body_limit: config.body_limit,
        max_connections: config.max_connections,
        keep_alive: config.keep_alive,
        keys: config.api_keys.clone(),
        pod_name: std::env::var("POD_NAME")
            .ok()
            .filter(|name| !name.is_empty()),
        node_name: std::env::var("NODE_NAME")
            .ok()
            .filter(|name| !name.is_empty()),
        ..HttpSettings::default()
    };
    let model = ServedModel::new(
        config.name.clone(),
        config.aliases.clone(),
        config.model.clone(),
    );
    App::new(engine, model, Arc::new(Metrics::new()), settings, lifecycle)
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
    let engine = app.engine();
    tokio::time::sleep(config.drain_delay).await;
    let served = async {
        // They have a promise too; the engine does not know of them before its model is loaded.
        while app.waiting_for_load() > 0 {
            tokio::time::sleep(LOAD_POLL).await;
        }
        engine.close();
        engine.idle().await;
    };
    if timeout(config.grace, served).await.is_err() {
        tracing::warn!(
            in_flight = engine.in_flight(),
            "the grace is over; requests are ended"
        );
    }
    engine.shutdown().await;
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
