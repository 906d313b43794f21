//! The real binary as a child process: what it says is collected, and it ends with its test, however that ends.

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// No test waits longer for anything, also on a machine that has much else to do.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// No program lives longer: what waits for one that does not end, ends.
const LIFETIME: Duration = Duration::from_mins(3);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(2);

/// What this process may have been given, and no program of a test should have by accident.
const FOREIGN: [&str; 6] = [
    "POD_NAME",
    "NODE_NAME",
    "KUBERNETES_SERVICE_HOST",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "COLUMNS",
];

/// A running program. Dropping it ends it.
pub(crate) struct Program {
    child: Arc<Mutex<Child>>,
    pid: u32,
    input: Option<ChildStdin>,
    output: Collected,
    errors: Collected,
    /// The watching thread ends when this does.
    _watch: SyncSender<()>,
}

/// How a program ended, and what it had said.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Program {
    /// Starts pocket-llm with these arguments, nothing on standard input, and what `change` says.
    pub(crate) fn start(arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pocket-llm"));
        command.args(arguments);
        Self::spawn(command, change)
    }

    /// Starts any program in the same way.
    pub(crate) fn spawn(mut command: Command, change: impl FnOnce(&mut Command)) -> Self {
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("POCKET_LLM_") {
                command.env_remove(name);
            }
        }
        for name in FOREIGN {
            command.env_remove(name);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let (input, output, errors) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let pid = child.id();
        let child = Arc::new(Mutex::new(child));
        Self {
            _watch: watch(Arc::clone(&child)),
            child,
            pid,
            input,
            output: Collected::of(output),
            errors: Collected::of(errors),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// What standard output has so far.
    pub(crate) fn output(&self) -> String {
        self.output.text()
    }

    /// What standard error has so far.
    pub(crate) fn errors(&self) -> String {
        self.errors.text()
    }

    /// Writes to standard input, which must be piped.
    pub(crate) fn type_in(&mut self, text: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(&self, signal: Signal) {
        self.unless_ended(|pid| kill_process(pid, signal).unwrap());
    }

    /// Sends a signal to its process group, which must be its own.
    pub(crate) fn signal_group(&self, signal: Signal) {
        self.unless_ended(|pid| kill_process_group(pid, signal).unwrap());
    }

    fn unless_ended(&self, act: impl FnOnce(Pid)) {
        let mut child = self.child.lock().unwrap();
        // Nobody else gets its id before it was waited for, and that needs the lock.
        if child.try_wait().unwrap().is_none() {
            act(Pid::from_child(&child));
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_some()
    }

    /// Waits for a condition; a program that ends before cannot meet it any more.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waited = timeout(PATIENCE, async {
            while !condition(self) {
                let ended = self.has_ended();
                assert!(
                    !ended || condition(self),
                    "it ended before {what}: {}",
                    self.errors()
                );
                sleep(PAUSE).await;
            }
        });
        assert!(waited.await.is_ok(), "in vain for {what}");
    }

    /// Waits for its end.
    pub(crate) async fn finished(&self) -> Finished {
        let ended = || self.has_ended() && self.output.ended() && self.errors.ended();
        until("the program ends", ended).await;
        let status = self.child.lock().unwrap().wait().unwrap();
        Finished {
            status,
            stdout: self.output(),
            stderr: self.errors(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A poisoned lock is no reason to leave a program behind.
        let mut child = self
            .child
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Harmless if it has ended.
        let _ = child.kill();
        let _ = child.wait();
        if thread::panicking() {
            eprintln!(
                "standard output of {}:\n{}\nstandard error:\n{}",
                self.pid,
                self.output.text(),
                self.errors.text()
            );
        }
    }
}

/// Ends a program that lives too long.
fn watch(child: Arc<Mutex<Child>>) -> SyncSender<()> {
    let (alive, dropped) = sync_channel(0);
    thread::spawn(move || {
        if dropped.recv_timeout(LIFETIME) == Err(RecvTimeoutError::Timeout) {
            // One that has been waited for is not signalled.
            let _ = child.lock().unwrap().kill();
        }
    });
    alive
}

/// What a pipe brings, read by a thread so that the program never waits for us.
#[derive(Clone, Default)]
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
}

impl Collected {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let collected = Self::default();
        let into = collected.clone();
        thread::spawn(move || {
            let mut part = [0; 4096];
            if let Some(mut pipe) = pipe {
                while let Ok(length @ 1..) = pipe.read(&mut part) {
                    into.bytes.lock().unwrap().extend(&part[..length]);
                }
            }
            into.ended.store(true, Ordering::Release);
        });
        collected
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// The result, which must come in time.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .expect("it took longer than a test's patience")
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = timeout(PATIENCE, async {
        while !condition() {
            sleep(PAUSE).await;
        }
    });
    assert!(waited.await.is_ok(), "in vain until {what}");
}

/// Sends a signal to another process than a [`Program`].
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Whether the process is gone, or a zombie that its parent has not looked at yet.
pub(crate) fn is_gone(pid: u32) -> bool {
    stat(pid).is_none_or(|stat| stat[0] == "Z")
}

/// Ticks (of 10 ms, as a rule) that a process has computed.
pub(crate) fn ticks(pid: u32) -> u64 {
    let stat = stat(pid).unwrap();
    stat[11..13]
        .iter()
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum()
}

/// The fields of a process's `stat`, from its state on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(Into::into).collect())
}
