//! Brings a model's file from a hub or a URL to the disk, whole or not at all.
//!
//! Blocking code that runs on a thread of its own. It owns `TARGET.partial` and `TARGET.partial.json` beside the target, and nothing
//! else on the disk. A file gets its name only after its length, its digest and its structure were checked. It must never
//! send a token to anybody but the server that it is for, or show one, or show the query of a URL (signatures live there).
//!
//! In reading order: downloads beside a server ([`Downloads`]), one model by its name ([`Puller`]), what the hub knows ([`Hub`]), one
//! file (a [`Job`]) and the loop of tries ([`fetch()`]), one request with its redirects (`client`), what lies on the disk (`partial`);
//! small rules (`retry`, `location`, `address`).

mod address;
mod client;
mod error;
mod fetch;
mod hub;
mod install;
mod location;
mod partial;
mod progress;
mod pull;
mod queue;
mod retry;
mod turns;

use super::digest::Digest;
use super::gguf::Gguf;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::Uri;

pub use address::is_public;
pub use error::DownloadError;
pub use fetch::fetch;
pub use hub::{Described, Hub};
pub use location::{parse_url, shown};
pub use progress::{Phase, Progress};
pub use pull::{Existing, How, Pulled, Puller};
pub use queue::{DownloadStatus, Downloads, Refused, Start, Wish};

/// A log filter's directives that keep the HTTP library quiet: on its finest level it writes whole URLs, signatures and all.
pub const QUIET: &str = "ureq=off,ureq_proto=off,rustls=off";

/// Bytes that are read, hashed and written at once: what a killed download loses at most.
pub const PIECE_BYTES: usize = 256 << 10;

/// One file to fetch.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where it is; from [`parse_url`].
    pub url: Uri,
    /// Sent to the URL's own origin only.
    pub token: Option<Token>,
    /// Its length, if somebody promised one.
    pub bytes: Option<u64>,
    /// Its digest, if somebody promised one.
    pub sha256: Option<Digest>,
    /// Where it goes. Whoever calls [`fetch`] holds the lock for it.
    pub target: PathBuf,
    /// Which servers may be asked.
    pub reach: Reach,
}

/// Which servers a download may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Every server: the operator chose the URL.
    Any,
    /// Public addresses only, at every redirect, and past no proxy: a client chose the URL.
    PublicOnly,
}

/// A file that is whole and in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Digest,
    /// The entity tag of the server that gave the bytes.
    pub etag: Option<String>,
    /// Bytes that came over the network, repeated ones too.
    pub received: u64,
}

/// How patient a download is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For a name's look-up and for a connection with its handshake, each.
    pub connect_timeout: Duration,
    /// From a request to the head of its answer.
    pub response_timeout: Duration,
    /// Between two packets of an answer.
    pub read_timeout: Duration,
    /// Tries in a row that bring less than a piece before it gives up.
    pub attempts: u32,
    /// The first pause before another try; the next ones double.
    pub backoff_base: Duration,
    /// The longest of these pauses.
    pub backoff_cap: Duration,
    /// The longest pause that a server may ask for by `Retry-After`.
    pub retry_after_cap: Duration,
    /// What stays free on the disk.
    pub reserve_bytes: u64,
    /// Whether a file has the structure of a GGUF file; the reason if not.
    pub structure: fn(&Path) -> Result<(), String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(30),
            attempts: 8,
            backoff_base: Duration::from_millis(500),
            backoff_cap: Duration::from_secs(30),
            retry_after_cap: Duration::from_mins(5),
            reserve_bytes: 64 << 20,
            structure: |path| {
                Gguf::read(path)
                    .map(drop)
                    .map_err(|error| error.to_string())
            },
        }
    }
}

/// A secret that opens a hub's repositories.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token is at least one visible ASCII character; space around it is not part of it.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let visible = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        visible.then(|| Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_visible_ascii_and_not_shown() {
        let token = Token::parse(" hf_secret\n").expect("a token");
        assert_eq!(token, Token("hf_secret".into()));
        assert!(!format!("{token:?}").contains("secret"));
        for text in ["", " \n", "two words", "a\r\nHost: b", "größe"] {
            assert_eq!(Token::parse(text), None, "{text:?}");
        }
    }
}
