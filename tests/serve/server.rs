//! `pocket-llm serve` with the small chat model, on a free port of the loopback device.

use crate::client::{self, Connection, Response};
use crate::models::test_model;
use crate::program::{PATIENCE, Program, until};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The file of the model.
pub(crate) const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The name that answers carry.
pub(crate) const NAME: &str = "SmolLM2-135M-Instruct.Q4_1";

pub(crate) const SSE: &str = "text/event-stream";
pub(crate) const NDJSON: &str = "application/x-ndjson";
pub(crate) const PLAIN: &str = "text/plain";

/// Flags beat these. One thread, because several tests run beside each other; fewer than 64 rows, because greedy text is
/// then the same in all shapes of batches.
const DEFAULTS: [(&str, &str); 4] = [
    ("POCKET_LLM_PORT", "0"),
    ("POCKET_LLM_THREADS", "1"),
    ("POCKET_LLM_BATCH_SIZE", "48"),
    ("POCKET_LLM_CTX_SIZE", "4096"),
];

/// A running server.
pub(crate) struct Server {
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts one and waits until its model is loaded.
    pub(crate) async fn start(flags: &[&str]) -> Self {
        Self::with(flags, |_| {}).await
    }

    /// The same, with something changed about the process.
    pub(crate) async fn with(flags: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let server = Self::listening(flags, change).await;
        server.becomes_ready().await;
        server
    }

    /// Starts one and waits until it listens.
    pub(crate) async fn listening(flags: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        Self::of_model(&test_model(FILE), flags, change).await
    }

    /// The same, with the model of another file.
    pub(crate) async fn of_model(
        model: &Path,
        flags: &[&str],
        change: impl FnOnce(&mut Command),
    ) -> Self {
        let program = Program::start(&["serve"], |command| {
            command.arg(model).args(flags).envs(DEFAULTS);
            change(command);
        });
        Self::of(program, 1).await
    }

    /// A program that will listen on this many addresses; the first is asked.
    pub(crate) async fn of(program: Program, addresses: usize) -> Self {
        program
            .until("it listens", |program| {
                listening(program).len() >= addresses
            })
            .await;
        let address = listening(&program)[0];
        Self { program, address }
    }

    /// The addresses that it has printed.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        listening(&self.program)
    }

    pub(crate) async fn becomes_ready(&self) {
        let ready = async {
            while self.get("/readyz").await.status != 200 {
                assert!(!self.program.has_ended(), "{}", self.program.errors());
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(PATIENCE, ready).await.is_ok(), "never ready");
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        client::ask(self.address, "GET", path, &[], b"").await
    }

    /// Asks for a whole answer.
    pub(crate) async fn ask(&self, body: impl AsRef<[u8]>) -> Response {
        client::ask(self.address, "POST", "/ai/text", &[], body.as_ref()).await
    }

    /// Asks, and gives the answer's object.
    pub(crate) async fn answer(&self, body: Value) -> Value {
        let response = self.ask(body.to_string()).await;
        assert_eq!(response.status, 200, "{body}: {}", response.text());
        response.json()
    }

    /// Asks for a stream.
    pub(crate) async fn stream(&self, accept: &str, body: &Value) -> Stream {
        let mut connection = Connection::open(self.address).await;
        let body = body.to_string();
        connection
            .send("POST", "/ai/text", &[("Accept", accept)], body.as_bytes())
            .await;
        let head = connection.head().await;
        assert_eq!(head.status, 200, "{body}");
        let content_type = head.header("content-type").unwrap();
        assert!(content_type.starts_with(accept), "{content_type}");
        Stream {
            connection,
            read: String::new(),
        }
    }

    /// Streams that have begun to speak and have much to say.
    pub(crate) async fn long_streams(&self, count: usize, max_tokens: u32) -> Vec<Stream> {
        let mut streams = Vec::new();
        for n in 0..count {
            let text = format!("Tell me story number {n}.");
            streams.push(self.stream(NDJSON, &long(&text, max_tokens)).await);
        }
        for stream in &mut streams {
            stream.speaks().await;
        }
        streams
    }

    pub(crate) async fn status(&self) -> Value {
        self.get("/status").await.json()
    }

    /// The worker's process.
    pub(crate) async fn worker(&self) -> u32 {
        let pid = self.status().await["worker"]["pid"].as_u64().unwrap();
        u32::try_from(pid).unwrap()
    }

    /// The value of a metric's line, 0 if it is not there.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await.text();
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
        let value = values.find_map(|value| value.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    pub(crate) async fn metric_becomes(&self, name: &str, value: u64) {
        let reached = async {
            while self.metric(name).await != value {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let reached = timeout(PATIENCE, reached).await.is_ok();
        assert!(
            reached,
            "{name} is {}, not {value}",
            self.metric(name).await
        );
    }

    /// Waits for the end: this status, no worker left.
    pub(crate) async fn ends_with(&self, status: i32, worker: u32) {
        let finished = self.program.finished().await;
        assert_eq!(finished.status.code(), Some(status), "{}", finished.stderr);
        until("the worker is gone", || crate::program::is_gone(worker)).await;
    }
}

/// An answer on its way.
pub(crate) struct Stream {
    connection: Connection,
    read: String,
}

impl Stream {
    /// Waits for the first token of a stream of objects.
    pub(crate) async fn speaks(&mut self) {
        self.read += &self.connection.read_until(r#""type":"token""#).await;
    }

    /// Everything, and whether it ended as it should.
    pub(crate) async fn whole(mut self) -> (String, bool) {
        let (rest, complete) = self.connection.rest().await;
        (self.read + &rest, complete)
    }

    /// All objects of a stream that ends as it should.
    pub(crate) async fn objects(self) -> Vec<Value> {
        let (text, complete) = self.whole().await;
        assert!(complete, "the stream was cut: {text}");
        let objects = text.lines().filter(|line| line.contains('{'));
        objects
            .map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap_or(line)).unwrap())
            .collect()
    }

    /// The last object, the only one that ends a stream.
    pub(crate) async fn end(self) -> Value {
        let mut objects = self.objects().await;
        let last = objects.pop().unwrap();
        assert!(objects.iter().all(|object| object["type"] == "token"));
        last
    }
}

/// A request for an answer that ends at its limit only.
pub(crate) fn long(text: &str, max_tokens: u32) -> Value {
    json!({"text": text, "maxTokens": max_tokens, "temperature": 0, "ignoreEos": true})
}

/// A request for the likeliest answer, in which no earlier one has a part.
pub(crate) fn greedy(text: &str, max_tokens: u32) -> Value {
    json!({"text": text, "maxTokens": max_tokens, "temperature": 0, "cachePrompt": false})
}

/// The addresses that a program has printed, one on each whole line.
fn listening(program: &Program) -> Vec<SocketAddr> {
    let output = program.output();
    let lines = output.split_inclusive('\n');
    let whole = lines.filter_map(|line| line.strip_suffix('\n'));
    whole
        .map(|line| {
            let address = line.strip_prefix("listening on http://");
            address.expect(line).parse().unwrap()
        })
        .collect()
}
