//! The real binary: `pocket-llm pull` as a person at a shell has it.

use super::hub::{Act, At, Hub};
use super::model::{NAME, Place, digest_of, gguf};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

const LENGTH: usize = 700_003;

/// `pocket-llm pull` with a hub, a store, and nothing of our own environment that it could mind.
pub(crate) fn pull(hub: &Hub, models: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pocket-llm"));
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if ["POCKET_LLM_", "HF_", "HUGGING_FACE_"]
            .iter()
            .any(|start| name.starts_with(start))
        {
            command.env_remove(name);
        }
    }
    command
        .env("HF_ENDPOINT", hub.endpoint())
        .env("HF_HOME", models.join("nowhere"))
        .env("POCKET_LLM_MODELS", models)
        .env("POCKET_LLM_PULL_BACKOFF_SECONDS", "0.002")
        .arg("pull")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A child that ends with its test.
pub(crate) struct Running(Option<Child>);

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    pub(crate) fn kill(&mut self) {
        let child = self.0.as_mut().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.0.as_ref().unwrap()), signal).unwrap();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.0.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    pub(crate) fn output(mut self) -> Output {
        self.0.take().unwrap().wait_with_output().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Harmless if it has ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn run(hub: &Hub, place: &Place, arguments: &[&str]) -> (Option<i32>, String, String) {
    output(pull(hub, place.folder.path(), arguments))
}

pub(crate) fn output(mut command: Command) -> (Option<i32>, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn start() -> (Hub, Place) {
    let hub = Hub::start(gguf(4, LENGTH));
    let place = Place::new(&hub);
    (hub, place)
}

#[test]
fn it_prints_path_and_digest_and_fetches_once() {
    let (hub, place) = start();
    let line = format!(
        "{}  sha256:{}\n",
        place.target().display(),
        digest_of(&hub.blob().bytes)
    );
    let (status, out, err) = run(&hub, &place, &[NAME]);
    assert_eq!((status, out.as_str()), (Some(0), line.as_str()), "{err}");
    assert_eq!(place.bytes().unwrap(), *hub.blob().bytes);
    hub.seen();
    let (status, out, err) = run(&hub, &place, &[NAME, NAME]);
    assert_eq!((status, out), (Some(0), format!("{line}{line}")), "{err}");
    assert!(err.contains("there already"), "{err}");
    assert_eq!(hub.seen(), []);
    place.assert_tidy();
}

#[test]
fn it_verifies_and_mends() {
    let (hub, place) = start();
    run(&hub, &place, &[NAME]);
    let (status, _, err) = run(&hub, &place, &[NAME, "--verify"]);
    assert_eq!(status, Some(0));
    assert!(err.contains("whole"), "{err}");
    let mut bytes = place.bytes().unwrap();
    bytes[500_000] ^= 1;
    fs::write(place.target(), &bytes).unwrap();
    hub.seen();
    let (status, _, err) = run(&hub, &place, &[NAME, "--verify"]);
    assert_eq!(status, Some(0), "{err}");
    assert_eq!(place.bytes().unwrap(), *hub.blob().bytes);
    assert_eq!(hub.seen_at(At::Store).len(), 1);
}

#[test]
fn files_put_there_by_hand_are_adopted_or_left_alone() {
    let (hub, place) = start();
    fs::write(place.target(), &*hub.blob().bytes).unwrap();
    let (status, _, err) = run(&hub, &place, &[NAME]);
    assert_eq!(status, Some(0), "{err}");
    assert_eq!(hub.seen_at(At::Hub), []);
    place.assert_tidy();

    let (hub, place) = start();
    fs::write(place.target(), "mine").unwrap();
    let (status, out, err) = run(&hub, &place, &[NAME]);
    assert_eq!((status, out.as_str()), (Some(1), ""));
    assert!(err.contains("--force"), "{err}");
    assert_eq!(place.bytes().unwrap(), b"mine");
    let (status, _, err) = run(&hub, &place, &[NAME, "--force"]);
    assert_eq!(status, Some(0), "{err}");
    assert_eq!(place.bytes().unwrap(), *hub.blob().bytes);
}

#[test]
fn one_failure_does_not_keep_the_others_from_coming() {
    let (hub, place) = start();
    hub.script(At::Hub, [Act::of(401, "who?")]);
    let other = "hf:owner/name/other.gguf";
    let names = [NAME, "no-such-model", "./a.gguf", other, NAME];
    let (status, out, err) = run(&hub, &place, &names);
    assert_eq!(status, Some(1));
    assert_eq!(out.lines().count(), 1, "{out}");
    let errors: Vec<&str> = err
        .lines()
        .filter(|line| line.starts_with("pocket-llm: "))
        .collect();
    assert_eq!(errors.len(), 4, "{err}");
    for (error, word) in errors
        .iter()
        .zip(["HF_TOKEN", "no-such-model", "path", "no such file"])
    {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn another_file_than_the_catalogues_is_refused() {
    let (hub, place) = start();
    let digest = "ab".repeat(32);
    let info = format!(
        r#"{{"siblings":[{{"rfilename":"SmolLM2-135M-Instruct-Q4_K_M.gguf","lfs":{{"sha256":"{digest}"}}}}]}}"#
    );
    hub.script(At::Api, [Act::of(200, &info)]);
    let (status, _, err) = run(&hub, &place, &["smollm2-135m"]);
    assert_eq!(status, Some(1));
    assert!(
        err.contains("another file than the catalogue knows"),
        "{err}"
    );
    assert!(err.contains(&digest), "{err}");
    assert_eq!(hub.seen_at(At::Hub), []);
}

#[test]
fn an_interrupted_pull_is_continued() {
    for (signal, expected) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let (hub, place) = start();
        hub.script(At::Store, [Act::stall(400_000)]);
        let running = Running::start(pull(&hub, place.folder.path(), &[NAME]));
        hub.stalls.recv_timeout(Duration::from_secs(30)).unwrap();
        running.signal(signal);
        let output = running.output();
        assert_eq!(output.status.code(), Some(expected));
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(err.contains("goes on from there"), "{err}");
        let here = place.partial_length();
        let (status, _, err) = run(&hub, &place, &[NAME]);
        assert_eq!(status, Some(0), "{err}");
        assert_eq!(place.bytes().unwrap(), *hub.blob().bytes);
        let seen = hub.seen_at(At::Store);
        assert_eq!(seen.last().unwrap().from, here);
        assert!(seen[0].left, "it went only when the server did");
    }
}

#[test]
fn settings_that_can_not_be_used_are_told() {
    let (hub, place) = start();
    let folder = place.folder.path();
    for (name, value) in [
        ("HF_ENDPOINT", "http://user:s3cr3t@127.0.0.1/"),
        ("HF_ENDPOINT", "huggingface.co"),
        ("HF_ENDPOINT", "http://[::1"),
        ("HF_TOKEN", "two s3cr3t"),
        ("POCKET_LLM_PULL_ATTEMPTS", "0"),
        ("POCKET_LLM_PULL_READ_SECONDS", "-1"),
    ] {
        let mut command = pull(&hub, folder, &[NAME]);
        command.env(name, value);
        let (status, _, err) = output(command);
        assert!(matches!(status, Some(1 | 2)), "{name}={value}: {status:?}");
        assert!(
            !err.contains("s3cr3t") && !err.contains("panicked"),
            "{err}"
        );
        assert!(!err.is_empty());
    }
    assert_eq!(hub.seen(), []);
}

#[test]
fn tokens_are_found_where_the_hubs_own_tool_leaves_them() {
    let (hub, place) = start();
    let folder = place.folder.path().join("home");
    let file = |path: &str| {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "hf_file\n").unwrap();
    };
    file("a/token");
    file("b/my-token");
    file(".cache/huggingface/token");
    for (names, expected) in [
        (
            vec![("HF_TOKEN", "hf_variable"), ("HF_HOME", "a")],
            "hf_variable",
        ),
        (vec![("HF_HOME", "a")], "hf_file"),
        (
            vec![("HF_TOKEN_PATH", "b/my-token"), ("HF_HOME", "c")],
            "hf_file",
        ),
        (vec![("HOME", "")], "hf_file"),
    ] {
        let mut command = pull(&hub, place.folder.path(), &[NAME, "--force"]);
        command.env_remove("HF_HOME");
        for (name, value) in names {
            let path = folder.join(value).into_os_string();
            command.env(
                name,
                if name == "HF_TOKEN" {
                    value.into()
                } else {
                    path
                },
            );
        }
        let (status, _, err) = output(command);
        assert_eq!(status, Some(0), "{err}");
        let sent = &hub.seen_at(At::Hub)[0].headers["authorization"];
        assert_eq!(*sent, format!("Bearer {expected}"));
    }
}

#[test]
fn the_finest_log_has_no_secrets() {
    let (hub, place) = start();
    hub.script(At::Store, [Act::cut(100_000), Act::of(403, "expired")]);
    let mut command = pull(&hub, place.folder.path(), &[NAME, "--log", "trace"]);
    command.env("HF_TOKEN", "hf_s3cr3t");
    let (status, out, err) = output(command);
    assert_eq!(status, Some(0), "{err}");
    assert!(err.contains("a try ended"), "{err}");
    assert!(!err.contains("s3cr3t") && !out.contains("s3cr3t"), "{err}");
}

#[test]
fn two_processes_fetch_a_file_once() {
    let (hub, place) = start();
    hub.script(At::Store, [Act::stall(400_000)]);
    let mut command = pull(&hub, place.folder.path(), &[NAME]);
    // It is cut off by its own patience, and goes on.
    command.env("POCKET_LLM_PULL_READ_SECONDS", "2");
    let first = Running::start(command);
    hub.stalls.recv_timeout(Duration::from_secs(30)).unwrap();
    let progress = std::sync::Arc::new(pocket_llm::models::download::Progress::default());
    let second = {
        let (puller, progress) = (place.puller.clone(), std::sync::Arc::clone(&progress));
        thread::spawn(move || {
            puller.pull(
                &super::model::reference(),
                pocket_llm::models::download::Existing::Trust,
                &progress,
            )
        })
    };
    let mut was_locked = false;
    while !second.is_finished() {
        was_locked |= progress.phase() == pocket_llm::models::download::Phase::Locked;
        thread::sleep(Duration::from_millis(1));
    }
    let pulled = second.join().unwrap().unwrap();
    assert!(was_locked);
    assert_eq!(pulled.how, pocket_llm::models::download::How::AlreadyThere);
    assert_eq!(first.output().status.code(), Some(0));
    let seen = hub.seen_at(At::Store);
    assert_eq!(seen.iter().map(|seen| seen.sent).sum::<usize>(), LENGTH);
    assert_eq!(place.bytes().unwrap(), *hub.blob().bytes);
}

#[test]
fn a_pipe_gets_lines_and_no_bars() {
    let (hub, place) = start();
    hub.script(At::Store, [Act::stall(500_000)]);
    let mut command = pull(&hub, place.folder.path(), &[NAME]);
    command.env("POCKET_LLM_PULL_READ_SECONDS", "1");
    let mut child = command.spawn().unwrap();
    let mut err = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert!(
        err.contains("receiving") && err.contains(" of 684 KiB"),
        "{err}"
    );
    assert!(!err.contains('\r') && !err.contains('\u{1b}'), "{err:?}");
}
