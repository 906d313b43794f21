//! Web pages of other sites, DNS rebinding, and origins that are let in.

use crate::support::Server;
use crate::support::client::ask;
use pocket_llm::http::Origins;

const BODY: &[u8] = br#"{"text":"hi"}"#;

/// Headers, and whether they are let through.
const TABLE: &[(&[(&str, &str)], bool)] = &[
    // Programs.
    (&[], true),
    (&[("Host", "127.0.0.1:8005")], true),
    (&[("Host", "[::1]")], true),
    (&[("Host", "llm.localhost")], true),
    // Our own pages, if we had any.
    (
        &[
            ("Host", "localhost:8005"),
            ("Origin", "http://localhost:8005"),
        ],
        true,
    ),
    (
        &[
            ("Origin", "http://localhost"),
            ("Sec-Fetch-Site", "same-origin"),
        ],
        true,
    ),
    (&[("Sec-Fetch-Site", "none")], true),
    // A page of another site, or of another port here.
    (&[("Origin", "https://evil.example")], false),
    (
        &[
            ("Host", "localhost:8005"),
            ("Origin", "http://localhost:3000"),
        ],
        false,
    ),
    (&[("Origin", "null")], false),
    (&[("Origin", "")], false),
    (
        &[
            ("Origin", "http://localhost"),
            ("Sec-Fetch-Site", "cross-site"),
        ],
        false,
    ),
    // A form, a picture, a script: these have no origin in every browser.
    (&[("Sec-Fetch-Site", "cross-site")], false),
    (&[("Sec-Fetch-Site", "same-site")], false),
    (
        &[
            ("Sec-Fetch-Site", "cross-site"),
            ("Sec-Fetch-Mode", "navigate"),
            ("Sec-Fetch-Dest", "document"),
        ],
        false,
    ),
    // The page's own name, which has become 127.0.0.1.
    (&[("Host", "evil.example")], false),
    (
        &[
            ("Host", "evil.example"),
            ("Origin", "http://evil.example"),
            ("Sec-Fetch-Site", "same-origin"),
        ],
        false,
    ),
    (&[("Host", "localhost.evil.example:8005")], false),
    (&[("Host", "10.0.0.7:8005")], false),
];

#[tokio::test]
async fn strangers_pages_are_refused_before_their_body_is_read() {
    let server = Server::start().await;
    for (headers, passes) in TABLE {
        let response = ask(server.address, "POST", "/ai/text", headers, BODY).await;
        let expected = if *passes { 200 } else { 403 };
        assert_eq!(
            response.status,
            expected,
            "{headers:?}: {}",
            response.text()
        );
        assert!(response.header("access-control-allow-origin").is_none());
        if !passes {
            assert_eq!(response.code(), "FORBIDDEN");
            // Not even a body that is too large, or a path that does not exist, is looked at.
            let response = ask(server.address, "POST", "/nothing", headers, BODY).await;
            assert_eq!(response.status, 403);
            let probe = ask(server.address, "GET", "/livez", headers, b"").await;
            assert_eq!(probe.status, 200, "probes answer anybody");
        }
    }
    let broken = ask(server.address, "GET", "/", &[("Host", "a b")], b"").await;
    assert_eq!(broken.status, 400);
}

#[tokio::test]
async fn a_person_may_follow_a_link() {
    let server = Server::start().await;
    let link = [
        ("Sec-Fetch-Site", "cross-site"),
        ("Sec-Fetch-Mode", "navigate"),
        ("Sec-Fetch-Dest", "document"),
    ];
    assert_eq!(
        ask(server.address, "GET", "/", &link, b"").await.status,
        200
    );
    let frame = [link[0], link[1], ("Sec-Fetch-Dest", "iframe")];
    assert_eq!(
        ask(server.address, "GET", "/", &frame, b"").await.status,
        403
    );
}

#[tokio::test]
async fn named_origins_and_hosts_are_let_in() {
    let server = Server::with(|options| {
        options.settings.origins = Origins::new(&["http://localhost:3000".into()]).unwrap();
        options.settings.hosts = vec!["llm.example".into()];
    })
    .await;
    let page = [
        ("Origin", "http://localhost:3000"),
        ("Sec-Fetch-Site", "same-site"),
    ];
    let response = ask(server.address, "POST", "/ai/text", &page, BODY).await;
    assert_eq!(response.status, 200);
    assert_eq!(
        response.header("access-control-allow-origin"),
        Some("http://localhost:3000")
    );
    assert_eq!(response.header("vary"), Some("Origin"));
    let other = [("Origin", "http://localhost:3001")];
    assert_eq!(
        ask(server.address, "POST", "/ai/text", &other, BODY)
            .await
            .status,
        403
    );
    let asks = |origin| {
        [
            ("Origin", origin),
            ("Access-Control-Request-Method", "POST"),
            (
                "Access-Control-Request-Headers",
                "authorization,content-type",
            ),
        ]
    };
    let first = asks("http://localhost:3000");
    let permission = ask(
        server.address,
        "OPTIONS",
        "/v1/chat/completions",
        &first,
        b"",
    )
    .await;
    assert_eq!(permission.status, 204);
    assert_eq!(
        permission.header("access-control-allow-origin"),
        Some("http://localhost:3000")
    );
    assert_eq!(
        permission.header("access-control-allow-headers"),
        Some("authorization,content-type")
    );
    assert!(
        permission
            .header("access-control-allow-methods")
            .is_some_and(|methods| methods.contains("POST"))
    );
    let first = asks("http://evil.example");
    assert_eq!(
        ask(server.address, "OPTIONS", "/ai/text", &first, b"")
            .await
            .status,
        403
    );
    let proxy = [("Host", "llm.example")];
    assert_eq!(
        ask(server.address, "POST", "/ai/text", &proxy, BODY)
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn a_page_is_asked_for_the_key_after_its_permission() {
    let server = Server::with(|options| {
        let keys = [pocket_llm::http::ApiKey::new("secret".into())];
        options.settings.keys = pocket_llm::http::Keys::new(&keys, None).unwrap();
        options.settings.origins = Origins::new(&["*".into()]).unwrap();
    })
    .await;
    let page = [("Origin", "https://anywhere.example")];
    let response = ask(server.address, "POST", "/ai/text", &page, BODY).await;
    assert_eq!(response.status, 401);
    // Else the page could not read that a key is missing.
    assert!(response.header("access-control-allow-origin").is_some());
    let first = [page[0], ("Access-Control-Request-Method", "POST")];
    let permission = ask(server.address, "OPTIONS", "/ai/text", &first, b"").await;
    assert_eq!(
        permission.status, 204,
        "browsers send no key with this question"
    );
}
