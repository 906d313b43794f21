//! The time to the first token through the door: a server of this very model in this process, and a client that speaks plain
//! HTTP over loopback.

use super::median;
use super::subject::{SHORT_PROMPT, Subject};
use crate::http::{self, App, HttpSettings, Lifecycle, Parts};
use crate::metrics::Metrics;
use crate::models::{Catalogue, Collection, Library};
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// What stands before the text of a streamed piece.
const TEXT: &[u8] = b"\"text\":\"";
/// An answer's head and first piece are shorter.
const MOST_BYTES: usize = 64 << 10;

/// Milliseconds to the first token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FirstToken {
    /// Requests that were made, one after the other.
    pub requests: u32,
    /// Tokens of their prompts.
    pub prompt_tokens: u32,
    /// From the connection to the first text, in the middle.
    pub http_ms: f64,
    /// From the request's arrival to the first token, as the engine counts.
    pub engine_ms: f64,
}

/// Measures it with so many requests.
pub async fn first_token(subject: &Subject, requests: u32) -> Result<FirstToken> {
    let app = App::new(Parts {
        pool: subject.pool().clone(),
        library: Library::new(
            Collection {
                catalogue: Arc::new(Catalogue::builtin().clone()),
                store: None,
            },
            Some(subject.lease().facts().model.clone()),
            Vec::new(),
        ),
        downloads: None,
        metrics: Arc::new(Metrics::new()),
        settings: HttpSettings::default(),
        lifecycle: Lifecycle::default(),
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let settings = app.settings().clone();
    let served = http::listen::serve(vec![listener], http::router(app), settings, async {
        // A dropped sender means the same.
        let _ = stopped.await;
    });
    let served = tokio::spawn(served);
    let measured = ask_all(subject, address, requests).await;
    drop(stop);
    served.await?;
    measured
}

async fn ask_all(subject: &Subject, address: SocketAddr, requests: u32) -> Result<FirstToken> {
    let (mut over_http, mut inside) = (Vec::new(), Vec::new());
    for _ in 0..requests.max(1) {
        over_http.push(ask(subject, address).await?);
        inside.push(subject.streams(1, 1).await?.first_token_ms);
    }
    Ok(FirstToken {
        requests: requests.max(1),
        prompt_tokens: SHORT_PROMPT,
        http_ms: median(&over_http),
        engine_ms: median(&inside),
    })
}

/// Milliseconds until the first piece of one answer is there.
async fn ask(subject: &Subject, address: SocketAddr) -> Result<f64> {
    let prompt: Vec<u32> = subject
        .prompt(SHORT_PROMPT)
        .iter()
        .map(|token| token.0)
        .collect();
    // A token may be half a character: the first whole one counts.
    let body =
        json!({"prompt": prompt, "max_tokens": 16, "stream": true, "temperature": 0}).to_string();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let first = loop {
        let read = stream.read_buf(&mut answer).await?;
        if has_text(&answer) {
            break began.elapsed();
        }
        if read == 0 || answer.len() > MOST_BYTES {
            let head = String::from_utf8_lossy(&answer);
            bail!(
                "the server gave no text: {}",
                head.lines().next().unwrap_or("nothing")
            );
        }
    };
    // To the end, so that the next request finds an idle engine.
    let mut rest = Vec::new();
    stream
        .take(1 << 20)
        .read_to_end(&mut rest)
        .await
        .context("the answer broke off")?;
    Ok(first.as_secs_f64() * 1000.0)
}

/// Whether a piece with some text is there.
fn has_text(answer: &[u8]) -> bool {
    let mut places = answer.windows(TEXT.len() + 1);
    places.any(|place| place.starts_with(TEXT) && !place.ends_with(b"\""))
}

#[cfg(test)]
mod tests {
    use super::has_text;

    #[test]
    fn an_empty_piece_is_no_first_token() {
        assert!(has_text(br#"data: {"choices":[{"text":"a"#));
        assert!(!has_text(br#"data: {"choices":[{"text":"","index":0}]}"#));
        assert!(!has_text(br#"data: {"choices":[{"text":""#));
        assert!(has_text(br#"{"text":"","x":1} {"text":" b"}"#));
        assert!(!has_text(b"HTTP/1.1 200 OK"));
    }
}
