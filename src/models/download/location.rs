//! URLs: which can be fetched, what of them may be shown, whose they are, and where a redirect leads.

use super::DownloadError;
use ureq::http::Uri;
use ureq::http::uri::Authority;

/// Who answers: scheme, host and port. A token is for one origin only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    https: bool,
    host: String,
    port: u16,
}

impl Origin {
    pub(super) fn of(url: &Uri) -> Self {
        let https = url.scheme_str() == Some("https");
        Self {
            https,
            host: url.host().unwrap_or_default().to_ascii_lowercase(),
            port: url.port_u16().unwrap_or(if https { 443 } else { 80 }),
        }
    }
}

/// A URL that can be fetched.
pub fn parse_url(text: &str) -> Result<Uri, DownloadError> {
    let url: Uri = text.parse().map_err(|_| DownloadError::BadUrl {
        // Not a URL, so nobody knows where its secrets would be.
        url: text.split(['?', '@']).next().unwrap_or_default().to_owned(),
        why: "it is no URL",
    })?;
    match fault(&url) {
        Some(why) => Err(DownloadError::BadUrl {
            url: shown(&url),
            why,
        }),
        None => Ok(url),
    }
}

/// A URL as it may be shown and stored: without user, password and query, where signatures are.
pub fn shown(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| {
        let text = authority.as_str();
        text.rsplit_once('@').map_or(text, |(_, host)| host)
    });
    format!(
        "{}://{authority}{}",
        url.scheme_str().unwrap_or_default(),
        url.path()
    )
}

/// Where a redirect from `from` leads (RFC 9110, 10.2.2), if we go there.
pub(super) fn redirected(from: &Uri, location: Option<&[u8]>) -> Result<Uri, DownloadError> {
    let refuse = |why| DownloadError::BadRedirect {
        url: shown(from),
        why,
    };
    let location = location.ok_or_else(|| refuse("it doesn't say where"))?;
    let location = std::str::from_utf8(location).map_err(|_| refuse("that is no URL"))?;
    let to: Uri = joined(from, location.trim())
        .parse()
        .map_err(|_| refuse("that is no URL"))?;
    if let Some(why) = fault(&to) {
        return Err(refuse(why));
    }
    if Origin::of(from).https && !Origin::of(&to).https {
        return Err(refuse("it leads from https to http"));
    }
    Ok(to)
}

/// What is wrong with a URL that parses.
fn fault(url: &Uri) -> Option<&'static str> {
    if !matches!(url.scheme_str(), Some("http" | "https")) {
        return Some("only http and https are fetched");
    }
    if url.host().is_none_or(str::is_empty) {
        return Some("it names no host");
    }
    if url
        .authority()
        .is_some_and(|part| part.as_str().contains('@'))
    {
        return Some("it holds a user or a password, which would not stay secret there");
    }
    let has_more = |part: &Authority| part.as_str().len() > part.host().len();
    if url.port_u16().is_none() && url.authority().is_some_and(has_more) {
        return Some("its port is no number");
    }
    None
}

/// A reference resolved against a base (RFC 3986, 5.2), without its fragment.
fn joined(base: &Uri, reference: &str) -> String {
    let reference = reference.split('#').next().unwrap_or_default();
    let scheme = base.scheme_str().unwrap_or_default();
    let authority = base.authority().map_or("", |authority| authority.as_str());
    if has_scheme(reference) {
        return reference.to_owned();
    }
    if let Some(rest) = reference.strip_prefix("//") {
        return format!("{scheme}://{rest}");
    }
    if reference.is_empty() || reference.starts_with('?') {
        let query = base.query().filter(|_| reference.is_empty());
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        return format!("{scheme}://{authority}{}{query}{reference}", base.path());
    }
    let (path, query) = match reference.find('?') {
        Some(at) => reference.split_at(at),
        None => (reference, ""),
    };
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        let folder = base.path().rfind('/').map_or("/", |at| &base.path()[..=at]);
        format!("{folder}{path}")
    };
    format!("{scheme}://{authority}{}{query}", without_dots(&path))
}

fn has_scheme(reference: &str) -> bool {
    reference.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    })
}

/// `/a/./b/../c` is `/a/c`.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            part => kept.push(part),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(from: &str, location: &str) -> Result<String, String> {
        redirected(&from.parse().expect("a URL"), Some(location.as_bytes()))
            .map(|url| url.to_string())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn redirects_lead_where_the_standard_says() {
        let from = "https://hub.example:8443/a/b/c?sig=s3cr3t";
        for (location, expected) in [
            ("https://cdn.example/x?sig=2", "https://cdn.example/x?sig=2"),
            ("HTTPS://cdn.example/x", "https://cdn.example/x"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/x/y?z=1", "https://hub.example:8443/x/y?z=1"),
            ("x", "https://hub.example:8443/a/b/x"),
            ("x:y/z", "no URL"),
            ("./x:y", "https://hub.example:8443/a/b/x:y"),
            ("../x?y=/../z", "https://hub.example:8443/a/x?y=/../z"),
            ("../../../x/..", "https://hub.example:8443/"),
            ("?q=2", "https://hub.example:8443/a/b/c?q=2"),
            ("", "https://hub.example:8443/a/b/c?sig=s3cr3t"),
            ("/x#part", "https://hub.example:8443/x"),
            ("http://hub.example:8443/x", "from https to http"),
            ("HTTP://cdn.example/x", "from https to http"),
            ("file:///etc/passwd", "redirects to where we don't follow"),
            ("ftp://cdn.example/x", "only http and https"),
            ("https://user:pass@cdn.example/x", "user or a password"),
            ("https://", "no URL"),
            ("/x y", "no URL"),
        ] {
            match to(from, location) {
                Ok(url) => assert_eq!(url, expected, "{location}"),
                Err(error) => {
                    assert!(error.contains(expected), "{location}: {error}");
                    assert!(!error.contains("s3cr3t"), "{error}");
                }
            }
        }
    }

    #[test]
    fn http_may_become_https_and_nothing_is_no_place() {
        let expected = Ok("https://a.example/x".to_owned());
        assert_eq!(to("http://a.example/", "https://a.example/x"), expected);
        let from = "http://a.example/".parse().expect("a URL");
        assert!(redirected(&from, None).is_err());
        assert!(redirected(&from, Some(b"\xff")).is_err());
    }

    #[test]
    fn origins_have_ports_whether_written_or_not() {
        let origin = |text: &str| Origin::of(&text.parse().expect("a URL"));
        assert_eq!(
            origin("https://A.example/x"),
            origin("https://a.example:443/y?z")
        );
        assert_eq!(origin("http://a.example/"), origin("http://a.example:80/"));
        for other in [
            "http://a.example/",
            "https://a.example:444/",
            "https://b.example/",
        ] {
            assert_ne!(origin("https://a.example/"), origin(other), "{other}");
        }
    }

    #[test]
    fn what_is_shown_holds_no_secrets() {
        let url = "https://a.example/x/y?signature=s3cr3t"
            .parse()
            .expect("a URL");
        assert_eq!(shown(&url), "https://a.example/x/y");
        for text in [
            "https://user:s3cr3t@a.example/x",
            "http://a b/?s3cr3t",
            "ftp://a.example/?s3cr3t",
        ] {
            let error = parse_url(text).expect_err("a fault").to_string();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }
}
