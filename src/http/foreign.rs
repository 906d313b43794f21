//! Keeps web pages of other sites out: they can neither read nor trigger anything, unless their origin is named.
//!
//! A browser sends a page's requests to any address that it can reach, loopback and the home's network included, and JSON is
//! accepted here under any content type. So whatever says that it comes from another site is refused before anything is read
//! of it. And a page may give its own name the address 127.0.0.1 later (DNS rebinding): on loopback only loopback's names count.
//! Programs that are no browsers send none of these headers and notice nothing.

use super::app::App;
use super::auth::is_probe;
use super::error::{ApiError, Code};
use super::listen::Peer;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::IpAddr;

/// The methods that pages of named origins may use.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, DELETE, OPTIONS");
/// What they may read besides the body.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "X-Request-Id, X-Served-By, Retry-After, X-Queue-Position, X-Estimated-Wait-Ms",
);
/// Seconds for which a browser may remember what is allowed.
const MAX_AGE: HeaderValue = HeaderValue::from_static("600");

/// The web pages that may use this server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origins {
    any: bool,
    named: Vec<String>,
}

impl Origins {
    /// Takes origins as browsers write them (`https://chat.example.org`, `http://localhost:3000`), or `*` for all.
    pub fn new(origins: &[String]) -> Result<Self, String> {
        let mut named = Vec::new();
        for origin in origins.iter().map(|origin| origin.trim()) {
            let known = Origin::parse(origin);
            if known.is_none() && origin != "*" {
                return Err(format!(
                    "{origin:?} is no origin: give scheme, name and port as a browser's address bar has them, such as \
                     http://localhost:3000, or * for every page"
                ));
            }
            named.push(origin.trim_end_matches('/').to_ascii_lowercase());
        }
        Ok(Self {
            any: named.iter().any(|origin| origin == "*"),
            named,
        })
    }

    fn allow(&self, origin: &str) -> bool {
        self.any
            || self
                .named
                .iter()
                .any(|named| named.eq_ignore_ascii_case(origin))
    }
}

/// Refuses strangers' pages, and answers what browsers ask before a request of a page that is none.
pub(super) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    if is_probe(request.uri().path()) {
        return next.run(request).await;
    }
    let origin = match judge(&app, &request) {
        Ok(origin) => origin,
        Err(error) => return error.into_response(),
    };
    let asks_first = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key("access-control-request-method");
    let mut response = match &origin {
        Some(_) if asks_first => permission(request.headers()),
        _ => next.run(request).await,
    };
    let headers = response.headers_mut();
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    response
}

/// The origin that is let in by name, if there is one, or why the request is refused.
fn judge(app: &App, request: &Request) -> Result<Option<HeaderValue>, ApiError> {
    let headers = request.headers();
    let host = host(request)?;
    let local = request.extensions().get::<Peer>().map(|peer| peer.local);
    if let (Some(host), Some(true)) = (&host, local.map(|local| local.is_loopback()))
        && !is_loopback_name(host.host())
        && !app
            .settings()
            .hosts
            .iter()
            .any(|allowed| allowed.eq_ignore_ascii_case(host.host()))
    {
        return Err(refused(format!("this server is not {}", host.host())).details(
            "it is reached over loopback here, under the names localhost, 127.0.0.1 and [::1]; allow others with --allowed-host",
        ));
    }
    let named = headers.get(header::ORIGIN);
    let Some(named) = named else {
        return if is_cross_site(headers) && !is_visit(request.method(), headers) {
            Err(foreign("a page of another site"))
        } else {
            Ok(None)
        };
    };
    let text = named.to_str().unwrap_or_default();
    if app.settings().origins.allow(text) {
        return Ok(Some(named.clone()));
    }
    let own = Origin::parse(text).is_some_and(|origin| origin.is(host.as_ref()));
    if own && !is_cross_site(headers) {
        Ok(None)
    } else {
        Err(foreign(text))
    }
}

fn foreign(who: &str) -> ApiError {
    refused(format!("{} may not use this server", who.escape_debug())).details(
        "web pages of other origins are refused; whoever runs the server can let one in with --cors-origin",
    )
}

fn refused(error: String) -> ApiError {
    ApiError::new(Code::Forbidden, error)
}

/// Whether the browser says that another site, or another part of the same one, is behind the request.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    site.is_some_and(|site| !matches!(site, b"same-origin" | b"none"))
}

/// Whether a person follows a link to us, in a tab of its own. Nothing is changed by that, and no page can look into the tab.
fn is_visit(method: &Method, headers: &HeaderMap) -> bool {
    let says = |name: &str, value: &str| headers.get(name).is_some_and(|said| said == value);
    matches!(*method, Method::GET | Method::HEAD)
        && says("sec-fetch-mode", "navigate")
        && says("sec-fetch-dest", "document")
}

/// What the client calls us: from the request's target if it is a whole address, else the header `Host`.
fn host(request: &Request) -> Result<Option<Authority>, ApiError> {
    let wrong = || ApiError::bad_request("the header `Host` is no name and port");
    if let Some(authority) = request.uri().authority() {
        return Ok(Some(authority.clone()));
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        // Old clients name none; browsers always do.
        (None, _) => Ok(None),
        (Some(host), None) => {
            let host = Authority::try_from(host.as_bytes()).map_err(|_| wrong())?;
            if host.as_str().contains('@') {
                return Err(wrong());
            }
            Ok(Some(host))
        }
        (Some(_), Some(_)) => Err(wrong()),
    }
}

/// Whether the name means this machine, whoever resolves it (RFC 6761 for names under `localhost`).
fn is_loopback_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name.ends_with(".localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// An origin's parts.
struct Origin {
    authority: Authority,
    default_port: u16,
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let default_port = match scheme.to_ascii_lowercase().as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let authority: Authority = authority.parse().ok()?;
        (!authority.as_str().contains('@')).then_some(Self {
            authority,
            default_port,
        })
    }

    /// Whether a page of this origin came from us, as the client calls us.
    fn is(&self, host: Option<&Authority>) -> bool {
        let Some(host) = host else { return false };
        let port = |authority: &Authority| authority.port_u16().unwrap_or(self.default_port);
        host.host().eq_ignore_ascii_case(self.authority.host())
            && port(host) == port(&self.authority)
    }
}

/// Yes, the page may ask what it wants to ask.
fn permission(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    if asked.contains_key("access-control-request-private-network") {
        let name = header::HeaderName::from_static("access-control-allow-private-network");
        headers.insert(name, HeaderValue::from_static("true"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_loopback() {
        for name in [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "127.0.0.1",
            "127.8.9.1",
            "[::1]",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_loopback_name(name), "{name}");
        }
        for name in [
            "localhost.evil.org",
            "evil.org",
            "10.0.0.1",
            "127.0.0.1.evil.org",
            "notlocalhost",
            "[::2]",
            "",
        ] {
            assert!(!is_loopback_name(name), "{name}");
        }
    }

    #[test]
    fn an_origin_is_ours_under_the_name_that_the_client_used() {
        let is = |origin: &str, host: &str| {
            Origin::parse(origin).is_some_and(|origin| origin.is(host.parse().ok().as_ref()))
        };
        assert!(is("http://phone:8005", "phone:8005"));
        assert!(is("http://PHONE", "phone:80"));
        assert!(is("https://phone", "phone"));
        assert!(!is("http://phone:8006", "phone:8005"));
        assert!(!is("http://evil", "phone"));
        assert!(!is("null", "phone"));
        assert!(!is("http://phone@evil", "phone"));
        assert!(!is("file://", "phone"));
    }

    #[test]
    fn origins_are_checked_when_they_are_given() {
        let origins = |given: &[&str]| {
            Origins::new(&given.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let some = origins(&["https://Chat.example.org/", "http://localhost:3000"]);
        let some = some.expect("both are origins");
        assert!(some.allow("https://chat.example.org"));
        assert!(!some.allow("https://chat.example.org:8443"));
        assert!(!some.allow("null"));
        assert!(origins(&["*"]).is_ok_and(|any| any.allow("null")));
        for wrong in ["chat.example.org", "", "https://", "https://a/b", "ftp://a"] {
            assert!(origins(&[wrong]).is_err(), "{wrong}");
        }
    }
}
