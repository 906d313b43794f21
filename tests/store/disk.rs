//! What is found in a directory.

use crate::{Fixture, fetched, name};
use pocket_llm::models::store::{Manifest, Moment, Origin, State, StoreError, manifest_path};
use pocket_llm::models::{Catalogue, Store};
use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_hours(1);

#[test]
fn files_that_are_dropped_in_are_models() {
    let fixture = Fixture::new();
    let path = fixture.file("My own (1).gguf", b"12345");
    fixture.file("notes.txt", b"");
    fixture.file("a.gguf.partial", b"123");
    fixture.file("a.gguf.lock", b"");
    fixture.file(".hidden.gguf", b"");
    fixture.file("-x.gguf", b"");
    std::fs::create_dir(fixture.folder.path().join("folder.gguf")).unwrap();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), fixture.folder.path().join("linked.gguf"))
        .unwrap();
    let models = fixture.store.list().unwrap();
    let names: Vec<String> = models.iter().map(|model| model.name.to_string()).collect();
    assert_eq!(names, ["My own (1)", "linked"]);
    let model = &models[0];
    assert_eq!(
        (&model.path, model.bytes, model.state),
        (&path, 5, State::Complete)
    );
    assert!(model.manifest.is_none() && model.problem.is_none());
    assert!(model.modified.unwrap().age() < HOUR);
    assert_eq!(
        fixture.store.find(&name("My own (1)")).unwrap().as_ref(),
        Some(model)
    );
    assert_eq!(fixture.store.find(&name("my own")).unwrap(), None);
    let unnameable = fixture.store.unnameable().unwrap();
    assert_eq!(unnameable.len(), 2, "{unnameable:?}");
}

#[test]
fn a_manifest_is_read_back_and_names_the_file() {
    let fixture = Fixture::new();
    let from = "hf:owner/repo/sub/file.gguf@main";
    let path = fixture.store.place(&name(from));
    std::fs::write(&path, b"12345").unwrap();
    assert_eq!(
        fixture
            .store
            .find(&name(from))
            .unwrap()
            .unwrap()
            .name
            .to_string(),
        from
    );
    // Without a manifest nobody knows that `--` was a slash.
    assert_eq!(
        fixture.store.list().unwrap()[0].name.to_string(),
        "owner--repo--sub--file@main"
    );
    let manifest = Manifest {
        revision: Some("abc".into()),
        etag: Some("\"tag\"".into()),
        sha256: Some(pocket_llm::models::Digest::of(b"12345")),
        fetched_at: Some(Moment(1)),
        verified_at: Some(Moment(2)),
        verified_mtime: Some(Moment(3)),
        last_used: Some(Moment(4)),
        ..fetched(from, 5)
    };
    fixture.store.record(&path, &manifest).unwrap();
    let stored = fixture.store.list().unwrap().remove(0);
    assert_eq!(stored.name.to_string(), from);
    assert_eq!(stored.manifest.as_ref(), Some(&manifest));
    assert_eq!(
        fixture.files(),
        [
            "owner--repo--sub--file@main.gguf",
            "owner--repo--sub--file@main.gguf.json"
        ]
    );
    // A catalogue model keeps its name, wherever it came from.
    let path = fixture.file("gemma-3-1b.gguf", b"12345");
    fixture.store.record(&path, &manifest).unwrap();
    assert_eq!(
        fixture.store.list().unwrap()[0].name.to_string(),
        "gemma-3-1b"
    );
}

#[test]
fn a_file_of_another_size_is_told() {
    let fixture = Fixture::new();
    let path = fixture.file("a.gguf", b"12345");
    fixture
        .store
        .record(&path, &fetched("hf:o/r/a.gguf", 7))
        .unwrap();
    let state = || fixture.store.find(&name("a")).unwrap().unwrap().state;
    assert_eq!(state(), State::SizeDiffers { expected: 7 });
    // What was seen of a file that somebody put there says nothing about what it should be.
    fixture
        .store
        .record(&path, &Manifest::new(Origin::ByHand, 7))
        .unwrap();
    assert_eq!(state(), State::Complete);
}

#[test]
fn a_damaged_manifest_is_told_and_costs_nothing_else() {
    let fixture = Fixture::new();
    let path = fixture.file("a.gguf", b"12345");
    fixture
        .store
        .record(&path, &fetched("hf:o/r/a.gguf", 5))
        .unwrap();
    let sound = std::fs::read(manifest_path(&path)).unwrap();
    let text = String::from_utf8(sound.clone()).unwrap();
    let damaged: [Vec<u8>; 8] = [
        b"".into(),
        sound[..sound.len() / 2].into(),
        vec![0; 100],
        b"[]".into(),
        b"\xff\xfe".into(),
        text.replace("\"version\": 1", "\"version\": 2").into(),
        text.replace("o/r", "../r").into(),
        vec![b' '; 65 << 10],
    ];
    for bytes in damaged {
        std::fs::write(manifest_path(&path), &bytes).unwrap();
        let stored = fixture.store.find(&name("a")).unwrap().unwrap();
        assert_eq!((stored.manifest, stored.state), (None, State::Complete));
        let problem = stored.problem.unwrap();
        assert!(problem.contains("a.gguf.json is not used"), "{problem}");
        assert_eq!(problem.lines().count(), 1, "{problem}");
        assert_eq!(fixture.store.list().unwrap().len(), 1);
    }
    // The next record mends it.
    fixture
        .store
        .record(&path, &fetched("hf:o/r/a.gguf", 5))
        .unwrap();
    assert_eq!(
        fixture.store.find(&name("a")).unwrap().unwrap().problem,
        None
    );
}

#[test]
fn uses_are_noted_and_the_rest_is_kept() {
    let fixture = Fixture::new();
    let path = fixture.file("a.gguf", b"12345");
    let manifest = fetched("hf:o/r/a.gguf", 5);
    fixture.store.record(&path, &manifest).unwrap();
    fixture.store.touch(&path);
    let used = fixture
        .store
        .find(&name("a"))
        .unwrap()
        .unwrap()
        .manifest
        .unwrap();
    assert!(used.last_used.unwrap().age() < HOUR);
    assert_eq!(
        Manifest {
            last_used: None,
            ..used
        },
        manifest
    );
    let dropped_in = fixture.file("b.gguf", b"1");
    fixture.store.touch(&dropped_in);
    let used = fixture
        .store
        .find(&name("b"))
        .unwrap()
        .unwrap()
        .manifest
        .unwrap();
    assert_eq!(
        (&used.source, used.last_used.is_some()),
        (&Origin::ByHand, true)
    );
    // Neither a file that is gone nor one elsewhere is a reason to fail, or to write anything.
    let before = fixture.files();
    fixture.store.touch(&fixture.folder.path().join("c.gguf"));
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = elsewhere.path().join("d.gguf");
    std::fs::write(&foreign, b"1").unwrap();
    fixture.store.touch(&foreign);
    assert_eq!(fixture.files(), before);
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
}

#[test]
fn only_files_in_the_directory_are_written() {
    let fixture = Fixture::new();
    let root = fixture.folder.path();
    for path in [
        "/tmp/a.gguf".into(),
        root.join("../a.gguf"),
        root.join("sub/a.gguf"),
        root.join("a.txt"),
        root.join("-a.gguf"),
        root.into(),
    ] {
        let manifest = fetched("hf:o/r/a.gguf", 5);
        let error = fixture.store.record(&path, &manifest).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { .. }), "{error}");
        assert!(matches!(
            fixture.store.lock(&path),
            Err(StoreError::Foreign { .. })
        ));
    }
    assert_eq!(fixture.files(), [""; 0]);
}

#[test]
fn removing_takes_all_that_belongs_to_a_model_and_nothing_else() {
    let fixture = Fixture::new();
    let path = fixture.file("a.gguf", b"12345");
    fixture.file("a.gguf.partial", b"123");
    fixture.file("a.gguf.partial.json", b"{}");
    fixture.file("a.tokenizer.json", b"{ }");
    for other in ["ab.gguf", "a.b.gguf", "a.txt", "b.gguf.partial"] {
        fixture.file(other, b"1");
    }
    fixture
        .store
        .record(&path, &fetched("hf:o/r/a.gguf", 5))
        .unwrap();
    let manifest = std::fs::metadata(manifest_path(&path)).unwrap().len();
    let removed = fixture.store.remove(&name("a")).unwrap();
    assert_eq!(removed.bytes, 5 + 3 + 2 + 3 + manifest);
    assert_eq!(removed.files[0], path);
    assert_eq!(removed.files.len(), 5);
    assert_eq!(
        fixture.files(),
        ["a.b.gguf", "a.txt", "ab.gguf", "b.gguf.partial"]
    );
    let again = fixture.store.remove(&name("a")).unwrap_err();
    assert_eq!(again.to_string(), "a is not on disk");
    assert_eq!(fixture.files().len(), 4, "looking for it leaves no lock");
    // A download that never was complete can be removed too.
    assert_eq!(fixture.store.remove(&name("b")).unwrap().bytes, 1);
}

#[test]
fn partial_downloads_are_listed_with_their_share() {
    let fixture = Fixture::new();
    fixture.file("a.gguf.partial", &[0; 40]);
    fixture.file("a.gguf.partial.json", br#"{"url":"x","bytes":120}"#);
    fixture.file("b.gguf.partial", &[0; 7]);
    fixture.file("c.gguf.partial", &[0; 7]);
    fixture.file("c.gguf.partial.json", b"damaged");
    let lock = fixture
        .store
        .lock(&fixture.store.place(&name("b")))
        .unwrap();
    let look = || fixture.store.partials().unwrap();
    let seen: Vec<_> = look()
        .iter()
        .map(|it| (it.stem.clone(), it.bytes, it.percent(), it.running))
        .collect();
    assert_eq!(
        seen,
        [
            ("a".into(), 40, Some(33), false),
            ("b".into(), 7, None, true),
            ("c".into(), 7, None, false)
        ]
    );
    drop(lock);
    assert!(!look()[1].running);
}

#[test]
fn cleaning_removes_what_nobody_needs() {
    let fixture = Fixture::new();
    let old = |name: &str, bytes: &[u8]| {
        let path = fixture.file(name, bytes);
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - 2 * HOUR).unwrap();
    };
    old("old.gguf.partial", b"12345");
    old("old.gguf.partial.json", b"12");
    old("old.gguf.partial.json.new", b"1");
    fixture.file("new.gguf.partial", b"1");
    fixture.file("new.gguf.partial.json", b"1");
    fixture.file("noted.gguf.partial.json", b"1");
    fixture.file("lost.gguf.json", b"123");
    old(".kept.gguf.json.77-0.tmp", b"1");
    fixture.file(".kept.gguf.json.78-0.tmp", b"1");
    fixture.file("kept.gguf", b"1");
    fixture.file("kept.gguf.json", b"1");
    fixture.file("left.gguf.lock", b"");
    old("held.gguf.partial", b"1");
    old("notes.json", b"1");
    old("photo.partial", b"1");
    let _lock = fixture
        .store
        .lock(&fixture.store.place(&name("held")))
        .unwrap();
    let cleaned = fixture.store.clean(HOUR).unwrap();
    assert_eq!(cleaned.bytes, 5 + 2 + 1 + 1 + 3 + 1);
    assert_eq!(cleaned.files.len(), 6, "{cleaned:?}");
    let left = [
        ".kept.gguf.json.78-0.tmp",
        "held.gguf.lock",
        "held.gguf.partial",
        "kept.gguf",
        "kept.gguf.json",
        "new.gguf.partial",
        "new.gguf.partial.json",
        "notes.json",
        "photo.partial",
    ];
    assert_eq!(fixture.files(), left);
}

#[test]
fn names_are_looked_up_as_people_write_them() {
    let fixture = Fixture::new();
    let catalogue = Catalogue::builtin();
    let called = |text: &str| fixture.store.name_of(text, catalogue).unwrap().to_string();
    assert_eq!(called("GEMMA_3_1B_IT"), "gemma-3-1b");
    assert_eq!(called("google/gemma-3-1b-it"), "gemma-3-1b");
    assert_eq!(called("unknown"), "unknown");
    fixture.file("My Model.gguf", b"1");
    assert_eq!(called("my model"), "My Model");
    assert_eq!(called("my model.gguf"), "My Model");
    // A file that is called so is meant, also where the catalogue has such an alias.
    fixture.file("gemma-3-1b-it.gguf", b"1");
    assert_eq!(called("gemma-3-1b-it"), "gemma-3-1b-it");
    fixture.file("my model.gguf", b"1");
    assert_eq!(called("My Model"), "My Model");
    assert_eq!(called("MY MODEL"), "MY MODEL", "two could be meant");
    assert!(fixture.store.name_of("../x", catalogue).is_err());
}

#[test]
fn a_directory_that_can_not_be_is_a_sentence() {
    let fixture = Fixture::new();
    let file = fixture.file("file", b"");
    let cases = [
        (
            file.clone(),
            "is not a directory: set POCKET_LLM_MODELS to one",
        ),
        (file.join("models"), "can't be created: "),
        // Nobody can create anything in proc, not even root.
        (Path::new("/proc/models").into(), "can't be created: "),
    ];
    for (path, expected) in cases {
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
    let made = fixture.folder.path().join("a/b/models");
    assert_eq!(Store::open(&made).unwrap().root(), made);
    assert!(made.is_dir());
}

#[test]
fn a_crowded_directory_is_refused() {
    let fixture = Fixture::new();
    for count in 0..=10_000 {
        File::create(fixture.folder.path().join(count.to_string())).unwrap();
    }
    let error = fixture.store.list().unwrap_err().to_string();
    assert!(
        error.ends_with("has more than 10000 files: give models a directory of their own"),
        "{error}"
    );
    std::fs::remove_file(fixture.folder.path().join("0")).unwrap();
    assert_eq!(fixture.store.list().unwrap(), []);
}

/// A directory that is there and can't be written, also not by root.
#[test]
fn a_read_only_directory_can_be_read() {
    let store = Store::open(Path::new("/proc/self")).unwrap();
    assert_eq!(store.list().unwrap(), []);
    let path = store.place(&name("a"));
    let error = store
        .record(&path, &fetched("hf:o/r/a.gguf", 5))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("/proc/self/a.gguf.json can't be written: "),
        "{error}"
    );
    let error = store.lock(&path).unwrap_err().to_string();
    assert!(
        error.starts_with("/proc/self/a.gguf.lock can't be written: "),
        "{error}"
    );
    store.touch(&path);
}
