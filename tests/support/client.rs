//! A client that speaks HTTP/1.1 on a bare socket, so that tests see the bytes that a server sends.

use super::within;
use serde_json::Value;
use std::fmt::Write;
use std::net::SocketAddr;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// A whole response.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The code of an error's envelope.
    pub(crate) fn code(&self) -> String {
        let envelope = self.json();
        assert!(envelope["error"].is_string(), "{envelope}");
        assert!(envelope.get("details").is_some(), "{envelope}");
        envelope["code"].as_str().unwrap().to_owned()
    }
}

/// One connection.
pub(crate) struct Connection {
    pub(crate) stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += "Host: localhost\r\n";
        }
        if !body.is_empty() {
            write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        for (name, value) in headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        head += "\r\n";
        let bytes = [head.as_bytes(), body].concat();
        within(self.stream.get_mut().write_all(&bytes))
            .await
            .unwrap();
    }

    /// Reads a response's head; its body is still to be read.
    pub(crate) async fn head(&mut self) -> Response {
        let line = self.line().await;
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Response {
            status,
            headers,
            body: Vec::new(),
        }
    }

    /// Reads a whole response.
    pub(crate) async fn response(&mut self) -> Response {
        let mut response = self.head().await;
        if let Some(length) = response.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            within(self.stream.read_exact(&mut body)).await.unwrap();
            response.body = body;
        } else if response.header("transfer-encoding").is_some() {
            while let Some(chunk) = self.chunk().await.expect("the body was cut") {
                response.body.extend(chunk);
            }
        }
        response
    }

    /// The next chunk of a body; `None` at its proper end, an error if the connection was cut before.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Vec<u8>>, ()> {
        let size = self.line().await;
        let size = usize::from_str_radix(&size, 16).map_err(|_| ())?;
        let mut chunk = vec![0; size + 2];
        within(self.stream.read_exact(&mut chunk))
            .await
            .map_err(|_| ())?;
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }

    /// The text of a body up to and with a mark.
    pub(crate) async fn read_until(&mut self, mark: &str) -> String {
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains(mark) {
            let chunk = self.chunk().await.expect("the body was cut");
            text.extend(chunk.expect("the body ended"));
        }
        String::from_utf8(text).unwrap()
    }

    /// The rest of a body, and whether it ended properly.
    pub(crate) async fn rest(&mut self) -> (String, bool) {
        let mut text = Vec::new();
        loop {
            match self.chunk().await {
                Ok(Some(chunk)) => text.extend(chunk),
                Ok(None) => return (String::from_utf8(text).unwrap(), true),
                Err(()) => return (String::from_utf8(text).unwrap(), false),
            }
        }
    }

    /// Whether the server closes the connection without another byte.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(within(self.stream.read(&mut byte)).await, Ok(0) | Err(_))
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        // A reset reads like an end: both cut the body.
        let _ = within(self.stream.read_line(&mut line)).await;
        line.trim_end().to_owned()
    }
}

/// One request on a connection of its own.
pub(crate) async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let mut connection = Connection::open(address).await;
    connection.send(method, path, headers, body).await;
    connection.response().await
}
