//! Starts workers and ends them: a child process of the same binary, or a thread (tests, engine benchmarks).
//!
//! The kernel's parent-death signal follows the *thread* that spawned, so all spawning is done by one thread
//! that lives as long as its engine. Standard error is drained at all times, because a full pipe would stop the worker
//! inside C++; its last lines become the reason of a death.

use crate::device::{children, huge, memory};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How variables begin that tell OpenMP how many threads there may be, where, and how long they spin. A worker decides that itself.
const OPENMP: [&str; 3] = ["OMP_", "GOMP_", "KMP_"];
/// glibc's malloc gives blocks of so many bytes and more pages of their own, and those back to the system when they are freed. Left to itself
/// it takes to keeping blocks of up to 32 MiB in its heap: saved states, which come and go in all sizes, leave holes there that nothing fits in.
const OWN_PAGES: (&str, &str) = ("MALLOC_MMAP_THRESHOLD_", "262144");
/// Where glibc is told to ask for huge pages.
const TUNABLES: &str = "GLIBC_TUNABLES";
/// Lines of a worker's standard error that are kept for its obituary.
const TAIL_LINES: usize = 50;
/// A longer line is cut.
const LINE_BYTES: u64 = 4 << 10;
/// Lines a second that go on to our log; the tail keeps the others.
const LINES_PER_SECOND: u32 = 100;
/// Words in the names of environment variables that are not handed down: a worker reads files of strangers, and has no use for
/// anybody's secrets.
const SECRETS: [&str; 5] = ["KEY", "TOKEN", "SECRET", "PASSW", "CREDENTIAL"];

/// How a worker is started.
#[derive(Clone)]
pub enum Launch {
    /// A child process. The words are a program and its first arguments, put before `engine`; without words it is
    /// this very binary.
    Process(Vec<OsString>),
    /// A thread of this process that serves the given end of a socket pair until the other end closes.
    Thread(Arc<dyn Fn(UnixStream) + Send + Sync>),
}

impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Process(words) => f.debug_tuple("Process").field(words).finish(),
            Self::Thread(_) => f.write_str("Thread"),
        }
    }
}

/// A started worker.
pub struct Launched {
    /// The front's end of the socket pair.
    pub stream: UnixStream,
    /// The process, if it is one.
    pub pid: Option<u32>,
    /// How it ended, once it has.
    pub ended: oneshot::Receiver<Ending>,
    killer: Killer,
}

impl Launched {
    /// Ends the worker at once. Harmless when it has ended already.
    pub fn kill(&self) {
        self.killer.kill();
    }
}

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The signal that killed it, if one did.
    pub signal: Option<i32>,
    /// Its exit status, if it exited.
    pub code: Option<i32>,
    /// Whether the system has killed somebody of our group for memory since it was started.
    pub out_of_memory: bool,
    /// The last lines of its standard error.
    pub last_lines: Vec<String>,
}

enum Killer {
    Process {
        pid: rustix::process::Pid,
        alive: Arc<Mutex<bool>>,
    },
    Thread(UnixStream),
}

impl Killer {
    fn kill(&self) {
        match self {
            Self::Process { pid, alive } => {
                // The lock is held by the reaper from before the pid is freed: we never signal a stranger.
                let alive = alive.lock().unwrap_or_else(PoisonError::into_inner);
                if *alive {
                    // An error can only mean that it is gone.
                    let _ = rustix::process::kill_process(*pid, rustix::process::Signal::KILL);
                }
            }
            // A thread can't be killed; it ends when its socket does.
            Self::Thread(stream) => drop(stream.shutdown(std::net::Shutdown::Both)),
        }
    }
}

/// The thread that spawns. Dropping it ends the thread, and with it (by the parent-death signal) its workers.
pub(super) struct Spawner {
    orders: SyncSender<oneshot::Sender<io::Result<Launched>>>,
}

impl Spawner {
    pub(super) fn new(launch: Launch) -> io::Result<Self> {
        let (orders, inbox) = sync_channel(1);
        thread::Builder::new()
            .name("spawner".into())
            .spawn(move || spawn_all(&launch, &inbox))?;
        Ok(Self { orders })
    }

    pub(super) async fn spawn(&self) -> io::Result<Launched> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the spawning thread is gone");
        self.orders.try_send(reply).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn spawn_all(launch: &Launch, inbox: &Receiver<oneshot::Sender<io::Result<Launched>>>) {
    while let Ok(reply) = inbox.recv() {
        let launched = match launch {
            Launch::Process(words) => spawn_process(words),
            Launch::Thread(serve) => spawn_thread(serve),
        };
        // The supervisor is gone: so is its worker, as `Launched` closes the socket.
        let _ = reply.send(launched);
    }
}

fn spawn_thread(serve: &Arc<dyn Fn(UnixStream) + Send + Sync>) -> io::Result<Launched> {
    let (front, worker) = UnixStream::pair()?;
    let killer = Killer::Thread(front.try_clone()?);
    let (tell, ended) = oneshot::channel();
    let serve = Arc::clone(serve);
    thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            serve(worker);
            let _ = tell.send(Ending {
                signal: None,
                code: Some(0),
                out_of_memory: false,
                last_lines: Vec::new(),
            });
        })?;
    Ok(Launched {
        stream: front,
        pid: None,
        ended,
        killer,
    })
}

fn spawn_process(words: &[OsString]) -> io::Result<Launched> {
    let (front, worker) = UnixStream::pair()?;
    let kills = memory::kills();
    let (mut child, listed) = children::spawn(&mut command(words, worker)?)?;
    let stderr = child.stderr.take();
    let pid = child.id();
    let raw = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let raw = raw.ok_or_else(|| io::Error::other("a process id of zero"))?;
    let alive = Arc::new(Mutex::new(true));
    let killer = Killer::Process {
        pid: raw,
        alive: Arc::clone(&alive),
    };
    let (tell, ended) = oneshot::channel();
    thread::Builder::new()
        .name("reaper".into())
        .spawn(move || {
            let last_lines = stderr.map(|stderr| drain(stderr, pid)).unwrap_or_default();
            let status = reap(child, raw, &alive);
            drop(listed);
            let _ = tell.send(Ending {
                signal: status.as_ref().ok().and_then(ExitStatus::signal),
                code: status.ok().and_then(|status| status.code()),
                out_of_memory: kills.is_some_and(|before| memory::kills() > Some(before)),
                last_lines,
            });
        })?;
    Ok(Launched {
        stream: front,
        pid: Some(pid),
        ended,
        killer,
    })
}

fn command(words: &[OsString], worker: UnixStream) -> io::Result<Command> {
    let mut command = match words.split_first() {
        Some((program, first)) => {
            let mut command = Command::new(program);
            command.args(first);
            command
        }
        // `/proc/self/exe` is this binary even after its file was replaced by an upgrade.
        None if cfg!(target_os = "linux") => Command::new("/proc/self/exe"),
        None => Command::new(std::env::current_exe()?),
    };
    if words.is_empty() {
        command.arg0("pocket-llm");
    }
    command
        .arg("engine")
        .stdin(OwnedFd::from(worker))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .env("GGML_NO_BACKTRACE", "1")
        .env("POCKET_LLM_FRONT_PID", std::process::id().to_string())
        .process_group(0);
    if std::env::var_os(OWN_PAGES.0).is_none() {
        command.env(OWN_PAGES.0, OWN_PAGES.1);
    }
    if huge::are_of_use()
        && let Some(tunables) = with_huge_pages(std::env::var_os(TUNABLES))
    {
        command.env(TUNABLES, tunables);
    }
    for (name, _) in std::env::vars_os() {
        let upper = name.to_string_lossy().to_uppercase();
        if SECRETS.iter().any(|word| upper.contains(word))
            || OPENMP.iter().any(|begin| upper.starts_with(begin))
        {
            command.env_remove(name);
        }
    }
    Ok(command)
}

/// What the operator tells glibc, and that it asks for huge pages; nothing if the operator said whether it should.
fn with_huge_pages(said: Option<OsString>) -> Option<OsString> {
    let mut tunables = said.filter(|said| !said.is_empty()).unwrap_or_default();
    if tunables.to_string_lossy().contains("glibc.malloc.hugetlb") {
        return None;
    }
    if !tunables.is_empty() {
        tunables.push(":");
    }
    tunables.push(huge::TUNABLE);
    Some(tunables)
}

/// Waits for the end without freeing the pid, closes the door for signals, then frees it.
fn reap(
    mut child: Child,
    pid: rustix::process::Pid,
    alive: &Mutex<bool>,
) -> io::Result<ExitStatus> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while let Err(rustix::io::Errno::INTR) = waitid(WaitId::Pid(pid), options) {}
    *alive.lock().unwrap_or_else(PoisonError::into_inner) = false;
    child.wait()
}

/// A worker's line without the level that its log put before it, and whether that is one that everybody should see: the line gets
/// a level of our log, and two are one too many.
fn level(line: &str) -> (bool, &str) {
    let line = line.trim_start();
    match line.split_once(' ') {
        Some(("ERROR" | "WARN", text)) => (true, text.trim_start()),
        Some(("INFO" | "DEBUG" | "TRACE", text)) => (false, text.trim_start()),
        _ => (false, line),
    }
}

/// Hands a worker's line on to our log.
fn relay(pid: u32, urgent: bool, text: &str) {
    let text = text.escape_debug();
    if urgent {
        tracing::warn!(worker = pid, "{text}");
    } else {
        tracing::debug!(worker = pid, "{text}");
    }
}

/// Reads standard error to its end, hands lines to our log at a bounded rate, and keeps the last ones.
fn drain(stderr: ChildStderr, pid: u32) -> Vec<String> {
    let mut reader = BufReader::new(stderr);
    let mut tail = VecDeque::with_capacity(TAIL_LINES);
    let mut line = Vec::new();
    let (mut window, mut in_window, mut suppressed) = (Instant::now(), 0u32, 0u64);
    loop {
        line.clear();
        match reader
            .by_ref()
            .take(LINE_BYTES)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        let (urgent, text) = level(text.trim_end());
        if text.is_empty() {
            continue;
        }
        if window.elapsed() >= Duration::from_secs(1) {
            if suppressed > 0 {
                tracing::warn!(worker = pid, suppressed, "worker log lines dropped");
            }
            (window, in_window, suppressed) = (Instant::now(), 0, 0);
        }
        if in_window < LINES_PER_SECOND {
            in_window += 1;
            relay(pid, urgent, text);
        } else {
            suppressed += 1;
        }
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text.to_owned());
    }
    tail.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_one_level() {
        for (line, expected) in [
            ("ERROR llama: no", (true, "llama: no")),
            (" WARN slow", (true, "slow")),
            (" INFO memory needs=1", (false, "memory needs=1")),
            ("INFORMAL", (false, "INFORMAL")),
            ("terminate called", (false, "terminate called")),
        ] {
            assert_eq!(level(line), expected);
        }
    }

    #[test]
    fn what_the_operator_tells_glibc_stays() {
        let of = |said: Option<&str>| {
            let tunables = with_huge_pages(said.map(OsString::from))?;
            tunables.into_string().ok()
        };
        assert_eq!(of(None).as_deref(), Some("glibc.malloc.hugetlb=1"));
        assert_eq!(of(Some("")).as_deref(), Some("glibc.malloc.hugetlb=1"));
        assert_eq!(
            of(Some("glibc.malloc.perturb=7")).as_deref(),
            Some("glibc.malloc.perturb=7:glibc.malloc.hugetlb=1")
        );
        assert_eq!(of(Some("glibc.malloc.hugetlb=0")), None);
    }
}
