//! Models over HTTP: lists, states, what clients may change, and which model answers.

use crate::support::client::{Connection, ask};
use crate::support::scripted_worker::{LoadScript, accepted, finished};
use crate::support::{Server, until, within, write_model};
use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::{Value, json};
use std::path::PathBuf;
use tokio::net::TcpListener;

/// A server with `other.gguf` in its store beside the default model.
async fn with_other() -> (Server, PathBuf) {
    let server = Server::start().await;
    let path = server.folder.path().join("models/other.gguf");
    write_model(&path, "Other");
    (server, path)
}

fn named<'a>(models: &'a Value, name: &str) -> &'a Value {
    let list = models["models"].as_array().unwrap();
    list.iter().find(|model| model["name"] == name).unwrap()
}

#[tokio::test]
async fn the_list_tells_what_is_here_and_what_is_known() {
    let (server, _) = with_other().await;
    let models = server.get("/ai/models").await.json();
    assert_eq!(models["models"][0]["name"], "tiny");
    let tiny = named(&models, "tiny");
    assert_eq!(
        (&tiny["available"], &tiny["currentlyLoaded"]),
        (&json!(true), &json!(true))
    );
    let other = named(&models, "other");
    assert_eq!(
        (&other["available"], &other["currentlyLoaded"]),
        (&json!(true), &json!(false))
    );
    let gemma = named(&models, "gemma-3-1b");
    assert_eq!(
        (&gemma["available"], &gemma["needsLicense"]),
        (&json!(false), &json!(true))
    );
    assert!(
        gemma["aliases"]
            .as_array()
            .unwrap()
            .contains(&json!("gemma-3n-e2b-it"))
    );
    for model in models["models"].as_array().unwrap() {
        for field in [
            "name",
            "displayName",
            "description",
            "needsLicense",
            "available",
            "currentlyLoaded",
            "backend",
            "isMultiModal",
        ] {
            assert!(!model[field].is_null(), "{field} of {model}");
        }
    }
}

#[tokio::test]
async fn a_request_names_its_model() {
    let (server, _) = with_other().await;
    for (asked, answered) in [
        (json!(null), "tiny"),
        (json!("Other"), "other"),
        (json!("GEMMA_3_1B_IT"), "tiny"),
        (json!("other"), "other"),
    ] {
        let response = server
            .post(
                "/ai/text",
                json!({"text": "hi", "model": asked}).to_string(),
            )
            .await;
        assert_eq!(
            (response.status, &response.json()["model"]),
            (200, &json!(answered)),
            "{asked}"
        );
    }
    let status = server.get("/status").await.json();
    let states: Vec<_> = status["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| (&model["name"], &model["state"]))
        .collect();
    assert_eq!(
        states,
        [
            (&json!("tiny"), &json!("ready")),
            (&json!("other"), &json!("ready"))
        ]
    );
    assert_eq!(
        server.get("/ai/models/status").await.json()["loadedModels"],
        2
    );
    let known = server
        .post("/ai/text", r#"{"text":"hi","model":"qwen2.5-1.5b"}"#)
        .await;
    assert_eq!(
        (known.status, known.code().as_str()),
        (404, "MODEL_NOT_AVAILABLE")
    );
    assert!(
        known.text().contains("pocket-llm pull qwen2.5-1.5b"),
        "{}",
        known.text()
    );
    let unknown = server
        .post("/ai/text", r#"{"text":"hi","model":"../tiny"}"#)
        .await;
    assert_eq!(
        (unknown.status, unknown.code().as_str()),
        (404, "MODEL_NOT_AVAILABLE")
    );
    assert_eq!(
        unknown.json()["details"],
        "available: tiny, GEMMA_3_1B_IT, gemma-3n-e2b-it, other"
    );
}

#[tokio::test]
async fn a_damaged_file_is_told_in_a_sentence() {
    let (server, path) = with_other().await;
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let response = server
        .post("/ai/text", r#"{"text":"hi","model":"other"}"#)
        .await;
    assert_eq!(
        (response.status, response.code().as_str()),
        (400, "AI_SERVICE_ERROR")
    );
    assert!(response.text().contains("1 byte"), "{}", response.text());
}

#[tokio::test]
async fn states_of_models_are_told() {
    let (server, path) = with_other().await;
    let all = server.get("/ai/models/status").await.json();
    assert_eq!(
        (&all["loadedModels"], &all["downloadedModels"]),
        (&json!(1), &json!(2))
    );
    assert_eq!(all["availableModels"].as_array().unwrap().len(), 1);
    let one = server.get("/ai/models/other/status").await.json();
    assert_eq!(one["downloadPath"], path.to_str().unwrap());
    assert_eq!(
        (&one["isLoaded"], &one["downloadStatus"], &one["ageInDays"]),
        (&json!(false), &json!("complete"), &json!(0))
    );
    for (name, status, code) in [
        ("nobody", 404, "MODEL_NOT_FOUND"),
        ("gemma-3-1b", 404, "MODEL_NOT_DOWNLOADED"),
        ("GEMMA_3_1B_IT", 404, "MODEL_NOT_DOWNLOADED"),
        ("..%2F..%2Fetc%2Fpasswd", 400, "INVALID_MODEL"),
        ("%2Fetc%2Fpasswd", 400, "INVALID_MODEL"),
        ("a%00b", 400, "INVALID_MODEL"),
        (".hidden", 400, "INVALID_MODEL"),
        ("hf:owner%2Frepo%2F..%2Fx.gguf", 400, "INVALID_MODEL"),
        ("hf:owner%2Frepo%2Fx.gguf", 404, "MODEL_NOT_FOUND"),
    ] {
        let response = server.get(&format!("/ai/models/{name}/status")).await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (status, code),
            "{name}"
        );
    }
    let loading = server.get("/ai/models/loading-status").await.json();
    assert_eq!(loading["isLoading"], false);
    assert!(loading["message"].is_string());
    let diagnostics = server.get("/ai/models/diagnostics").await.json();
    assert_eq!(
        (&diagnostics["healthy"], &diagnostics["downloadedModels"]),
        (&json!(true), &json!(1))
    );
}

#[tokio::test]
async fn loading_is_shown_while_it_lasts() {
    let server = Server::with(|options| options.load = LoadScript::ByHand).await;
    until(|| server.worker.lives()).await;
    let loading = server.get("/ai/models/loading-status").await.json();
    assert_eq!(
        (&loading["isLoading"], &loading["modelName"]),
        (&json!(true), &json!("tiny"))
    );
    assert!(loading["elapsedTime"].is_u64() && loading["progressPercentage"].is_number());
    let mut events = Connection::open(server.address).await;
    events
        .send(
            "GET",
            "/ai/models/loading-status",
            &[("Accept", "text/event-stream")],
            b"",
        )
        .await;
    events.head().await;
    events.read_until("\"isLoading\":true").await;
    server.worker.load();
    events.read_until("\"isLoading\":false").await;
}

#[tokio::test]
async fn deleting_needs_the_flag_and_waits_for_nobody() {
    let (server, path) = with_other().await;
    let refused = ask(server.address, "DELETE", "/ai/models/other", &[], b"").await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (403, "FORBIDDEN")
    );
    assert!(
        refused.text().contains("--allow-delete"),
        "{}",
        refused.text()
    );
    assert!(path.exists());

    let server = Server::with(|options| options.settings.allow_delete = true).await;
    let path = server.folder.path().join("models/other.gguf");
    write_model(&path, "Other");
    let mut client = Connection::open(server.address).await;
    client
        .send(
            "POST",
            "/ai/text",
            &[],
            br#"{"text":"hold","model":"other"}"#,
        )
        .await;
    let (id, _) = server.worker.next_request().await;
    let gone = ask(server.address, "DELETE", "/ai/models/other", &[], b"").await;
    assert_eq!((gone.status, &gone.json()["success"]), (200, &json!(true)));
    assert!(!path.exists());
    // Who was there is served; nobody else.
    let late = server
        .post("/ai/text", r#"{"text":"hi","model":"other"}"#)
        .await;
    assert_eq!(late.status, 404);
    server.worker.emit(
        id,
        [accepted(), finished(pocket_llm::engine::FinishReason::Stop)],
    );
    assert_eq!(client.response().await.status, 200);
    within(async {
        while server.get("/status").await.json()["models"]
            .as_array()
            .unwrap()
            .len()
            > 1
        {}
    })
    .await;
    for (name, status, code) in [
        ("other", 404, "MODEL_NOT_FOUND"),
        ("gemma-3-1b", 404, "MODEL_NOT_DOWNLOADED"),
        ("..%2Ftiny", 400, "INVALID_MODEL"),
        ("a%ff", 400, "INVALID_MODEL"),
    ] {
        let response = ask(
            server.address,
            "DELETE",
            &format!("/ai/models/{name}"),
            &[],
            b"",
        )
        .await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (status, code),
            "{name}"
        );
    }
    assert!(server.folder.path().join("tiny.gguf").exists());
}

#[tokio::test]
async fn a_model_is_tried() {
    let (server, _) = with_other().await;
    let tried = server
        .post(
            "/ai/models/test",
            r#"{"modelName":"other","prompt":"hello"}"#,
        )
        .await;
    let body = tried.json();
    assert_eq!(
        (tried.status, &body["success"], &body["modelName"]),
        (200, &json!(true), &json!("other"))
    );
    assert_eq!(body["response"], " Hello, \"wörld\"\n");
    let missing = server
        .post("/ai/models/test", r#"{"modelName":"other"}"#)
        .await;
    assert_eq!(
        (missing.status, missing.code().as_str()),
        (400, "INVALID_REQUEST")
    );
    assert_eq!(missing.json()["required"], json!(["modelName", "prompt"]));
}

/// A hub with one file. Speaks as much of the hub's protocol as a download needs.
async fn hub(file: Vec<u8>) -> String {
    let length = file.len();
    let about = move |Path((owner, repo, _)): Path<(String, String, String)>| async move {
        let known = (owner.as_str(), repo.as_str()) == ("owner", "repo");
        let about = json!({"sha": "0123456789abcdef0123456789abcdef01234567", "siblings": [{"rfilename": "fetchable.gguf", "size": length}]});
        if known {
            Ok(about.to_string())
        } else {
            Err(StatusCode::NOT_FOUND)
        }
    };
    let router = Router::new()
        .route("/api/models/{owner}/{repo}/revision/{revision}", get(about))
        .route(
            "/owner/repo/resolve/{revision}/fetchable.gguf",
            get(move || async move { file }),
        );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum_serve(listener, router));
    format!("http://{address}")
}

/// axum's own `serve` is a feature that the product does not need.
async fn axum_serve(listener: TcpListener, router: Router) {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use hyper_util::service::TowerToHyperService;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = (
                TokioExecutor::new(),
                builder
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

/// The only download, once it has ended.
async fn ended(server: &Server) -> Value {
    within(async {
        loop {
            let now = server.get("/ai/models/loading-status").await.json()["downloads"][0].clone();
            if now["phase"] == "ended" {
                break now;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_model_is_fetched_and_then_answers() {
    let scratch = tempfile::NamedTempFile::new().unwrap();
    write_model(scratch.path(), "Fetchable");
    let hub = hub(std::fs::read(scratch.path()).unwrap()).await;
    let server = Server::with(|options| options.hub = Some(hub)).await;
    let absent = server
        .post("/ai/text", r#"{"text":"hi","model":"fetchable"}"#)
        .await;
    assert_eq!(absent.status, 404);
    let started = server
        .post("/ai/models/download", r#"{"modelName":"FETCHABLE_1B"}"#)
        .await;
    let body = started.json();
    assert_eq!(
        (started.status, &body["status"], &body["modelName"]),
        (200, &json!("download_started"), &json!("fetchable"))
    );
    let fetched = ended(&server).await;
    assert_eq!(
        (&fetched["error"], &fetched["progressPercentage"]),
        (&json!(null), &json!(100.0))
    );
    let again = server
        .post("/ai/models/download", r#"{"modelName":"fetchable"}"#)
        .await;
    assert_eq!(again.json()["status"], "already_available");
    let response = server
        .post("/ai/text", r#"{"text":"hi","model":"fetchable"}"#)
        .await
        .json();
    assert_eq!(
        (
            &response["model"],
            &response["metadata"]["topK"],
            &response["metadata"]["temperature"]
        ),
        (&json!("fetchable"), &json!(5), &json!(0.25))
    );
}

#[tokio::test]
async fn only_known_models_are_fetched_and_nothing_is_installed_unless_allowed() {
    let hub = hub(Vec::new()).await;
    let server = Server::with(|options| options.hub = Some(hub)).await;
    for (body, status, code) in [
        (
            json!({"modelName": "hf:owner/repo/fetchable.gguf"}),
            403,
            "FORBIDDEN",
        ),
        (json!({"modelName": "nobody-knows"}), 400, "INVALID_MODEL"),
        (json!({"modelName": "/etc/passwd"}), 400, "INVALID_MODEL"),
        (json!({"modelName": ""}), 400, "INVALID_REQUEST"),
        (json!({"name": "fetchable"}), 400, "INVALID_REQUEST"),
    ] {
        let response = server.post("/ai/models/download", body.to_string()).await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (status, code),
            "{body}"
        );
    }
    let wish =
        json!({"url": "https://example.org/x.gguf", "name": "x", "fileName": "x.gguf"}).to_string();
    let refused = server.post("/ai/text/upload-model-api", &wish).await;
    assert_eq!(
        (refused.status, refused.code().as_str()),
        (403, "FORBIDDEN")
    );
    assert!(
        refused.text().contains("--allow-install"),
        "{}",
        refused.text()
    );
}

#[tokio::test]
async fn what_is_installed_comes_from_public_addresses_under_a_name_of_its_own() {
    let hub = hub(Vec::new()).await;
    let server = Server::with(|options| {
        options.hub = Some(hub.clone());
        options.settings.allow_install = true;
    })
    .await;
    for (url, name, file, code) in [
        (
            "https://example.org/x.gguf",
            "../x",
            "x.gguf",
            "INVALID_MODEL",
        ),
        (
            "https://example.org/x.gguf",
            "gemma-3-1b",
            "x.gguf",
            "INVALID_MODEL",
        ),
        (
            "https://example.org/x.gguf",
            "x",
            "../../x.gguf",
            "INVALID_MODEL",
        ),
        ("ftp://example.org/x.gguf", "x", "x.gguf", "INVALID_REQUEST"),
        ("no url", "x", "x.gguf", "INVALID_REQUEST"),
        ("", "x", "x.gguf", "INVALID_REQUEST"),
    ] {
        let wish = json!({"url": url, "name": name, "fileName": file}).to_string();
        let response = server.post("/ai/text/upload-model-api", &wish).await;
        assert_eq!(
            (response.status, response.code().as_str()),
            (400, code),
            "{url} {name} {file}"
        );
    }
    // The hub itself listens on a loopback address: an operator may name that, a client may not, by no name for it.
    let url = format!("{hub}/owner/repo/resolve/main/fetchable.gguf");
    let wish = json!({"url": url, "name": "x", "fileName": "x.gguf"});
    let refused = server
        .post("/ai/text/upload-model-api", wish.to_string())
        .await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    let url = url.replace("127.0.0.1", "localhost");
    let wish = json!({"url": url, "name": "x", "fileName": "x.gguf"});
    let started = server
        .post("/ai/text/upload-model-api", wish.to_string())
        .await;
    assert_eq!(
        started.json()["status"],
        "download_started",
        "{}",
        started.text()
    );
    let ended = ended(&server).await;
    assert!(
        ended["error"]
            .as_str()
            .unwrap()
            .contains("no public address"),
        "{ended}"
    );
    let left = std::fs::read_dir(server.folder.path().join("models")).unwrap();
    let left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
    assert!(
        !left
            .iter()
            .any(|name| name == "x.gguf" || name == "x.gguf.partial"),
        "{left:?}"
    );
}

#[tokio::test]
async fn what_broken_downloads_left_is_cleaned_up() {
    let server = Server::start().await;
    let models = server.folder.path().join("models");
    let stale = models.join("stale.gguf.partial");
    std::fs::write(&stale, [0; 1000]).unwrap();
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_hours(48);
    std::fs::File::options()
        .write(true)
        .open(&stale)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    std::fs::write(models.join("fresh.gguf.partial"), [0; 10]).unwrap();
    write_model(&models.join("other.gguf"), "Other");
    let cleaned = server.post("/ai/models/cleanup", "").await.json();
    assert_eq!(
        (
            &cleaned["success"],
            &cleaned["cleanedModels"],
            &cleaned["freedBytes"]
        ),
        (&json!(true), &json!(1), &json!(1000))
    );
    assert!(
        !stale.exists()
            && models.join("fresh.gguf.partial").exists()
            && models.join("other.gguf").exists()
    );
}
