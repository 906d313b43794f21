use super::*;
use std::collections::BTreeSet;

/// A sound file; tests change one line of it.
const SOUND: &str = r#"
name = "mine"
aliases = ["MINE_1B", "me/mine"]
display_name = "My own"
description = "A model."
parameters = "1B"
login = false
licence = "MIT"
context = 4096
capabilities = ["text", "tools"]
[source]
repo = "me/mine-GGUF"
file = "folder/mine-Q4_K_M.gguf"
bytes = 123
sha256 = "00000000000000000000000000000000000000000000000000000000000000ff"
[sampling]
temperature = 1
top_k = 40
top_p = 0.95
min_p = 0.05
[tokenizer]
repo = "me/mine"
file = "tokenizer.json"
"#;

fn load(files: &[(&str, &str)]) -> Result<Catalogue, CatalogueError> {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    Catalogue::load(Some(folder.path()))
}

#[test]
fn every_file_is_compiled_in_and_called_by_its_model() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let files = toml_files(&folder).unwrap();
    let files: BTreeSet<String> = files.iter().map(|path| file_name(path)).collect();
    let mut compiled: BTreeSet<String> = BUILT_IN.iter().map(|(file, _)| (*file).into()).collect();
    for (file, text) in BUILT_IN {
        let entry = entry::read(file, text).unwrap();
        assert_eq!(format!("{}.toml", entry.name), file);
    }
    compiled.insert("families.toml".into());
    assert_eq!(files, compiled);
}

#[test]
fn the_built_in_catalogue_is_sound() {
    let catalogue = Catalogue::builtin();
    assert_eq!(catalogue.entries().count(), BUILT_IN.len());
    for entry in catalogue.entries() {
        let name = &entry.name;
        assert!(entry.can(Capability::Text), "{name}");
        assert!(entry.tokenizer.is_some(), "{name}");
        assert_eq!(
            entry.source.bytes.is_some(),
            entry.source.sha256.is_some(),
            "{name}: the two are known together"
        );
        for own in entry.names() {
            assert_eq!(catalogue.find(own).unwrap().name, *name, "{own}");
            assert_eq!(catalogue.find(&own.to_uppercase()).unwrap().name, *name);
        }
        if entry.licence.starts_with("Gemma") || entry.licence.starts_with("Llama") {
            assert!(entry.licence_notice.is_some(), "{name}");
        }
    }
}

#[test]
fn the_phone_apps_names_are_known() {
    let table = [
        ("GEMMA_3_1B_IT", "gemma-3-1b"),
        ("gemma-3n-e2b-it", "gemma-3-1b"),
        ("Gemma 3n E2B IT", "gemma-3-1b"),
        ("google/gemma-3-1b-it", "gemma-3-1b"),
        ("QWEN2_5_1_5B_INSTRUCT", "qwen2.5-1.5b"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b"),
        ("DEEPSEEK_R1_DISTILL_QWEN_1_5B", "deepseek-r1-1.5b"),
        ("DeepSeek-R1 Distill Qwen 1.5B", "deepseek-r1-1.5b"),
        ("LLAMA_3_2_1B_INSTRUCT", "llama-3.2-1b"),
        ("LLAMA_3_2_3B_INSTRUCT", "llama-3.2-3b"),
        ("TINYLLAMA_1_1B_CHAT", "tinyllama-1.1b"),
        ("smollm2-360m-INSTRUCT", "smollm2-360m"),
    ];
    for (asked, name) in table {
        assert_eq!(Catalogue::builtin().find(asked).unwrap().name, name);
    }
    for unknown in ["", "gemma", "gpt-4o", "gemma-3-1b.gguf", "gemma-3-1b "] {
        assert_eq!(Catalogue::builtin().find(unknown), None, "{unknown}");
    }
}

#[test]
fn what_is_known_with_certainty_is_pinned() {
    let entry = Catalogue::builtin().find("gemma-3-1b").unwrap();
    assert_eq!(
        entry.source.hub.to_string(),
        "hf:unsloth/gemma-3-1b-it-GGUF/gemma-3-1b-it-Q4_K_M.gguf@f0b45be0aac41bd6a100a4b5734cad5f67255bfb"
    );
    assert_eq!(entry.source.bytes, Some(806_058_272));
    let sampling = entry.sampling;
    assert_eq!((sampling.temperature, sampling.top_k), (1.0, 64));
    assert_eq!(entry.draft.as_deref(), Some("gemma-3-270m"));
    let qwen = Catalogue::builtin().find("qwen2.5-1.5b").unwrap();
    assert_eq!((qwen.sampling.temperature, qwen.sampling.top_k), (0.6, 40));
    assert_eq!(qwen.draft.as_deref(), Some("qwen2.5-0.5b"));
}

#[test]
fn a_directory_adds_models_and_replaces_built_in_ones() {
    let replaced = SOUND
        .replace("\"mine\"", "\"gemma-3-1b\"")
        .replace("MINE_1B", "GEMMA_3_1B_IT");
    let replaced = replaced
        .replace("me/mine\"]", "x\"]")
        .replace("My own", "Another");
    let files = [
        ("a.toml", SOUND),
        ("b.toml", &replaced),
        ("notes.txt", "no TOML"),
    ];
    let catalogue = load(&files).unwrap();
    assert_eq!(catalogue.entries().count(), BUILT_IN.len() + 1);
    let mine = catalogue.find("mine_1b").unwrap();
    assert_eq!(mine.name, "mine");
    assert_eq!(mine.source.hub.file(), "folder/mine-Q4_K_M.gguf");
    assert_eq!(
        (mine.sampling.temperature, mine.sampling.min_p),
        (1.0, Some(0.05))
    );
    assert_eq!(
        mine.tokenizer.as_ref().unwrap().to_string(),
        "hf:me/mine/tokenizer.json"
    );
    let gemma = catalogue.find("GEMMA_3_1B_IT").unwrap();
    assert_eq!(
        (gemma.name.as_str(), gemma.display_name.as_str()),
        ("gemma-3-1b", "Another")
    );
    assert_eq!(
        catalogue.find("gemma-3n-e2b-it"),
        None,
        "replaced as a whole"
    );
}

/// Lines of a sound file, what stands there instead, and what is said of it.
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "login = false",
        "login = \"no\"",
        "a.toml: login: it must be true or false, and is of type string",
    ),
    ("licence = \"MIT\"", "", "a.toml: licence: it is missing"),
    (
        "licence = \"MIT\"",
        "licence = \" \"",
        "a.toml: licence: it is empty",
    ),
    (
        "licence = \"MIT\"",
        "licence = \"MIT\"\nlicense = \"MIT\"",
        "a.toml: license: there is no such key",
    ),
    (
        "top_k = 40",
        "top_k = 40\ntopk = 40",
        "a.toml: sampling.topk: there is no such key",
    ),
    (
        "top_k = 40",
        "top_k = -1",
        "a.toml: sampling.top_k: -1 is not within 0 to 1000000",
    ),
    (
        "top_k = 40",
        "top_k = 40.5",
        "a.toml: sampling.top_k: it must be a whole number, and is of type float",
    ),
    (
        "temperature = 1",
        "temperature = nan",
        "a.toml: sampling.temperature: NaN is not within 0 to 2",
    ),
    (
        "temperature = 1",
        "temperature = 3",
        "a.toml: sampling.temperature: 3 is not within 0 to 2",
    ),
    (
        "context = 4096",
        "context = 0",
        "a.toml: context: 0 is not within 1 to 16777216",
    ),
    (
        "\"mine\"",
        "\"Mine\"",
        "a.toml: name: use lower-case letters, digits, - and .",
    ),
    (
        "\"mine\"",
        "\"..\"",
        "a.toml: name: it may not begin with -, . or a blank",
    ),
    ("\"mine\"", "\"mine.gguf\"", "a.toml: name: leave .gguf out"),
    (
        "\"MINE_1B\"",
        "\" MINE\"",
        "a.toml: aliases: \" MINE\" is no name",
    ),
    (
        "\"MINE_1B\"",
        "7",
        "a.toml: aliases: it must be a list of strings, and is of type integer",
    ),
    (
        "\"MINE_1B\"",
        "\"gemma_3_1b_it\"",
        "a.toml: aliases: \"gemma_3_1b_it\" is a name of gemma-3-1b already",
    ),
    (
        "My own",
        "Gemma 3 1B IT",
        "a.toml: display_name: \"Gemma 3 1B IT\" is a name of gemma-3-1b already",
    ),
    (
        "\"tools\"",
        "\"flight\"",
        "a.toml: capabilities: \"flight\" is none of text, tools, thinking, code, vision",
    ),
    (
        "bytes = 123",
        "bytes = -1",
        "a.toml: source.bytes: it must be a number of bytes, and is of type integer",
    ),
    (
        "ff\"",
        "fg\"",
        "a.toml: source.sha256: a sha256 has 64 hexadecimal digits",
    ),
    (
        "mine-Q4_K_M.gguf",
        "mine.bin",
        "a.toml: source.file: a model is a file that ends in .gguf",
    ),
    (
        "folder/",
        "../",
        "a.toml: source.repo: \"hf:me/mine-GGUF/../mine-Q4_K_M.gguf\" can't be a model's name: no part of it may begin with - or .",
    ),
    (
        "\"me/mine\"\nfile",
        "\"mine\"\nfile",
        "a.toml: tokenizer.repo: \"hf:mine/tokenizer.json\" can't be a model's name: a repository is owner/name",
    ),
    (
        "context = 4096",
        "context = 4096\ndraft = \"mine\"",
        "a.toml: draft: \"mine\" is the name of no other model",
    ),
    (
        "context = 4096",
        "context = 4096\ndraft = \"GEMMA_3_1B_IT\"",
        "a.toml: draft: \"GEMMA_3_1B_IT\" is the name of no other model",
    ),
    (
        "context = 4096",
        "context = 4096\ncontext = 1",
        "a.toml is no TOML: line 10: duplicate key",
    ),
    ("context = 4096", "context =", "a.toml is no TOML: line 9: "),
];

#[test]
fn every_problem_is_a_sentence_with_file_and_key() {
    for (from, to, expected) in MISTAKES {
        assert!(SOUND.contains(from), "{from}");
        let error = load(&[("a.toml", &SOUND.replacen(from, to, 1))]).unwrap_err();
        let sentence = error.to_string();
        assert!(sentence.starts_with(expected), "{to}: {sentence}");
        assert_eq!(sentence.lines().count(), 1, "{sentence}");
    }
    let twice = load(&[("a.toml", SOUND), ("b.toml", SOUND)]).unwrap_err();
    assert_eq!(
        twice.to_string(),
        "b.toml: name: \"mine\" is a name of mine already"
    );
}

#[test]
fn what_can_not_be_read_is_named() {
    let missing = Catalogue::load(Some(Path::new("/does/not/exist"))).unwrap_err();
    assert!(
        missing
            .to_string()
            .contains("/does/not/exist can't be read"),
        "{missing}"
    );
    let large = format!("{SOUND}# {}", "x".repeat(300 << 10));
    let large = load(&[("a.toml", &large)]).unwrap_err();
    assert!(
        large
            .to_string()
            .ends_with("a.toml is too large: 256 KiB at most"),
        "{large}"
    );
}

#[test]
fn near_names_are_offered() {
    let near = |name: &str| Catalogue::builtin().near(name);
    assert_eq!(near("gema-3-1b")[0], "gemma-3-1b");
    assert_eq!(near("qwen2.5-1.5")[0], "qwen2.5-1.5b");
    assert!(near("smollm2").is_empty() || near("smollm2").len() <= MOST_NEAR);
    assert!(near("completely different").is_empty());
    assert!(near(&"x".repeat(1 << 20)).is_empty());
    assert!(near("").is_empty());
}

#[test]
fn distances() {
    let table = [
        ("", "", 0),
        ("a", "", 1),
        ("", "ab", 2),
        ("kitten", "sitting", 3),
        ("é", "e", 1),
    ];
    for (a, b, expected) in table {
        assert_eq!(
            (distance(a, b), distance(b, a)),
            (expected, expected),
            "{a} {b}"
        );
    }
}
