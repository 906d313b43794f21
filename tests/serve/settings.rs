//! Flags and environment variables: what they do, and how the program ends when they cannot be used.

use crate::client;
use crate::models::test_model;
use crate::program::{Finished, Program, ticks};
use crate::server::{FILE, Server, greedy};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::net::TcpListener;
use std::time::Duration;
use tokio::time::sleep;

/// `serve` with these arguments on a free port, until it ends.
async fn serve(model: &str, flags: &[&str]) -> Finished {
    let program = Program::start(&["serve", model], |command| {
        command.args(flags).env("POCKET_LLM_PORT", "0");
    });
    program.finished().await
}

/// The one sentence that a failed program ends with.
fn sentence(finished: &Finished) -> &str {
    let lines = finished.stderr.lines();
    let mut own = lines.filter_map(|line| line.strip_prefix("pocket-llm: "));
    let sentence = own.next().expect(&finished.stderr);
    assert_eq!(own.next(), None, "one sentence: {}", finished.stderr);
    sentence
}

#[tokio::test]
async fn a_model_that_can_not_be_loaded_ends_with_status_1() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let whole = std::fs::read(test_model("gemma3-tiny.gguf")).unwrap();
    let missing = folder.path().join("missing.gguf");
    let small = test_model(FILE);
    let none: &[&str] = &[];
    let cases = [
        (
            missing.to_str().unwrap(),
            none,
            "missing.gguf can't be opened",
        ),
        (folder.path().to_str().unwrap(), none, "is a directory"),
        (
            &file("text.gguf", b"this is no model"),
            none,
            "text.gguf is not a GGUF file",
        ),
        (&file("empty.gguf", b""), none, "empty.gguf is too short"),
        (
            &file("cut.gguf", &whole[..whole.len() / 2]),
            none,
            "cut.gguf can't be loaded",
        ),
        (
            &file("header.gguf", &whole[..100]),
            none,
            "header.gguf can't be loaded",
        ),
        (
            small.to_str().unwrap(),
            &["--ctx-size", "100000", "--parallel", "2"],
            "use --ctx-size 16384 or less",
        ),
    ];
    for (model, flags, expected) in cases {
        let finished = serve(model, flags).await;
        assert!(
            sentence(&finished).contains(expected),
            "{expected}: {}",
            finished.stderr
        );
        assert_eq!(finished.status.code(), Some(1), "{expected}");
    }
}

#[tokio::test]
async fn settings_that_can_not_be_used_end_before_anything_is_bound() {
    let cases: [(&[&str], &str); 17] = [
        (&["--host", "nonsense"], "--host \"nonsense\" is no address"),
        (
            &["--host", "127.0.0.1:80"],
            "--host \"127.0.0.1:80\" is no address",
        ),
        (
            &["--threads", "999"],
            "--threads 999 can't be used: give 1 to",
        ),
        (&["--threads", "0"], "--threads 0 can't be used"),
        (
            &["--threads-batch", "999"],
            "--threads-batch 999 can't be used",
        ),
        (
            &["--parallel", "0"],
            "--parallel 0 can't be used: give 1 to 256",
        ),
        (
            &["--parallel", "257"],
            "--parallel 257 can't be used: give 1 to 256",
        ),
        (
            &["--ctx-size", "1"],
            "--ctx-size 1 can't be used: give 256 to",
        ),
        (
            &["--batch-size", "1"],
            "--batch-size 1 can't be used: give 4 to",
        ),
        (
            &["--queue", "5000"],
            "--queue 5000 can't be used: give 0 to 4096",
        ),
        (&["--api-key", ""], "--api-key: an empty key"),
        (&["--api-key", "key,"], "--api-key: an empty key"),
        (&["--alias", "a,,b"], "--alias \"\""),
        (&["--grace=-1"], "--grace -1 can't be used"),
        (
            &["--draft-model", "auto", "--speculate", "off"],
            "--draft-model is of no use with --speculate off",
        ),
        (&["--draft-model", "nothing-like-that"], "--draft-model: "),
        (&["--log", "http=loud"], "--log \"http=loud\" can't be used"),
    ];
    let model = test_model(FILE);
    for (flags, expected) in cases {
        let finished = serve(model.to_str().unwrap(), flags).await;
        assert!(
            sentence(&finished).starts_with(expected),
            "{expected}: {}",
            finished.stderr
        );
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        assert_eq!(finished.stdout, "", "{expected}");
        assert_eq!(finished.status.code(), Some(1), "{expected}");
    }
}

/// Words that are no numbers are clap's to refuse.
#[tokio::test]
async fn words_that_are_no_numbers_are_refused() {
    let model = test_model(FILE);
    for flags in [
        ["--port", "70000"],
        ["--parallel", "many"],
        ["--grace", "NaN"],
        ["--sleep-idle-seconds", "nan"],
        ["--sleep-idle-seconds", "-7"],
        ["--sleep-idle-seconds", "inf"],
    ] {
        let finished = serve(model.to_str().unwrap(), &flags).await;
        assert!(!finished.status.success(), "{flags:?}");
        assert_eq!(finished.stdout, "", "{flags:?}");
        assert!(
            finished.stderr.contains(flags[1]),
            "{flags:?}: {}",
            finished.stderr
        );
    }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap();
    let model = test_model(FILE);
    let flags = ["--port", &address.port().to_string()];
    let finished = serve(model.to_str().unwrap(), &flags).await;
    let expected = format!("can't listen on {address}: ");
    assert!(
        sentence(&finished).starts_with(&expected),
        "{}",
        finished.stderr
    );
    assert_eq!(
        (finished.status.code(), finished.stdout.as_str()),
        (Some(1), "")
    );
}

#[tokio::test]
async fn a_flag_beats_the_environment() {
    let program = Program::start(&["serve", "--parallel", "3"], |command| {
        command
            .env("POCKET_LLM_MODEL", test_model(FILE))
            .env("POCKET_LLM_HOST", "127.0.0.2,127.0.0.3")
            .env("POCKET_LLM_PORT", "0")
            .env("POCKET_LLM_THREADS", "1")
            .env("POCKET_LLM_PARALLEL", "2")
            .env("POCKET_LLM_CTX_SIZE", "1536")
            .env("POCKET_LLM_ALIAS", "one, two")
            .env("POCKET_LLM_QUEUE", "7")
            .env("POCKET_LLM_LOG_FORMAT", "json")
            .env("POD_NAME", "llm-x7k2p");
    });
    let server = Server::of(program, 2).await;
    server.becomes_ready().await;
    let status = server.status().await;
    let details = &status["ai"]["currentModelDetails"];
    assert_eq!(
        (&details["sequences"], &details["context"]),
        (&json!(3), &json!(512))
    );
    assert_eq!(status["queue"]["places"], 10);
    assert_eq!(status["pod"], "llm-x7k2p");
    let mut request = greedy("hi", 1);
    for alias in ["one", "two"] {
        request["model"] = json!(alias);
        let response = server.ask(request.to_string()).await;
        assert_eq!(response.status, 200, "{alias}");
        assert_eq!(response.header("x-served-by"), Some("llm-x7k2p"));
    }
    let logged = |program: &Program| program.errors().contains("request finished");
    server
        .program
        .until("the requests are logged", logged)
        .await;
    let errors = server.program.errors();
    let finished = errors
        .split_inclusive('\n')
        .find(|line| line.contains("request finished"));
    let finished: Value = serde_json::from_str(finished.unwrap()).expect("a line is an object");
    assert_eq!(finished["fields"]["outcome"], "length");
}

#[tokio::test]
async fn the_key_opens_the_door_and_goes_nowhere_else() {
    let server = Server::with(&[], |command| {
        command
            .env("POCKET_LLM_API_KEY", "first-secret,second-secret")
            .env("HF_TOKEN", "third-secret");
    })
    .await;
    let body = greedy("hi", 1).to_string();
    for path in ["/livez", "/readyz"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    for path in ["/", "/status", "/metrics", "/nothing"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
    }
    let ask = async |key: Option<&str>| {
        let header = key.map(|key| ("Authorization", key));
        let headers = header.as_slice();
        client::ask(server.address, "POST", "/ai/text", headers, body.as_bytes()).await
    };
    for wrong in [
        None,
        Some("Bearer wrong"),
        Some("Bearer first-secre"),
        Some("Bearer"),
        Some("Basic first-secret"),
    ] {
        let response = ask(wrong).await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (401, "UNAUTHORIZED"),
            "{wrong:?}"
        );
    }
    for right in ["Bearer first-secret", "bearer second-secret"] {
        assert_eq!(ask(Some(right)).await.status, 200, "{right}");
    }
    let key = [("Authorization", "Bearer first-secret")];
    let status = client::ask(server.address, "GET", "/status", &key, b"")
        .await
        .json();
    let worker = &status["worker"]["pid"];
    for file in ["environ", "cmdline"] {
        let bytes = std::fs::read(format!("/proc/{worker}/{file}")).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(
            !text.is_empty() && !text.contains("secret"),
            "{file}: {text}"
        );
    }
    assert!(!server.program.errors().contains("secret"));
}

#[tokio::test]
async fn every_host_answers_on_the_one_free_port() {
    let hosts = [
        "--host",
        "127.0.0.2",
        "--host",
        "localhost",
        "--host",
        "127.0.0.1",
    ];
    let program = Program::start(&["serve"], |command| {
        command
            .arg(test_model(FILE))
            .args(hosts)
            .args(["--port", "0"]);
    });
    let server = Server::of(program, 2).await;
    server.becomes_ready().await;
    let addresses = server.addresses();
    let ports: HashSet<u16> = addresses.iter().map(std::net::SocketAddr::port).collect();
    assert_eq!((addresses.len(), ports.len()), (2, 1), "{addresses:?}");
    for address in addresses {
        let live = client::ask(address, "GET", "/livez", &[], b"").await;
        assert_eq!(live.status, 200, "{address}");
    }
}

/// Nobody's battery is used while nobody asks.
#[tokio::test]
async fn an_idle_server_computes_nothing() {
    // All threads, as a user has them. Where they share their cores with much else, each layer waits for them, so the
    // model has few.
    let program = Program::start(&["serve"], |command| {
        command
            .arg(test_model("qwen2.5-tiny.gguf"))
            .args(["--port", "0", "--ctx-size", "2048"]);
    });
    let server = Server::of(program, 1).await;
    server.becomes_ready().await;
    server.answer(greedy("Say hello.", 8)).await;
    let worker = server.worker().await;
    let both = || ticks(server.program.pid()) + ticks(worker);
    // llama.cpp's threads look for more work for a moment before they sleep.
    let mut before = both();
    loop {
        sleep(Duration::from_millis(300)).await;
        let now = both();
        if std::mem::replace(&mut before, now) == now {
            break;
        }
    }
    sleep(Duration::from_secs(3)).await;
    let used = both() - before;
    assert!(used <= 3, "{used} ticks in 3 s");
}

/// A terminal that was closed, a log collector that was restarted.
#[tokio::test]
async fn a_server_outlives_who_reads_its_output() {
    let (reader, writer) = std::io::pipe().unwrap();
    let log = writer.try_clone().unwrap();
    let server = Server::with(&["--drain-delay", "0"], |command| {
        command.stderr(log);
    })
    .await;
    drop((reader, writer));
    for _ in 0..3 {
        server.answer(greedy("Say hello.", 8)).await;
    }
    let worker = server.worker().await;
    server.program.signal(Signal::TERM);
    server.ends_with(0, worker).await;

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let program = Program::start(&["serve"], |command| {
        command
            .arg(test_model(FILE))
            .args(["--port", "0", "--drain-delay", "0"])
            .stdout(writer);
    });
    program
        .until("it is loaded", |program| {
            program.errors().contains("model loaded")
        })
        .await;
    program.signal(Signal::TERM);
    let finished = program.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
}
