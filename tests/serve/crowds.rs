//! Many clients that do nothing, and some that write what would harm a log.

use crate::client::{self, Connection};
use crate::models::test_model;
use crate::program::Program;
use crate::server::Server;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

/// Idle connections, all of which this process and the server must be able to hold.
const CROWD: usize = 1000;
/// Memory that they may cost the server, in KiB.
const MOST_KIB: u64 = 30 << 10;

/// Lets this process, and what it starts, open as many files as it may.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// KiB of memory that a process holds.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse().unwrap()
}

async fn tiny(flags: &[&str]) -> Server {
    let program = Program::start(&["serve"], |command| {
        command
            .arg(test_model("qwen2.5-tiny.gguf"))
            .args(["--port", "0", "--threads", "1", "--ctx-size", "1024"])
            .args(flags);
    });
    let server = Server::of(program, 1).await;
    server.becomes_ready().await;
    server
}

/// Each has asked once, so that all that a connection ever needs was made for it.
#[tokio::test]
async fn a_thousand_idle_connections_cost_little() {
    raise_open_files();
    let server = tiny(&[]).await;
    let body = br#"{"text":"hi","maxTokens":2}"#;
    for _ in 0..8 {
        let answer = client::ask(server.address, "POST", "/ai/text", &[], body).await;
        assert_eq!(answer.status, 200);
    }
    let before = resident(server.program.pid());
    let mut crowd = Vec::with_capacity(CROWD);
    for _ in 0..CROWD {
        let mut connection = Connection::open(server.address).await;
        connection.send("GET", "/livez", &[], b"").await;
        assert_eq!(connection.response().await.status, 200);
        crowd.push(connection);
    }
    let open = server.metric("pocket_llm_connections").await;
    let after = resident(server.program.pid());
    let grown = after.saturating_sub(before);
    eprintln!("{open} connections: {before} KiB before, {after} KiB with them");
    // Whoever came first may have been sent away meanwhile, on a slow machine.
    assert!(open >= CROWD as u64 / 2, "{open} connections are open");
    assert!(
        grown * CROWD as u64 / open < MOST_KIB,
        "{grown} KiB for {open}"
    );
    // And it still answers.
    let answer = client::ask(server.address, "POST", "/ai/text", &[], body).await;
    assert_eq!(answer.status, 200);
    drop(crowd);
}

const ESCAPES: &str = "a\u{1b}[31mred\u{7}\r\nINFO forged line\u{9b}31m\u{2028}";

/// What a client writes can't begin a line of the log, nor reach the terminal of who reads it.
#[tokio::test]
async fn no_client_writes_into_the_log() {
    for format in ["text", "json"] {
        let server = tiny(&["--log", "trace", "--log-format", format]).await;
        let named = json!({"text": "secret prompt", "model": ESCAPES}).to_string();
        let chat = json!({"model": ESCAPES, "user": ESCAPES, "messages": [{"role": "user", "content": ESCAPES}]});
        let chat = chat.to_string();
        let prompt =
            json!({"text": format!("secret prompt {ESCAPES}"), "maxTokens": 2, "stop": [ESCAPES]})
                .to_string();
        let download = json!({"modelName": ESCAPES}).to_string();
        let id = [("X-Request-Id", "id\u{9b}31m"), ("User-Agent", "a\u{9b}")];
        for (path, body) in [
            ("/ai/text", &named),
            ("/ai/text", &prompt),
            ("/v1/chat/completions", &chat),
            ("/ai/models/download", &download),
            ("/ai/models/%1b%5B31m%0aINFO%20forged/status", &prompt),
        ] {
            let answer = client::ask(server.address, "POST", path, &id, body.as_bytes()).await;
            assert!(answer.status < 500, "{path}: {}", answer.text());
        }
        server
            .metric_becomes("pocket_llm_requests_running", 0)
            .await;
        let log = server.program.errors();
        assert!(log.contains("request finished"), "{log}");
        assert!(!log.contains("secret prompt"), "{log}");
        for line in log.lines() {
            let is_whole = if format == "json" {
                serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object())
            } else {
                // Each begins with the year.
                line.starts_with("20")
            };
            assert!(is_whole, "{line:?}");
            assert!(!line.contains(char::is_control), "{line:?}");
        }
    }
}
