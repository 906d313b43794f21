//! No name leads out of the directory, and none is taken for another.

use crate::{Fixture, hub, name};
use pocket_llm::models::{Catalogue, Collection, HubFile, Library, Model, ModelName, ModelRef};
use proptest::prelude::*;
use std::path::{Component, Path};
use std::sync::Arc;

#[test]
fn names_that_can_not_be_used_are_refused() {
    let long = "x".repeat(201);
    let names = [
        "",
        ".",
        "..",
        "...",
        ".hidden",
        "-rf",
        "--help",
        "/etc/passwd",
        "a/b",
        "a/../b",
        "../a",
        "a\\b",
        "C:x",
        "a%2fb",
        "%2e%2e",
        "a\0b",
        "a\nb",
        "a\u{1b}[31m",
        "a\u{202e}fdp",
        "a\u{200b}b",
        " a",
        "a ",
        "a*",
        "a?",
        "a|b",
        "<a>",
        "\"a\"",
        ".gguf",
        "..gguf",
        "../x.gguf",
        "hf:",
        "hf:a",
        "hf:a/b",
        "hf:a/b/c",
        "hf:a/b/",
        "hf:a//c.gguf",
        "hf:/b/c.gguf",
        "hf:a/b/../c.gguf",
        "hf:../b/c.gguf",
        "hf:a/b/.c.gguf",
        "hf:a/b/-c.gguf",
        "hf:-a/b/c.gguf",
        "hf:a/b/c.gguf@",
        "hf:a/b/c.gguf@../x",
        "hf:a/b/c.gguf@x@y",
        "hf:a/b/c.gguf@-x",
        "hf:a/b/c d.gguf",
        "hf:a/b/c%2f.gguf",
        "hf:a/b/c\\d.gguf",
        "hf:a/b/é.gguf",
        "hf:a/b/c.gguf?x=1",
        "hf:a/b/c.gguf#x",
        &long,
    ];
    for text in names {
        let error = ModelName::parse(text).unwrap_err();
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
        assert!(error.to_string().len() < 400, "{error}");
    }
    let whole = format!("hf:a/b/{}.gguf", "x".repeat(200));
    assert!(ModelName::parse(&whole).is_err());
}

#[test]
fn names_that_people_use_are_understood() {
    let table = [
        ("gemma-3-1b", "gemma-3-1b.gguf"),
        ("gemma-3-1b.gguf", "gemma-3-1b.gguf"),
        ("My model (2)", "My model (2).gguf"),
        ("Größe", "Größe.gguf"),
        ("Gro\u{308}ße", "Gro\u{308}ße.gguf"),
        ("模型", "模型.gguf"),
        ("a@b", "a@b.gguf"),
        ("hf:owner/repo/file.gguf", "owner--repo--file.gguf"),
        (
            "hf:owner/repo/sub/file.gguf@main",
            "owner--repo--sub--file@main.gguf",
        ),
        (
            "hf:owner/repo/file.gguf@refs/pr/1",
            "owner--repo--file@refs--pr--1.gguf",
        ),
    ];
    let fixture = Fixture::new();
    for (text, file) in table {
        let place = fixture.store.place(&name(text));
        assert_eq!(place, fixture.folder.path().join(file), "{text}");
    }
    // What could be read in two ways carries a digest.
    let unclear = [
        "hf:a/b/c--d.gguf",
        "hf:a/b/c/d.gguf",
        "hf:a/b-/c.gguf",
        "hf:a/b/-c.gguf",
    ];
    let stem = name(unclear[0]).stem();
    assert!(stem.starts_with("a--b--c--d~"), "{stem}");
    assert_eq!(name(unclear[1]).stem(), "a--b--c--d");
    assert!(name(unclear[2]).stem().contains('~'));
}

#[test]
fn references_are_told_apart() {
    let catalogue = Catalogue::builtin();
    let parse = |text: &str| ModelRef::parse(text, catalogue);
    for text in [
        "gemma-3-1b",
        "GEMMA_3_1B_IT",
        "google/gemma-3-1b-it",
        "gemma 3 1b it",
    ] {
        let Ok(ModelRef::Known(entry)) = parse(text) else {
            panic!("{text}");
        };
        assert_eq!(entry.name, "gemma-3-1b");
    }
    let there = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    for path in [
        "./a.gguf",
        "/models/a",
        "a/b.gguf",
        "../a",
        there.path().to_str().unwrap(),
    ] {
        assert_eq!(parse(path), Ok(ModelRef::Path(path.into())), "{path}");
    }
    let text = "hf:owner/repo/a.gguf@v1";
    assert_eq!(parse(text), Ok(ModelRef::Hub(hub(text))));
    assert_eq!(hub(text).to_string(), text);
    let error = |text: &str| parse(text).unwrap_err().to_string();
    assert_eq!(
        error("gema-3-1b"),
        "no model is called \"gema-3-1b\": did you mean gemma-3-1b?"
    );
    assert!(
        error("nothing.gguf").contains("`pocket-llm list`"),
        "{}",
        error("nothing.gguf")
    );
    assert!(error(&"x".repeat(1 << 16)).len() < 400);
    assert!(error("hf:a/b/c.bin").contains("ends in .gguf"));
}

/// Strings that are likely to mean something to a path, a URL or our own syntax.
fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("..".to_owned()),
        Just("/".to_owned()),
        Just("\\".to_owned()),
        Just("%2e".to_owned()),
        Just("hf:".to_owned()),
        Just("--".to_owned()),
        Just("@".to_owned()),
        Just(".gguf".to_owned()),
        Just("~".to_owned()),
        Just("\0".to_owned()),
        Just("a".to_owned()),
        Just("-".to_owned()),
        "[a-z0-9._+-]{1,8}",
        "\\PC{0,4}",
        any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn hub_file() -> impl Strategy<Value = HubFile> {
    let part = || {
        prop_oneof![
            "[a-c][a-c.-]{0,3}",
            Just("a".to_owned()),
            Just("a--b".to_owned())
        ]
    };
    let revision = proptest::option::of(proptest::collection::vec(part(), 1..3));
    (
        part(),
        part(),
        proptest::collection::vec(part(), 1..3),
        revision,
    )
        .prop_map(|(owner, repo, file, revision)| {
            let revision = revision.map(|parts| parts.join("/"));
            HubFile::new(
                &format!("{owner}/{repo}"),
                &format!("{}.gguf", file.join("/")),
                revision.as_deref(),
            )
            .unwrap()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    /// Whatever the text, the file is directly in the directory, is no option and no hidden file, and fits a file name.
    #[test]
    fn no_name_leaves_the_directory(text in hostile()) {
        if let Ok(name) = ModelName::parse(&text) {
            let stem = name.stem();
            let components: Vec<_> = Path::new(&stem).components().collect();
            prop_assert!(matches!(components[..], [Component::Normal(_)]), "{stem:?}");
            prop_assert!(!stem.starts_with(['-', '.']), "{stem:?}");
            prop_assert!(stem.len() <= 200 && !stem.chars().any(char::is_control), "{stem:?}");
            // Its own text leads back to it.
            prop_assert_eq!(ModelName::parse(&name.to_string()).ok().as_ref().map(ModelName::stem), Some(stem));
        }
    }

    #[test]
    fn different_hub_files_are_different_files(a in hub_file(), b in hub_file()) {
        let stems = [a.clone(), b.clone()].map(|hub| ModelName::from(hub).stem());
        prop_assert_eq!(stems[0] == stems[1], a == b, "{:?}", stems);
    }

    #[test]
    fn hub_files_are_read_back(hub in hub_file()) {
        prop_assert_eq!(HubFile::parse(&hub.to_string()), Ok(hub.clone()));
        let json = serde_json::to_string(&hub).unwrap();
        prop_assert_eq!(serde_json::from_str::<HubFile>(&json).unwrap(), hub);
    }
}

/// Whoever asks gets one of them; which one is told, with both names.
#[test]
fn a_name_that_two_models_have_is_told() {
    let fixture = Fixture::new();
    for file in ["own", "Other", "GEMMA_3_1B_IT", "gemma-3-1b", "alone"] {
        fixture.file(&format!("{file}.gguf"), b"");
    }
    let library = |aliases: &[&str]| {
        let collection = Collection {
            catalogue: Arc::new(Catalogue::load(None).unwrap()),
            store: Some(fixture.store.clone()),
        };
        let own = Model {
            name: "own".into(),
            path: fixture.store.place(&name("own")),
            entry: None,
        };
        let aliases = aliases.iter().map(|alias| (*alias).to_owned());
        let library = Library::new(collection, Some(own), aliases.collect());
        let told = library.shared_names().into_iter();
        told.map(|shared| shared.to_string()).collect::<Vec<_>>()
    };
    let file = |name: &str| fixture.folder.path().join(name).display().to_string();
    let of_catalogue = format!(
        "\"GEMMA_3_1B_IT\" means \"GEMMA_3_1B_IT\" here, and \"gemma-3-1b\" has that name too: rename {} if that is not meant",
        file("GEMMA_3_1B_IT.gguf")
    );
    let of_alias = format!(
        "\"Other\" means \"own\" here, and \"Other\" has that name too: rename {} if that is not meant",
        file("Other.gguf")
    );
    assert_eq!(library(&["other"]), [of_catalogue.clone(), of_alias]);
    assert_eq!(library(&["own", "free"]), [of_catalogue]);
}
