//! Paths and methods, and the documentation that the server gives of itself.

use crate::support::Server;
use crate::support::client::ask;
use serde_json::Value;

#[tokio::test]
async fn help_and_router_agree() {
    let server = Server::start().await;
    let help = server.get("/help").await.json();
    let listed = |name: &str| -> Vec<(String, String)> {
        let object = help[name].as_object().unwrap();
        let split = |key: &String| {
            let (method, path) = key.split_once(' ').unwrap();
            (method.to_owned(), path.replace("{name}", "some-model"))
        };
        object.keys().map(split).collect()
    };
    let existing = listed("endpoints");
    assert!(existing.len() >= 10, "{existing:?}");
    for (method, path) in &existing {
        let response = ask(server.address, method, path, &[], br#"{"text":"hi"}"#).await;
        if speaks_openai(path) {
            let code = response.json()["error"]["code"].clone();
            assert_ne!(code, "not_found", "{method} {path}");
            continue;
        }
        // What needs other fields, a flag or a model that is there says so; nothing is unknown.
        let refused = ["INVALID_REQUEST", "FORBIDDEN", "MODEL_NOT_FOUND"];
        assert!(
            response.status == 200 || refused.contains(&response.code().as_str()),
            "{method} {path}: {}",
            response.text()
        );
    }
    let absent = listed("not_implemented");
    for (method, path) in &absent {
        let response = ask(server.address, method, path, &[], b"").await;
        assert_eq!(response.status, 501, "{method} {path}");
        assert_eq!(response.code(), "NOT_IMPLEMENTED");
    }
    for (method, path) in existing.iter().chain(&absent) {
        let known = existing.iter().chain(&absent);
        let allowed: Vec<&String> = known
            .filter(|(_, other)| other == path)
            .map(|(method, _)| method)
            .collect();
        let response = ask(server.address, "PUT", path, &[], b"").await;
        assert_eq!(response.status, 405);
        if speaks_openai(path) {
            assert_eq!(response.json()["error"]["code"], "method_not_allowed");
        } else {
            assert_eq!(response.code(), "METHOD_NOT_ALLOWED");
        }
        let allow = response.header("allow").unwrap().to_owned();
        assert!(
            allowed.iter().all(|method| allow.contains(*method)),
            "{path}: {allow}"
        );
        let options = ask(server.address, "OPTIONS", path, &[], b"").await;
        assert_eq!((options.status, options.body.len()), (204, 0));
        assert!(options.header("allow").is_some(), "{method} {path}");
    }
}

#[tokio::test]
async fn index_and_help_agree() {
    let server = Server::start().await;
    let help = server.get("/help").await.json();
    let index = server.get("/").await.json();
    let mut shown: Vec<&str> = index["available_endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    shown.sort_unstable();
    let mut names: Vec<&String> = help["endpoints"].as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(shown, names);
}

/// Whether a path's errors have OpenAI's shape.
fn speaks_openai(path: &str) -> bool {
    path.starts_with("/v1/") || ["/tokenize", "/detokenize", "/apply-template"].contains(&path)
}

#[tokio::test]
async fn unknown_paths_say_where_to_look() {
    let server = Server::start().await;
    for (method, path) in [
        ("GET", "/nothing"),
        ("POST", "/ai/text/"),
        ("DELETE", "/v0/x"),
    ] {
        let response = ask(server.address, method, path, &[], b"").await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (404, "NOT_FOUND")
        );
        assert_eq!(response.json()["details"], "GET / lists what exists");
    }
    let head = server_head(&server, "/status").await;
    assert_eq!(head, 200);
}

/// HEAD is answered like GET, without the body.
async fn server_head(server: &Server, path: &str) -> u16 {
    let mut client = crate::support::client::Connection::open(server.address).await;
    client
        .send("HEAD", path, &[("Connection", "close")], b"")
        .await;
    let head = client.head().await;
    assert!(client.is_closed().await);
    head.status
}

#[tokio::test]
async fn the_server_describes_itself() {
    let server = Server::start().await;
    insta::assert_json_snapshot!("index", server.get("/").await.json(), {".version" => "[version]"});
    insta::assert_json_snapshot!("help", server.get("/help").await.json(), {".version" => "[version]"});
    insta::assert_json_snapshot!("capabilities", server.get("/capabilities").await.json(), {
        ".version" => "[version]", ".port" => "[port]", ".timestamp" => "[ms]",
    });
    insta::assert_json_snapshot!("models", server.get("/ai/models").await.json());
    let capabilities = server.get("/capabilities").await.json();
    assert_eq!(capabilities["port"], Value::from(server.address.port()));
}
