//! `verify` of the real binary: digests and sizes of small files, and the vocabularies of real models against their publishers'
//! tokenizers.

#![cfg(all(feature = "llama", feature = "tokenizers"))]
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "support/models.rs"]
mod models;
#[expect(dead_code, reason = "the tests of the server need more of it")]
#[path = "support/program.rs"]
mod program;

use models::test_model;
use pocket_llm::models::parity::{self, Parity};
use pocket_llm::models::store::{Manifest, Origin};
use pocket_llm::models::{Digest, HubFile, ModelName, Store};
use program::{Finished, Program};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tempfile::TempDir;

const VOCABULARIES: [&str; 2] = ["gemma3", "qwen2.5"];
const FROM: &str = "hf:me/mine-GGUF/mine.gguf";

fn tiny(vocabulary: &str) -> PathBuf {
    test_model(&format!("{vocabulary}-tiny.gguf"))
}

fn tokenizer(vocabulary: &str) -> PathBuf {
    test_model(&format!("{vocabulary}/tokenizer.json"))
}

/// A store, and a catalogue of one further model.
struct Fixture {
    store: Store,
    models: TempDir,
    catalogue: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let models = tempfile::tempdir().unwrap();
        Self {
            store: Store::open(models.path()).unwrap(),
            models,
            catalogue: tempfile::tempdir().unwrap(),
        }
    }

    async fn verify(&self, arguments: &[&str]) -> Finished {
        let program = Program::start(&["verify"], |command| {
            command
                .args(arguments)
                .env("POCKET_LLM_MODELS", self.models.path())
                .env("POCKET_LLM_CATALOGUE", self.catalogue.path());
        });
        program.finished().await
    }

    /// What `verify` prints of a model that is as it should be.
    async fn sound(&self, arguments: &[&str]) -> String {
        let finished = self.verify(arguments).await;
        assert_eq!(
            (finished.status.code(), finished.stderr.as_str()),
            (Some(0), ""),
            "{}",
            finished.stdout
        );
        finished.stdout
    }

    /// The sentence that `verify` ends with.
    async fn refused(&self, arguments: &[&str]) -> String {
        let finished = self.verify(arguments).await;
        assert_eq!(finished.status.code(), Some(1), "{}", finished.stdout);
        let sentence = finished
            .stderr
            .strip_prefix("pocket-llm: ")
            .expect(&finished.stderr);
        assert_eq!(sentence.trim_end().lines().count(), 1, "{sentence}");
        sentence.trim_end().to_owned()
    }

    /// Puts the small Qwen model's file into the store.
    fn model(&self, name: &str) -> PathBuf {
        let path = self.models.path().join(format!("{name}.gguf"));
        std::fs::copy(tiny("qwen2.5"), &path).unwrap();
        path
    }

    fn manifest(&self, name: &str) -> Option<Manifest> {
        let name = ModelName::parse(name).unwrap();
        self.store.find(&name).unwrap().unwrap().manifest
    }

    /// Says in the catalogue what `mine` should be.
    fn catalogue(&self, bytes: u64, sha256: &str) {
        let text = format!(
            "name = \"mine\"\naliases = [\"MINE\"]\ndisplay_name = \"Mine 1\"\ndescription = \"x\"\nparameters = \"1B\"\nlogin = false\n\
             licence = \"MIT\"\ncontext = 9\ncapabilities = [\"text\"]\nsource = {{ repo = \"me/mine-GGUF\", file = \"mine.gguf\", bytes = \
             {bytes}, sha256 = \"{sha256}\" }}\nsampling = {{ temperature = 1, top_k = 1, top_p = 1 }}\n"
        );
        std::fs::write(self.catalogue.path().join("mine.toml"), text).unwrap();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Size and digest of the small Qwen model's file.
fn facts() -> (u64, Digest) {
    let bytes = std::fs::read(tiny("qwen2.5")).unwrap();
    (bytes.len() as u64, Digest::of(&bytes))
}

fn from_hub(bytes: u64, sha256: Option<Digest>) -> Manifest {
    let hub = HubFile::parse(FROM).unwrap();
    Manifest {
        sha256,
        ..Manifest::new(Origin::Hub(hub), bytes)
    }
}

/// Turns one byte in the middle over, and keeps the time of modification if the disk is to blame.
fn damage(path: &Path, silently: bool) {
    let mut bytes = std::fs::read(path).unwrap();
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
    if silently {
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
    }
}

#[tokio::test]
async fn real_vocabularies_tokenise_as_their_publishers_do() {
    let fixture = Fixture::new();
    for vocabulary in VOCABULARIES {
        let (model, tokenizer) = (tiny(vocabulary), tokenizer(vocabulary));
        let told = fixture
            .sound(&[text(&model), "--tokenizer", text(&tokenizer)])
            .await;
        let line = told.lines().last().unwrap();
        assert!(
            line.starts_with("  tokenizer  ") && line.contains("texts give the tokens of"),
            "{told}"
        );
        let note = match vocabulary {
            "gemma3" => "but for a literal ▁",
            _ => "after Unicode NFC",
        };
        assert!(line.contains(note), "{told}");
        assert_eq!(line.contains("NFC"), vocabulary == "qwen2.5", "{told}");
    }
}

/// A vocabulary that is the published one but for what `change` says about a text and its special names.
fn parity_with(change: impl Fn(&str, bool) -> (String, bool)) -> Parity {
    let path = tokenizer("qwen2.5");
    let mut vocabulary = tokenizers::Tokenizer::from_file(&path).unwrap();
    parity::compare(&path, &mut |questions| {
        let mut answers = Vec::new();
        for (text, special) in questions {
            let (text, special) = change(text, *special);
            vocabulary.set_encode_special_tokens(!special);
            answers.push(
                vocabulary
                    .encode_fast(text, false)
                    .unwrap()
                    .get_ids()
                    .to_vec(),
            );
        }
        Ok(answers)
    })
    .unwrap()
}

#[test]
fn harmful_differences_are_not_taken_for_harmless_ones() {
    let same = parity_with(|text, special| (text.into(), special));
    assert_eq!(
        same,
        Parity {
            texts: same.texts,
            ..Parity::default()
        }
    );
    // Control tokens that are never read: a chat template's would be text.
    let never = parity_with(|text, _| (text.into(), false));
    assert!(never.different > 5, "{never:?}");
    // Control tokens that are always read: anybody's text could have them.
    let always = parity_with(|text, _| (text.into(), true));
    assert!(always.different > 5, "{always:?}");
    // One character is lost, wherever it stands.
    let lossy = parity_with(|text, special| (text.replace('ß', "ss"), special));
    assert!(
        lossy.different >= 2 && lossy.examples[0].text.contains('ß'),
        "{lossy:?}"
    );
    assert_eq!(
        lossy.only_special_names + lossy.only_after_nfc,
        0,
        "{lossy:?}"
    );
}

#[tokio::test]
async fn a_vocabulary_against_anothers_tokenizer_fails() {
    let fixture = Fixture::new();
    for (model, other) in [("gemma3", "qwen2.5"), ("qwen2.5", "gemma3")] {
        let (model, other) = (tiny(model), tokenizer(other));
        let sentence = fixture
            .refused(&[text(&model), "--tokenizer", text(&other)])
            .await;
        let expected = format!(
            "the vocabulary of {} is not the one of {}: ",
            model.display(),
            other.display()
        );
        assert!(sentence.starts_with(&expected), "{sentence}");
        assert!(sentence.contains("\"Hello, world!\" gives ["), "{sentence}");
    }
}

#[tokio::test]
async fn a_tokenizer_beside_a_model_is_used() {
    let fixture = Fixture::new();
    fixture.model("mine");
    let told = fixture.sound(&["mine"]).await;
    assert!(told.contains("tokenizer  not compared"), "{told}");
    let beside = fixture.models.path().join("mine.tokenizer.json");
    std::fs::copy(tokenizer("qwen2.5"), &beside).unwrap();
    assert!(
        fixture
            .sound(&["mine"])
            .await
            .contains("texts give the tokens of")
    );
    std::fs::write(&beside, "{}").unwrap();
    let sentence = fixture.refused(&["mine"]).await;
    assert!(
        sentence.contains("mine.tokenizer.json can't be used as a tokenizer.json: "),
        "{sentence}"
    );
}

#[tokio::test]
async fn a_fetched_file_is_compared_with_its_manifest() {
    let fixture = Fixture::new();
    let (bytes, sha256) = facts();
    let path = fixture.model("mine");
    fixture
        .store
        .record(&path, &from_hub(bytes, Some(sha256)))
        .unwrap();
    let told = fixture.sound(&["mine"]).await;
    assert!(
        told.contains(&format!("size       {bytes} bytes, as the manifest states")),
        "{told}"
    );
    assert!(
        told.contains(&format!("sha256     {sha256}, as the manifest states")),
        "{told}"
    );
    let noted = fixture.manifest("mine").unwrap();
    assert!(noted.verified_at.is_some() && noted.verified_mtime.is_some());
    assert_eq!(
        (noted.sha256, noted.source),
        (Some(sha256), from_hub(bytes, None).source)
    );

    damage(&path, false);
    let sentence = fixture.refused(&["mine"]).await;
    assert!(
        sentence.starts_with("mine has sha256 ") && sentence.contains("the manifest states"),
        "{sentence}"
    );
    assert_eq!(
        fixture.manifest("mine").unwrap().sha256,
        Some(sha256),
        "what it should be stays"
    );
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(bytes - 1)
        .unwrap();
    let sentence = fixture.refused(&["mine"]).await;
    let expected = format!(
        "mine has {} bytes where the manifest states {bytes} bytes: it is damaged, remove it and fetch it again",
        bytes - 1
    );
    assert_eq!(sentence, expected);
}

#[tokio::test]
async fn a_file_is_compared_with_the_catalogue() {
    let fixture = Fixture::new();
    let (bytes, sha256) = facts();
    let path = fixture.model("mine");
    fixture.catalogue(bytes, &sha256.to_string());
    let told = fixture.sound(&["MINE"]).await;
    assert!(
        told.starts_with("mine: ") && told.contains(", as the catalogue states"),
        "{told}"
    );
    // Under another name it is recognised.
    let elsewhere = tiny("qwen2.5");
    let told = fixture.sound(&[text(&elsewhere)]).await;
    assert!(told.contains(": it is mine of the catalogue"), "{told}");
    damage(&path, false);
    let sentence = fixture.refused(&["mine"]).await;
    assert!(
        sentence.contains(&format!(
            "where the catalogue states sha256 {sha256}: it is another file"
        )),
        "{sentence}"
    );
    // By its path it is the same file.
    assert!(
        fixture
            .refused(&[text(&path)])
            .await
            .contains("where the catalogue states")
    );
    // A file that was fetched from elsewhere under this name is not what the catalogue means.
    let other = HubFile::parse("hf:other/mine/mine.gguf").unwrap();
    fixture
        .store
        .record(&path, &Manifest::new(Origin::Hub(other), bytes))
        .unwrap();
    assert!(
        fixture
            .sound(&["mine"])
            .await
            .contains("nothing states what it should be")
    );
}

#[tokio::test]
async fn a_file_that_nothing_is_known_of_is_remembered() {
    let fixture = Fixture::new();
    let (_, sha256) = facts();
    let path = fixture.model("mine");
    let told = fixture.sound(&["mine"]).await;
    assert!(
        told.contains(&format!("{sha256}; nothing states what it should be")),
        "{told}"
    );
    let told = fixture.sound(&["mine"]).await;
    assert!(
        told.contains(", as when it was last verified; nothing states"),
        "{told}"
    );
    damage(&path, true);
    let sentence = fixture.refused(&["mine"]).await;
    assert!(
        sentence.contains("was not written to since: the disk has damaged it"),
        "{sentence}"
    );
    // One that was replaced is a new one.
    std::fs::copy(tiny("gemma3"), &path).unwrap();
    let told = fixture.sound(&["mine"]).await;
    assert!(!told.contains("last verified"), "{told}");
    // Outside the store nothing is written.
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("file.gguf");
    std::fs::copy(tiny("gemma3"), &file).unwrap();
    fixture.sound(&[text(&file)]).await;
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn what_is_no_model_is_a_sentence() {
    let fixture = Fixture::new();
    let file = |name: &str, bytes: &[u8]| {
        let path = fixture.models.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        text(&path).to_owned()
    };
    let whole = std::fs::read(tiny("qwen2.5")).unwrap();
    let cases = [
        (
            file("text.gguf", b"this is no model"),
            "text.gguf is not a GGUF file",
        ),
        (file("empty.gguf", b""), "empty.gguf is too short"),
        (text(fixture.models.path()).to_owned(), "is not a file"),
        (
            "./missing.gguf".into(),
            "./missing.gguf can't be read: No such file",
        ),
        (
            "missing".into(),
            "missing is not on disk: `pocket-llm list`",
        ),
        (
            "../missing".into(),
            "../missing can't be read: No such file",
        ),
        ("hf:a/b/c.gguf".into(), "hf:a/b/c.gguf is not on disk"),
        ("-".into(), "\"-\" can't be a model's name: "),
    ];
    for (model, expected) in cases {
        let sentence = fixture.refused(&[&model]).await;
        assert!(sentence.contains(expected), "{expected}: {sentence}");
    }
    let tokenizer = tokenizer("qwen2.5");
    for length in [100, whole.len() / 8] {
        let cut = file("cut.gguf", &whole[..length]);
        let sentence = fixture
            .refused(&[&cut, "--tokenizer", text(&tokenizer)])
            .await;
        assert!(sentence.contains("cut.gguf"), "{sentence}");
    }
    // A file by its path needs no store.
    let program = Program::start(&["verify", text(&tiny("qwen2.5"))], |command| {
        command.env_remove("HOME").env_remove("XDG_DATA_HOME");
    });
    let finished = program.finished().await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    // One bad file does not keep the others from being looked at.
    fixture.model("mine");
    let finished = fixture.verify(&["missing", "mine"]).await;
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished.stdout.contains("nothing states"),
        "{}",
        finished.stdout
    );
}

/// The child process that `verify` asks, by itself.
#[tokio::test]
async fn the_child_answers_line_by_line() {
    let model = tiny("qwen2.5");
    let ask = async |input: String| {
        let mut program = Program::start(&["tokenise", text(&model)], |command| {
            command.stdin(Stdio::piped());
        });
        program.type_in(&input);
        program.close_input();
        program.finished().await
    };
    let line = |text: &str, special: bool| {
        format!(
            "{}\n",
            serde_json::json!({ "text": text, "special": special })
        )
    };
    let finished =
        ask(line("Hello, world!", false) + &line("<|im_end|>", true) + &line("<|im_end|>", false))
            .await;
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    let answers: Vec<Vec<u32>> = finished
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (&answers[0], &answers[1]),
        (&vec![9707, 11, 1879, 0], &vec![151_645])
    );
    assert!(answers[2].len() > 1 && answers.len() == 3, "{answers:?}");
    for bad in [
        "nonsense\n".to_owned(),
        "{\"text\":\"a\"}\n".into(),
        line(&"a".repeat(1 << 20), false),
    ] {
        let finished = ask(line("a", false) + &bad).await;
        assert_eq!(finished.status.code(), Some(1));
        assert_eq!(
            finished.stdout.lines().count(),
            1,
            "the answers before it stand"
        );
        assert!(
            finished
                .stderr
                .contains("pocket-llm: a text can't be read: "),
            "{}",
            finished.stderr
        );
    }
}
