//! Connections: accept, bound, serve HTTP/1.1, close in the end.
//!
//! An own loop instead of axum's, because a server for strangers needs what that one lacks: a limit of open
//! connections, time limits for heads and for unread answers, and a pause when the system has no more descriptors.

use super::app::HttpSettings;
use super::body::Drained;
use super::socket::{Socket, hung_up};
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::gauge::Gauge;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

/// After an accept that failed for want of resources: they come back when connections close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Bytes of a request's head at most, and of what is read or written ahead.
const BUFFER: usize = 64 << 10;

/// Who is on the other end of a connection; an extension of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The client's address. The port is left out: a client is one, however many connections it has.
    pub client: IpAddr,
    /// The address that the client connected to.
    pub local: IpAddr,
    /// The port that the client connected to.
    pub port: u16,
}

struct Server {
    router: Router,
    settings: HttpSettings,
    slots: Arc<Semaphore>,
    /// Its sender is dropped when connections are to close.
    closing: watch::Receiver<()>,
}

/// Serves connections until `stop` resolves; then closes idle ones and lets busy ones end their answers, for
/// [`HttpSettings::close_time`] at most.
pub async fn serve(
    listeners: Vec<TcpListener>,
    router: Router,
    settings: HttpSettings,
    stop: impl Future<Output = ()>,
) {
    let slots = settings.max_connections.clamp(1, u32::MAX as usize >> 4);
    let close_time = settings.close_time;
    let (close, closing) = watch::channel(());
    let server = Arc::new(Server {
        router,
        settings,
        slots: Arc::new(Semaphore::new(slots)),
        closing,
    });
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(listener, Arc::clone(&server)));
    }
    stop.await;
    accepting.shutdown().await;
    drop(close);
    // Every open connection holds a slot.
    let all = u32::try_from(slots).unwrap_or(u32::MAX);
    if timeout(close_time, server.slots.acquire_many(all))
        .await
        .is_err()
    {
        let left = slots - server.slots.available_permits();
        tracing::warn!(left, "connections did not close in time");
    }
}

async fn accept(listener: TcpListener, server: Arc<Server>) {
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_the_clients(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted now");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let slots = Arc::clone(&server.slots);
        let slot = if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
            slot
        } else {
            server.settings.meters.waited.inc();
            let Ok(slot) = slots.acquire_owned().await else {
                return;
            };
            slot
        };
        let open = Open::new(&server.settings.meters.open, slot);
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            if let Err(error) = serve_connection(&server, stream, address).await {
                tracing::debug!(%error, %address, "connection ended early");
            }
            drop(open);
        });
    }
}

/// An open connection: counted, and in its slot, until it is dropped.
struct Open {
    count: Gauge,
    _slot: OwnedSemaphorePermit,
}

impl Open {
    fn new(count: &Gauge, slot: OwnedSemaphorePermit) -> Self {
        count.inc();
        Self {
            count: count.clone(),
            _slot: slot,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.count.dec();
    }
}

/// Whether accepting failed for a reason of that one client.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

async fn serve_connection(
    server: &Server,
    stream: TcpStream,
    address: SocketAddr,
) -> Result<(), hyper::Error> {
    let settings = &server.settings;
    // Tokens are small and wanted at once. A socket that refuses is about to fail anyway.
    let _ = stream.set_nodelay(true);
    let local = stream.local_addr();
    let peer = Peer {
        client: address.ip().to_canonical(),
        local: local.as_ref().map_or(IpAddr::from([0, 0, 0, 0]), |local| {
            local.ip().to_canonical()
        }),
        port: local.map_or(0, |local| local.port()),
    };
    let stream = Arc::new(stream);
    let socket = Socket::new(
        Arc::clone(&stream),
        settings.send_timeout,
        settings.meters.unread.clone(),
    );
    let asked = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let router = server.router.clone();
        let request = prepare(request, peer, settings);
        async move { router.oneshot(request).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = pin!(connection);
    let mut closing = server.closing.clone();
    tokio::select! {
        result = connection.as_mut() => return result,
        // Only the end of the sender can wake this.
        _ = closing.changed() => {}
        () = hung_up(&stream) => return Ok(()),
    }
    // A connection on which nothing was asked yet would wait for its head's time limit.
    if !asked.load(Ordering::Relaxed) {
        return Ok(());
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        result = connection => result,
        () = hung_up(&stream) => Ok(()),
    }
}

fn prepare(request: Request<Incoming>, peer: Peer, settings: &HttpSettings) -> Request<Body> {
    let (mut parts, body) = request.into_parts();
    parts.extensions.insert(peer);
    let body = Drained::new(body, &parts.headers, settings);
    Request::from_parts(parts, Body::new(body))
}
