//! A TCP stream that gives up on a peer that does not read, and knows when its peer has left.
//!
//! Nothing else would: a client that keeps its connection open and takes no bytes would hold its place in the engine for
//! good, and so would one that closes it behind bytes that nobody has read yet.

use prometheus_client::metrics::counter::Counter;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Between two looks for a close behind unread bytes.
const HANG_UP_PAUSE: Duration = Duration::from_millis(250);

/// A stream whose writes fail once one has waited for too long.
pub(super) struct Socket {
    stream: Arc<TcpStream>,
    send_timeout: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    unread: Counter,
}

impl Socket {
    pub(super) fn new(stream: Arc<TcpStream>, send_timeout: Duration, unread: Counter) -> Self {
        Self {
            stream,
            send_timeout,
            waiting: None,
            unread,
        }
    }

    /// Passes a write's result on, and turns a wait that is too long into an error.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let send_timeout = self.send_timeout;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(sleep(send_timeout)));
        ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        self.unread.inc();
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client did not read its answer",
        )))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read(into.initialize_unfilled()) {
                Ok(read) => {
                    into.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Socket {
    fn poll_try_write(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll_try_write(cx, |stream| stream.try_write(bytes));
        self.watch(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll_try_write(cx, |stream| stream.try_write_vectored(slices));
        self.watch(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TCP stream has no buffer of its own.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let end = rustix::net::shutdown(&*self.stream, rustix::net::Shutdown::Write);
        Poll::Ready(end.map_err(io::Error::from))
    }
}

/// Waits until the peer has closed its end. While it is served, a connection is read only as far as it is needed, and a close behind
/// unread bytes would go unseen.
pub(super) async fn hung_up(stream: &TcpStream) {
    while let Ok(ready) = stream.ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            return;
        }
        // Unread bytes keep it ready; look again a little later.
        sleep(HANG_UP_PAUSE).await;
    }
}
