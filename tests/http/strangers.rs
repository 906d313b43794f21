//! Names, paths and headers by which a client might reach what is not meant for it.

use crate::support::client::{Connection, ask};
use crate::support::{Server, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Ways out of a folder, and what else file systems, shells and C take for something special.
const TRICKS: [&str; 12] = [
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%252e%252e%252fetc%252fpasswd",
    "/etc/passwd",
    "tiny.gguf%00",
    "tiny%0d%0aX-Injected:%201",
    "..%5c..%5cwindows",
    "$(reboot)",
    "file:///etc/passwd",
    "http://169.254.169.254/latest",
    "~root",
];

fn escaped(trick: &str) -> String {
    trick.replace('$', "%24").replace(' ', "%20")
}

#[tokio::test]
async fn no_name_of_a_model_leads_out_of_the_store() {
    let server = Server::with(|options| options.settings.allow_delete = true).await;
    let outside = server.folder.path().join("outside.gguf");
    std::fs::write(&outside, "not a model of the store").unwrap();
    let outside = outside.to_str().unwrap().to_owned();
    let all = TRICKS.map(escaped).into_iter().chain([
        outside.replace('/', "%2f"),
        "..%2foutside".into(),
        "..%2foutside.gguf".into(),
    ]);
    for name in all {
        for (method, path) in [
            ("GET", format!("/v1/models/{name}")),
            ("GET", format!("/ai/models/{name}/status")),
            ("DELETE", format!("/ai/models/{name}")),
        ] {
            let answer = ask(server.address, method, &path, &[], b"").await;
            assert!(
                [400, 404, 405].contains(&answer.status),
                "{method} {path}: {}",
                answer.status
            );
            assert!(!answer.text().contains("root:"), "{method} {path}");
            assert_eq!(answer.header("x-injected"), None, "{method} {path}");
        }
        let decoded = name
            .replace("%2f", "/")
            .replace("%2e", ".")
            .replace("%00", "\\u0000");
        let decoded = decoded.replace("%0d%0a", "\\r\\n").replace("%5c", "\\\\");
        for (path, body) in [
            ("/ai/text", format!(r#"{{"text":"a","model":"{decoded}"}}"#)),
            (
                "/ai/models/download",
                format!(r#"{{"modelName":"{decoded}"}}"#),
            ),
        ] {
            let answer = server.post(path, body).await;
            assert!(
                [400, 403, 404, 501].contains(&answer.status),
                "{path} {name}: {}",
                answer.text()
            );
        }
    }
    assert!(
        std::path::Path::new(&outside).exists(),
        "deleted from outside the store"
    );
}

/// What is sent back of a request's head is harmless or another one.
#[tokio::test]
async fn nothing_of_a_request_becomes_a_header() {
    let server = Server::start().await;
    for id in ["", "a b", "é", &"x".repeat(129), "a\tb"] {
        let answer = ask(
            server.address,
            "GET",
            "/status",
            &[("X-Request-Id", id)],
            b"",
        )
        .await;
        let given = answer.header("x-request-id").unwrap();
        assert!(given.starts_with("req_"), "{id:?} became {given:?}");
    }
    let taken = ask(
        server.address,
        "GET",
        "/status",
        &[("X-Request-Id", "my-id.7")],
        b"",
    )
    .await;
    assert_eq!(taken.header("x-request-id"), Some("my-id.7"));
    let page = [("Origin", "http://evil.example")];
    let refused = ask(server.address, "GET", "/status", &page, b"").await;
    assert_eq!(refused.header("access-control-allow-origin"), None);
}

/// One of two servers in a row must not see another request than the other one.
#[tokio::test]
async fn ambiguous_heads_are_refused() {
    let server = Server::start().await;
    for head in [
        "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\nabcde",
        "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nContent-Length : 5\r\n\r\nabcde",
        "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\nabcde",
        "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
        "POST /ai/text HTTP/1.1\r\nHost: localhost\r\nX: a\rb\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
    ] {
        let mut client = Connection::open(server.address).await;
        within(client.stream.get_mut().write_all(head.as_bytes()))
            .await
            .unwrap();
        let _ = client.stream.get_mut().shutdown().await;
        let mut answer = Vec::new();
        let _ = within(client.stream.read_to_end(&mut answer)).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
            "{head:?}: {answer}"
        );
    }
    assert_eq!(server.get("/livez").await.status, 200);
}
