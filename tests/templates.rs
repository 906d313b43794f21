//! Real chat templates give, byte for byte, what the publishers' own library gives.
//!
//! `tools/render_templates.py` made the expected texts with that library's engine; run it again after changing
//! `tests/fixtures/templates/chats.json`.

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/models.rs"]
mod models;
#[path = "support/vocab.rs"]
#[expect(dead_code, reason = "other tests ask it for more")]
mod vocab;

use models::test_model;
use pocket_llm::engine::{Message, Prompt, Token};
use pocket_llm::worker::decoder::Vocab;
use pocket_llm::worker::prompt::{PromptError, Template};
use pocket_llm::worker::text::Think;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use vocab::ByteVocab;

/// What the library makes of a chat.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expected {
    Text(String),
    Refused(String),
}

#[test]
fn gemma_3() {
    let vocab = from_config(
        "gemma3/tokenizer_config.json",
        &["<bos>", "<start_of_turn>", "<end_of_turn>"],
    );
    assert_renders_as_expected(&vocab, "gemma3.json");
}

#[test]
fn qwen_2_5() {
    let vocab = from_config(
        "qwen2.5/tokenizer_config.json",
        &["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    );
    assert_renders_as_expected(&vocab, "qwen2.5.json");
}

#[test]
fn smollm_2() {
    let metadata =
        gguf::metadata(&test_model("SmolLM2-135M-Instruct.Q4_1.gguf")).expect("the file is whole");
    let Some(gguf::Value::Texts(tokens)) = metadata.get("tokenizer.ggml.tokens") else {
        panic!("no vocabulary")
    };
    let special = |name: &str| match metadata.get(&format!("tokenizer.ggml.{name}_token_id")) {
        Some(gguf::Value::Number(id)) => Some(tokens[*id as usize].clone()),
        _ => None,
    };
    let Some(gguf::Value::Text(template)) = metadata.get("tokenizer.chat_template") else {
        panic!("no template")
    };
    let mut vocab =
        ByteVocab::new(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]).with_template(template);
    (vocab.bos, vocab.eos) = (special("bos"), special("eos"));
    assert_renders_as_expected(&vocab, "smollm2.json");
}

/// Renders every chat, and checks on the way that the vocabulary's control texts come out as tokens.
fn assert_renders_as_expected(vocab: &ByteVocab, file: &str) {
    let chats: BTreeMap<String, Vec<Message>> = fixture("chats.json");
    let expected: BTreeMap<String, Expected> = fixture(file);
    assert_eq!(
        chats.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "make {file} anew"
    );
    let (template, warning) = Template::new(vocab, None);
    assert_eq!((template.source(), warning), ("model", None));
    for (name, messages) in chats {
        let rendered = template.render(&messages, None);
        match &expected[&name] {
            Expected::Text(text) => {
                let rendered = rendered.expect(&name);
                assert_eq!(&rendered.text(), text, "{name}");
                assert_eq!(rendered.thinking(), Think::Off, "{name}");
                let prepared = template
                    .prepare(vocab, &Prompt::Messages(messages), None, 100_000)
                    .expect(&name);
                assert_eq!(prepared.tokens, whole(vocab, text), "{name}");
                assert_eq!(prepared.extra_stops, Vec::<String>::new(), "{name}");
            }
            Expected::Refused(reason) => {
                let error = PromptError::Template(format!(
                    "the model's chat template refuses these messages: {reason}"
                ));
                assert_eq!(rendered.expect_err(&name), error, "{name}");
            }
        }
    }
}

/// The tokens of a text without control texts in its messages, as llama.cpp tokenises it. All these templates write the
/// begin-of-sequence token themselves, if there is one.
fn whole(vocab: &ByteVocab, text: &str) -> Vec<Token> {
    vocab.tokenize(text, false, true)
}

fn fixture<T: for<'a> Deserialize<'a>>(file: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/templates")
        .join(file);
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The template and the special tokens of a `tokenizer_config.json`.
fn from_config(file: &str, controls: &[&str]) -> ByteVocab {
    let text = std::fs::read_to_string(test_model(file)).expect("the file is readable");
    let config: serde_json::Value = serde_json::from_str(&text).expect("the file is JSON");
    let text = |key: &str| config[key].as_str().map(str::to_owned);
    ByteVocab {
        bos: text("bos_token"),
        eos: text("eos_token"),
        adds_bos: config["add_bos_token"] == true,
        template: text("chat_template"),
        ..ByteVocab::new(controls)
    }
}
