//! What one client says stays between it and the model: hundreds of requests with secrets, mixed, streamed and not, cancelled,
//! with workers that are killed in the middle. No answer, error or log line has anybody else's, and no log has any text.

use crate::client::{Connection, Response, ask};
use crate::program::{is_gone, signal, until};
use crate::server::Server;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::NamedTempFile;
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

/// Letters that make no words, so that the model says them only if it has read them.
const SECRETS: [&str; 10] = [
    "xqvbtzkw", "jhgfwqzx", "bvcxzkjq", "wtrpqzmx", "kzjxqhvw", "qpwkzvbn", "zgxjvkqd", "mzqxwvjk",
    "vxkqjzrt", "hqzkxwpv",
];
const REQUESTS: usize = 16;
/// A word of every prompt.
const PROMPT: &str = "codeword";

/// Whether a text has a good part of a secret.
fn tells(text: &str, secret: &str) -> bool {
    let text = text.to_lowercase();
    (0..=secret.len() - 5).any(|at| text.contains(&secret[at..at + 5]))
}

fn key(client: usize) -> String {
    format!("Bearer key-of-{client}")
}

/// One way of asking, by its number.
fn asked(client: usize, n: usize) -> (&'static str, Value) {
    let secret = SECRETS[client];
    let text = format!("Repeat this {PROMPT} {n}: {secret} {secret}");
    let messages = json!([{"role": "user", "content": text}]);
    match n % 5 {
        0 => ("/ai/text", json!({"text": text, "maxTokens": 10})),
        1 => (
            "/ai/text",
            json!({"text": text, "maxTokens": 10, "stream": true, "cachePrompt": false}),
        ),
        2 => (
            "/v1/chat/completions",
            json!({"messages": messages, "max_tokens": 10}),
        ),
        3 => (
            "/v1/chat/completions",
            json!({"messages": messages, "max_tokens": 10, "stream": true, "logprobs": true}),
        ),
        // Not as it should be: the error may quote its own request only.
        _ => (
            "/v1/completions",
            json!({"prompt": text, "max_tokens": 6, "echo": true, "stop": n, "model": secret}),
        ),
    }
}

/// Whole answers, whoever ends them.
async fn whole(address: SocketAddr, client: usize, path: &str, body: &Value) -> Response {
    let mut connection = Connection::open(address).await;
    let (key, body) = (key(client), body.to_string());
    let headers = [("Authorization", key.as_str())];
    connection
        .send("POST", path, &headers, body.as_bytes())
        .await;
    let mut response = connection.head().await;
    if response.header("content-length").is_some() {
        let length = response.header("content-length").unwrap().parse().unwrap();
        let mut bytes = vec![0; length];
        connection.stream.read_exact(&mut bytes).await.unwrap();
        response.body = bytes;
    } else {
        response.body = connection.rest().await.0.into_bytes();
    }
    response
}

/// What came of a client's requests.
#[derive(Default)]
struct Came {
    answers: usize,
    with_own: usize,
}

async fn talk(address: SocketAddr, client: usize, done: Arc<AtomicUsize>) -> Came {
    let mut came = Came::default();
    for n in 0..REQUESTS {
        let (path, body) = asked(client, n);
        if n % 7 == 6 {
            // Leaves at once, or soon.
            let asking = whole(address, client, path, &body);
            let _ = timeout(Duration::from_millis(20 * (n as u64 % 3)), asking).await;
        } else {
            let response = whole(address, client, path, &body).await;
            let text = response.text();
            for (other, secret) in SECRETS.iter().enumerate() {
                let headers = format!("{:?}", response.headers);
                assert!(
                    other == client || !tells(&text, secret) && !tells(&headers, secret),
                    "client {client} read of client {other}: {text}"
                );
            }
            let known = [200, 400, 404, 422, 502, 503];
            assert!(known.contains(&response.status), "{text}");
            came.answers += usize::from(response.status == 200);
            came.with_own += usize::from(response.status == 200 && tells(&text, SECRETS[client]));
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    came
}

/// Prompt tokens of an answer that another request had left.
async fn cached(address: SocketAddr, client: usize, text: &str) -> u64 {
    let body = json!({"text": text, "maxTokens": 1, "temperature": 0}).to_string();
    let key = key(client);
    let headers = [("Authorization", key.as_str())];
    let response = ask(address, "POST", "/ai/text", &headers, body.as_bytes()).await;
    let metadata = &response.json()["metadata"];
    metadata["cachedTokens"].as_u64().expect("a number")
}

async fn worker_of(address: SocketAddr) -> u32 {
    let key = key(0);
    let headers = [("Authorization", key.as_str())];
    loop {
        let status = ask(address, "GET", "/status", &headers, b"").await.json();
        // There is none for a moment after a kill.
        if let Some(pid) = status["worker"]["pid"].as_u64() {
            return u32::try_from(pid).unwrap();
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn nothing_gets_across(scope: &str, log: &str) {
    let mut keys = NamedTempFile::new().unwrap();
    for client in 0..SECRETS.len() {
        writeln!(keys, "key-of-{client}").unwrap();
    }
    let flags = [
        "--cache-scope",
        scope,
        "--log",
        log,
        "--parallel",
        "4",
        "--queue",
        "64",
        "--api-key-file",
        keys.path().to_str().unwrap(),
    ];
    let server = Server::start(&flags).await;
    let address = server.address;

    let text = format!("A {PROMPT} of many words, the same for all. ").repeat(6);
    assert_eq!(cached(address, 0, &text).await, 0);
    let others = cached(address, 1, &text).await;
    assert_eq!(others == 0, scope == "client", "{others} tokens");
    assert!(cached(address, 0, &text).await > 16, "one's own are");

    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..SECRETS.len())
        .map(|client| tokio::spawn(talk(address, client, Arc::clone(&done))))
        .collect();
    let all = SECRETS.len() * REQUESTS;
    for (share, how) in [(3, Signal::KILL), (2, Signal::SEGV)] {
        until("a part is done", || {
            done.load(Ordering::Relaxed) >= all / share
        })
        .await;
        let worker = worker_of(address).await;
        signal(worker, how);
        while how == Signal::SEGV && !is_gone(worker) {
            sleep(Duration::from_millis(1)).await;
            let pid = rustix::process::Pid::from_raw(worker.cast_signed()).unwrap();
            // It may be gone by now.
            let _ = rustix::process::kill_process(pid, how);
        }
    }
    let mut sum = Came::default();
    for client in clients {
        let came = client.await.unwrap();
        sum.answers += came.answers;
        sum.with_own += came.with_own;
    }
    // Else the test would show nothing.
    assert!(sum.answers > all / 3, "{} of {all}", sum.answers);
    assert!(
        sum.with_own > all / 20,
        "{} of {}",
        sum.with_own,
        sum.answers
    );
    let log = server.program.errors();
    assert!(log.contains("request finished") && log.contains("signal 11"));
    for secret in SECRETS.into_iter().chain([PROMPT]) {
        let line = log.lines().find(|line| tells(line, secret));
        assert_eq!(line, None, "a text of {secret} in the log");
    }
    assert!(!log.contains("key-of-"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_gets_from_one_client_to_another() {
    nothing_gets_across("server", "info").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_gets_across_where_clients_are_kept_apart_and_the_log_is_long() {
    nothing_gets_across("client", "debug").await;
}
