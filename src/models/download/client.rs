//! One request and the redirects that it leads through.
//!
//! Redirects are followed here and not by the HTTP library: it compares hosts where a token needs scheme, host and port compared.

use super::address::PublicResolver;
use super::location::{Origin, redirected, shown};
use super::retry::retry_after;
use super::{DownloadError, Progress, Reach, Settings, Token};
use crate::models::digest::Digest;
use crate::models::store::Moment;
use std::time::Duration;
use ureq::http::{HeaderMap, Uri, header};
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body};

/// Hops from the first server to the last.
const MOST_REDIRECTS: u32 = 10;

const USER_AGENT: &str = concat!("pocket-llm/", env!("CARGO_PKG_VERSION"));

/// Why a try ended.
#[derive(Debug)]
pub(super) enum Fault {
    /// Another try may do better.
    Again {
        /// What happened.
        why: String,
        /// The pause that the server asked for.
        after: Option<Duration>,
    },
    /// The bytes are not those that were promised.
    Wrong { expected: String, found: String },
    /// Another try would end the same.
    Final(DownloadError),
}

impl Fault {
    pub(super) fn again(why: impl Into<String>) -> Self {
        Self::Again {
            why: why.into(),
            after: None,
        }
    }
}

impl From<DownloadError> for Fault {
    fn from(error: DownloadError) -> Self {
        Self::Final(error)
    }
}

/// An answer that is no redirect.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    /// Without its query.
    pub(super) url: String,
    /// Whether the first server answered itself, and did not send us elsewhere.
    pub(super) at_home: bool,
    /// What the first server's redirect said about the file.
    pub(super) linked: Option<Linked>,
}

/// Digest and length of a large file, as a hub states them while it redirects to where the file lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Linked {
    pub(super) bytes: u64,
    pub(super) sha256: Digest,
}

impl Answer {
    /// A header's value, if it is text.
    pub(super) fn header(&self, name: header::HeaderName) -> Option<&str> {
        text(&self.headers, name)
    }

    /// What an answer means that has not what was asked for.
    pub(super) fn refusal(&self, with_token: bool) -> Fault {
        let url = self.url.clone();
        match self.status {
            401 | 403 if self.at_home => Fault::Final(DownloadError::Denied { url, with_token }),
            404 | 410 => Fault::Final(DownloadError::NotFound { url }),
            // Elsewhere than at home, 401 and 403 say that a signature has run out. The next try gets a new one.
            401 | 403 | 408 | 425 | 429 | 500..=599 => Fault::Again {
                why: format!("{url} answers with status {}", self.status),
                after: self
                    .header(header::RETRY_AFTER)
                    .filter(|_| matches!(self.status, 429 | 503))
                    .and_then(|value| retry_after(value, Moment::now().0 / 1000)),
            },
            status => Fault::Final(DownloadError::Status { url, status }),
        }
    }
}

/// What to ask for beside the URL.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// The first byte.
    pub(super) from: u64,
    /// Only if this is still the file's strong entity tag.
    pub(super) if_etag: Option<String>,
}

/// Sends requests with the download's time limits.
pub(super) struct Client {
    agent: Agent,
}

impl Client {
    /// A client whose sockets `progress` can shut down.
    pub(super) fn new(
        settings: &Settings,
        reach: Reach,
        progress: &Progress,
    ) -> Result<Self, DownloadError> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(USER_AGENT)
            // Bytes are counted and hashed as they lie on the server.
            .accept_encoding("identity")
            .timeout_resolve(Some(settings.connect_timeout))
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_send_request(Some(settings.response_timeout))
            .timeout_recv_response(Some(settings.response_timeout))
            .timeout_per_read(Some(settings.read_timeout))
            // A kept connection may be dead by the next try.
            .max_idle_connections(0);
        let agent = match reach {
            Reach::Any => config.build().new_agent(),
            Reach::PublicOnly => Agent::with_parts(
                // A proxy would connect to what it likes.
                config.proxy(None).build(),
                DefaultConnector::default(),
                PublicResolver::default(),
            ),
        };
        progress.attach(agent.clone())?;
        Ok(Self { agent })
    }

    /// Asks for a file, wherever that leads.
    pub(super) fn get(
        &self,
        url: &Uri,
        token: Option<&Token>,
        wanted: &Wanted,
    ) -> Result<Answer, Fault> {
        let home = Origin::of(url);
        let mut url = url.clone();
        let mut linked = None;
        for hop in 0..=MOST_REDIRECTS {
            let at_home = Origin::of(&url) == home;
            let response = self.ask(&url, token.filter(|_| at_home), wanted)?;
            let (head, body) = response.into_parts();
            if hop == 0 {
                linked = Linked::in_headers(&head.headers);
            }
            if !matches!(head.status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer {
                    status: head.status.as_u16(),
                    headers: head.headers,
                    body,
                    url: shown(&url),
                    at_home,
                    linked,
                });
            }
            let location = head.headers.get(header::LOCATION);
            url = redirected(&url, location.map(ureq::http::HeaderValue::as_bytes))?;
        }
        Err(Fault::Final(DownloadError::BadRedirect {
            url: shown(&url),
            why: "these are more than 10 redirects in a row",
        }))
    }

    fn ask(
        &self,
        url: &Uri,
        token: Option<&Token>,
        wanted: &Wanted,
    ) -> Result<ureq::http::Response<Body>, Fault> {
        let mut request = self.agent.get(url);
        if let Some(Token(token)) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if wanted.from > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", wanted.from));
            if let Some(etag) = &wanted.if_etag {
                request = request.header(header::IF_RANGE, etag);
            }
        }
        request.call().map_err(|error| fault(error, url))
    }
}

impl Linked {
    /// The hub's `X-Linked-ETag` is the SHA-256 of a file in large-file storage.
    fn in_headers(headers: &HeaderMap) -> Option<Self> {
        let name = header::HeaderName::from_static;
        let etag = text(headers, name("x-linked-etag"))?;
        Some(Self {
            bytes: text(headers, name("x-linked-size"))?.parse().ok()?,
            sha256: etag.trim_matches('"').parse().ok()?,
        })
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// How the standard library says that the name service has no answer.
const NO_ADDRESS: &str = "failed to lookup address information";

fn unknown_host(url: &Uri) -> String {
    let host = url.host().unwrap_or_default();
    format!("the name of the host {host} is unknown: is there a network, and a name service?")
}

/// What an error of the library means here. Its texts are used only where they can't hold a URL or a header.
pub(super) fn fault(error: ureq::Error, url: &Uri) -> Fault {
    use ureq::Error;
    let bad = |why| DownloadError::BadUrl {
        url: shown(url),
        why,
    };
    match error {
        Error::Other(inner) => match inner.downcast::<DownloadError>() {
            Ok(ours) => Fault::Final(*ours),
            Err(_) => Fault::again("the connection failed"),
        },
        Error::BadUri(_) | Error::Http(_) => Fault::Final(bad("it is no URL that can be asked")),
        Error::InvalidProxyUrl => Fault::Final(bad("the proxy of the environment is no URL")),
        Error::HostNotFound => Fault::again(unknown_host(url)),
        Error::Timeout(what) => Fault::again(format!("it took too long ({what:?})")),
        // The standard library gives it no kind of its own.
        Error::Io(error) if error.to_string().starts_with(NO_ADDRESS) => {
            Fault::again(unknown_host(url))
        }
        Error::Io(error) => Fault::again(error.to_string()),
        Error::Protocol(_) | Error::LargeResponseHeader(..) | Error::BodyStalled => {
            Fault::again("the answer breaks the rules of HTTP")
        }
        Error::Rustls(error) => Fault::again(error.to_string()),
        _ => Fault::again("the connection failed"),
    }
}
