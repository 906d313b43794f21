//! `list` and `rm` of the real binary.

use crate::program::{Finished, Program};
use crate::{Fixture, fetched};
use pocket_llm::models::store::{Manifest, Moment};
use serde_json::Value;
use std::path::Path;

async fn run(models: &Path, arguments: &[&str]) -> Finished {
    let program = Program::start(arguments, |command| {
        command.env("POCKET_LLM_MODELS", models);
    });
    program.finished().await
}

async fn json(fixture: &Fixture) -> Value {
    let finished = run(fixture.folder.path(), &["list", "--json"]).await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).unwrap()
}

fn fill(fixture: &Fixture) {
    let path = fixture.file("gemma-3-1b.gguf", &[0; 5]);
    let now = Moment::now().0;
    let manifest = Manifest {
        revision: Some("abc".into()),
        fetched_at: Some(Moment(now - 3 * 24 * 3_600_000)),
        last_used: Some(Moment(now - 2 * 3_600_000)),
        ..fetched("hf:unsloth/gemma-3-1b-it-GGUF/gemma-3-1b-it-Q4_K_M.gguf", 5)
    };
    fixture.store.record(&path, &manifest).unwrap();
    fixture.file("Mine-Q8_0.gguf", &[0; 2000]);
    let damaged = fixture.file("damaged.gguf", &[0; 7]);
    fixture
        .store
        .record(&damaged, &fetched("hf:o/r/a.gguf", 9))
        .unwrap();
    fixture.file("qwen2.5-1.5b.gguf.partial", &[0; 40]);
    fixture.file("qwen2.5-1.5b.gguf.partial.json", br#"{"bytes":120}"#);
}

#[tokio::test]
async fn list_shows_what_is_there_what_comes_and_what_is_known() {
    let fixture = Fixture::new();
    fill(&fixture);
    let finished = run(fixture.folder.path(), &["list"]).await;
    assert_eq!(
        (finished.status.code(), finished.stderr.as_str()),
        (Some(0), "")
    );
    let line = |begin: &str| {
        let line = finished.stdout.lines().find(|line| line.starts_with(begin));
        line.expect(&finished.stdout)
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .collect::<Vec<_>>()
    };
    let from = "hf:unsloth/gemma-3-1b-it-GGUF/gemma-3-1b-it-Q4_K_M.gguf";
    assert_eq!(
        line("gemma-3-1b "),
        [
            "gemma-3-1b",
            "5 B",
            "Q4_K_M",
            from,
            "3 days ago",
            "2 hours ago"
        ]
    );
    assert_eq!(line("Mine"), ["Mine-Q8_0", "2 KiB", "Q8_0", "-", "-", "-"]);
    assert!(line("damaged is")[0].contains("7 bytes where its manifest states 9"));
    assert_eq!(
        line("qwen2.5-1.5b "),
        ["qwen2.5-1.5b", "33 %", "40 B of 120 B", "stopped"]
    );
    assert_eq!(
        line("smollm2-135m"),
        ["smollm2-135m", "101 MiB", "Q4_K_M", "Apache-2.0"]
    );
    // What is on disk is not offered.
    let offered = finished.stdout.split("Known").nth(1).unwrap();
    assert!(!offered.contains("\ngemma-3-1b "), "{offered}");
}

/// Who only looks leaves nothing behind.
#[tokio::test]
async fn reading_commands_create_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let models = folder.path().join("no/models");
    for (arguments, code, words) in [
        (&["list"][..], 0, "No models in "),
        (&["list", "--json"], 0, "\"models\": []"),
        (&["rm", "gemma-3-1b"], 1, "gemma-3-1b is not on disk"),
        (&["show", "gemma-3-1b"], 1, "gemma-3-1b is not on disk"),
        (&["verify", "gemma-3-1b"], 1, "gemma-3-1b"),
    ] {
        let finished = run(&models, arguments).await;
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert_eq!(finished.status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!folder.path().join("no").exists(), "{arguments:?}");
    }
}

/// `POCKET_LLM_MODELS=` is how a unit file or a manifest unsets it.
#[tokio::test]
async fn an_empty_variable_is_none() {
    let data = tempfile::tempdir().unwrap();
    let program = Program::start(&["list"], |command| {
        command
            .env("POCKET_LLM_MODELS", "")
            .env("POCKET_LLM_CATALOGUE", "")
            .env("XDG_DATA_HOME", data.path());
    });
    let finished = program.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    let expected = data.path().join("pocket-llm/models");
    assert!(
        finished.stdout.contains(expected.to_str().unwrap()),
        "{}",
        finished.stdout
    );
}

#[tokio::test]
async fn list_is_one_object_for_programs() {
    let fixture = Fixture::new();
    fill(&fixture);
    let list = json(&fixture).await;
    assert_eq!(list["directory"], fixture.folder.path().to_str().unwrap());
    let names: Vec<&str> = list["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["Mine-Q8_0", "damaged", "gemma-3-1b"]);
    let gemma = &list["models"][2];
    assert_eq!(
        (&gemma["catalogue"], &gemma["state"], &gemma["revision"]),
        (&"gemma-3-1b".into(), &"complete".into(), &"abc".into())
    );
    assert_eq!(list["models"][1]["state"], "size_differs");
    assert_eq!(list["models"][0]["source"], Value::Null);
    let partial = &list["partials"][0];
    assert_eq!(
        (
            &partial["percent"],
            &partial["expected_bytes"],
            &partial["running"]
        ),
        (&33.into(), &120.into(), &false.into())
    );
    let known = list["known"].as_array().unwrap();
    let on_disk: Vec<&str> = known
        .iter()
        .filter(|it| it["on_disk"] == true)
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!((known.len(), on_disk), (11, vec!["gemma-3-1b"]));
}

#[tokio::test]
async fn list_tells_of_damage_and_still_lists() {
    let fixture = Fixture::new();
    fixture.file("a.gguf", b"1");
    fixture.file("a.gguf.json", b"damaged");
    fixture.file("-x.gguf", b"1");
    let finished = run(fixture.folder.path(), &["list"]).await;
    assert_eq!(finished.status.code(), Some(0));
    assert!(finished.stdout.contains("\na "), "{}", finished.stdout);
    let told: Vec<&str> = finished.stderr.lines().collect();
    assert_eq!(told.len(), 2, "{}", finished.stderr);
    assert!(told[0].contains("a.gguf.json is not used"), "{}", told[0]);
    assert!(
        told[1].contains("\"-x\" can't be a model's name"),
        "{}",
        told[1]
    );
}

#[tokio::test]
async fn an_empty_or_impossible_directory_is_a_sentence() {
    let fixture = Fixture::new();
    let models = fixture.folder.path().join("new");
    let finished = run(&models, &["list"]).await;
    assert_eq!(finished.status.code(), Some(0));
    assert!(
        finished
            .stdout
            .starts_with(&format!("No models in {}.\n", models.display())),
        "{}",
        finished.stdout
    );
    let file = fixture.file("file", b"");
    for command in [&["list"][..], &["rm", "a"], &["verify", "a"]] {
        let finished = run(&file, command).await;
        assert_eq!(
            (finished.status.code(), finished.stdout.as_str()),
            (Some(1), "")
        );
        let expected = format!(
            "pocket-llm: {} is not a directory: set POCKET_LLM_MODELS to one\n",
            file.display()
        );
        assert_eq!(finished.stderr, expected);
    }
    let program = Program::start(&["list"], |command| {
        command.env_remove("HOME").env_remove("XDG_DATA_HOME");
    });
    let finished = program.finished().await;
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished.stderr.contains("set POCKET_LLM_MODELS"),
        "{}",
        finished.stderr
    );
}

#[tokio::test]
async fn the_default_directory_is_the_users() {
    let home = tempfile::tempdir().unwrap();
    let program = Program::start(&["list"], |command| {
        command.env("HOME", home.path()).env_remove("XDG_DATA_HOME");
    });
    let finished = program.finished().await;
    let models = home.path().join(".local/share/pocket-llm/models");
    assert!(
        finished.stdout.contains(models.to_str().unwrap()),
        "{}",
        finished.stdout
    );
    assert!(!models.exists());
}

#[tokio::test]
async fn rm_says_what_it_removed_and_what_it_did_not_find() {
    let fixture = Fixture::new();
    fill(&fixture);
    let folder = fixture.folder.path();
    let finished = run(
        folder,
        &["rm", "Gemma_3_1B_it", "missing", "qwen2.5-1.5b", "../x"],
    )
    .await;
    assert_eq!(finished.status.code(), Some(1));
    let expected = [
        "gemma-3-1b.gguf",
        "gemma-3-1b.gguf.json",
        "qwen2.5-1.5b.gguf.partial",
        "qwen2.5-1.5b.gguf.partial.json",
    ];
    let mut lines = finished.stdout.lines();
    for name in expected {
        assert_eq!(
            lines.next(),
            Some(format!("removed {}", folder.join(name).display()).as_str())
        );
    }
    let freed = lines.next().unwrap();
    assert!(
        freed.contains(" freed (") && lines.next().is_none(),
        "{freed}"
    );
    let errors: Vec<&str> = finished.stderr.lines().collect();
    assert_eq!(
        errors[0],
        "pocket-llm: missing is not on disk: `pocket-llm list` shows what is"
    );
    assert!(
        errors[1].starts_with("pocket-llm: \"../x\" can't be a model's name: "),
        "{}",
        errors[1]
    );
    assert_eq!(errors.len(), 2);
    assert_eq!(
        fixture.files(),
        ["Mine-Q8_0.gguf", "damaged.gguf", "damaged.gguf.json"]
    );
    let finished = run(folder, &["rm", "damaged", "mine-q8_0"]).await;
    assert_eq!(
        (finished.status.code(), finished.stderr.as_str()),
        (Some(0), "")
    );
    assert_eq!(fixture.files(), [""; 0]);
}

#[tokio::test]
async fn a_catalogue_directory_is_read_first() {
    let fixture = Fixture::new();
    let catalogue = tempfile::tempdir().unwrap();
    std::fs::write(catalogue.path().join("x.toml"), "name = 7").unwrap();
    let finished = run(
        fixture.folder.path(),
        &["list", "--catalogue", catalogue.path().to_str().unwrap()],
    )
    .await;
    assert_eq!(
        (finished.status.code(), finished.stdout.as_str()),
        (Some(1), "")
    );
    assert_eq!(
        finished.stderr,
        "pocket-llm: x.toml: name: it must be a string, and is of type integer\n"
    );
}
