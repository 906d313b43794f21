//! The worker as a process of its own: `pocket-llm engine`, started by a front and by nobody else.
//!
//! It ends with its front: by end of file on the socket, whose reader kills the process (an exit while C++ computes can
//! crash), and by the parent-death signal, because a stopped process never sees an end of file. It ignores INT, TERM and
//! HUP, which reach the whole group or cgroup: only the front drains.

use super::decoder::Backend;
use crate::device::huge;
use anyhow::{Context, Result, bail};
use rustix::process::{self, Pid, Resource, Rlimit, Signal};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

/// Serves the front at the other end of standard input until it is gone.
pub fn main(backend: &dyn Backend) -> Result<()> {
    let stream = standard_input()?;
    die_with_the_front()?;
    // Handlers stay for the life of the process and nobody listens to them: the signals are ignored.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let guard = runtime.enter();
    for kind in [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ] {
        drop(signal(kind).context("a signal can't be ignored")?);
    }
    drop(guard);
    no_core_dumps();
    huge::off();
    // Started from /proc/self/exe, it would be called `exe` in `ps` and `top`.
    let _ = rustix::thread::set_name(c"pocket-llm-work");
    offer_to_the_oom_killer();
    crash_loudly();
    super::serve(stream, backend, end_at_once);
    Ok(())
}

/// Standard input, which must be the socket that a front gave us.
fn standard_input() -> Result<UnixStream> {
    let stdin = std::io::stdin();
    let Ok(kind) = rustix::net::sockopt::socket_type(stdin.as_fd()) else {
        bail!(
            "`engine` is started by `serve` and `run` and is of no use by itself: its standard input must be their socket"
        );
    };
    if kind != rustix::net::SocketType::STREAM {
        bail!("`engine` needs a stream socket as its standard input");
    }
    // A copy: nobody else reads standard input in this process.
    Ok(UnixStream::from(stdin.as_fd().try_clone_to_owned()?))
}

fn die_with_the_front() -> Result<()> {
    process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("no parent-death signal")?;
    // The front may have gone before that call. Behind a launcher (`perf`) it is not our parent, so ask for it by its id.
    let front = std::env::var("POCKET_LLM_FRONT_PID")
        .ok()
        .and_then(|pid| pid.parse().ok());
    if let Some(front) = front.and_then(Pid::from_raw)
        && process::test_kill_process(front).is_err()
    {
        bail!("the server that started this worker is gone");
    }
    Ok(())
}

/// A core of a worker is as large as its model.
fn no_core_dumps() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = process::setrlimit(Resource::Core, none) {
        tracing::debug!(%error, "core dumps stay on");
    }
}

/// When memory runs out, the worker goes before the front, which survives it. In a Kubernetes pod the whole group goes at
/// once, so there it makes no difference and is left alone.
fn offer_to_the_oom_killer() {
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none()
        && let Err(error) = std::fs::write("/proc/self/oom_score_adj", "500")
    {
        tracing::debug!(%error, "oom_score_adj stays as it is");
    }
}

/// A panic of any thread ends the process as a crash, after it was printed: a worker without its tokenisers, or one that closes its
/// socket in good order, would look like something else to the front.
fn crash_loudly() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::abort();
    }));
}

fn end_at_once() {
    // Can't fail for ourselves; if it did, the loop would end by itself at its next step.
    let _ = process::kill_process(process::getpid(), Signal::KILL);
}
