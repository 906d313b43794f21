//! Real chat templates give, byte for byte, what the publishers' own library gives.
//!
//! `tools/render_templates.py` made the expected texts with that library's engine, and `make test` checks that they are what
//! it makes; run it again after changing `tests/fixtures/templates/chats.json`.

#[path = "support/gguf.rs"]
mod gguf;
#[path = "support/models.rs"]
mod models;
#[path = "support/vocab.rs"]
#[expect(dead_code, reason = "other tests ask it for more")]
mod vocab;

use models::test_model;
use pocket_llm::engine::{Message, Prompt, Role, Token, Tools};
use pocket_llm::worker::decoder::Vocab;
use pocket_llm::worker::prompt::{PromptError, Template};
use pocket_llm::worker::text::Think;
use pocket_llm::worker::tools::{Key, Syntax};
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

/// A chat, with tools or without.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Chat {
    Plain(Vec<Message>),
    WithTools {
        messages: Vec<Message>,
        tools: Option<Tools>,
    },
}

/// What a model's template is like.
struct Model {
    /// How calls are written, if it knows tools.
    tools: Option<Syntax>,
    thinks: bool,
    thinking: Think,
}

const PLAIN: Model = Model {
    tools: None,
    thinks: false,
    thinking: Think::Off,
};

#[test]
fn gemma_3() {
    let vocab = from_config(
        "gemma3/tokenizer_config.json",
        &["<bos>", "<start_of_turn>", "<end_of_turn>"],
    );
    assert_renders_as_expected(&vocab, "gemma3.json", &PLAIN);
}

#[test]
fn qwen_2_5() {
    let vocab = from_config("qwen2.5/tokenizer_config.json", &CHATML);
    let model = Model {
        tools: Some(Syntax::Tagged),
        ..PLAIN
    };
    assert_renders_as_expected(&vocab, "qwen2.5.json", &model);
}

#[test]
fn qwen_3() {
    let vocab = from_config("qwen3/tokenizer_config.json", &CHATML);
    let model = Model {
        tools: Some(Syntax::Tagged),
        thinks: true,
        thinking: Think::Watch,
    };
    assert_renders_as_expected(&vocab, "qwen3.json", &model);
}

#[test]
fn llama_3_2() {
    let controls = [
        "<|begin_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ];
    let vocab = from_config("llama3.2/tokenizer_config.json", &controls);
    let model = Model {
        tools: Some(Syntax::Bare(Key::Parameters)),
        ..PLAIN
    };
    assert_renders_as_expected(&vocab, "llama3.2.json", &model);
}

#[test]
fn deepseek_r1() {
    let controls = [
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜User｜>",
        "<｜Assistant｜>",
    ];
    let template = read("deepseek-r1.jinja");
    let mut vocab = ByteVocab::new(&controls).with_template(&template);
    (vocab.bos, vocab.eos) = (Some(controls[0].into()), Some(controls[1].into()));
    let model = Model {
        tools: None,
        thinks: true,
        thinking: Think::Inside,
    };
    assert_renders_as_expected(&vocab, "deepseek-r1.json", &model);
}

const CHATML: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

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
    let mut vocab = ByteVocab::new(&CHATML).with_template(template);
    (vocab.bos, vocab.eos) = (special("bos"), special("eos"));
    assert_renders_as_expected(&vocab, "smollm2.json", &PLAIN);
}

/// Renders every chat, and checks on the way that the vocabulary's control texts come out as tokens.
fn assert_renders_as_expected(vocab: &ByteVocab, file: &str, model: &Model) {
    let chats: BTreeMap<String, Chat> = fixture("chats.json");
    let expected: BTreeMap<String, Expected> = fixture(file);
    assert_eq!(
        chats.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "make {file} anew"
    );
    let (template, warning) = Template::new(vocab, None);
    assert_eq!((template.source(), warning), ("model", None));
    assert_eq!(template.knows_tools(), model.tools.is_some());
    assert_eq!(template.syntax(), model.tools.unwrap_or_default());
    assert_eq!(template.thinks(), model.thinks);
    for (name, chat) in chats {
        let (messages, tools) = match chat {
            Chat::Plain(messages) => (messages, None),
            Chat::WithTools { messages, tools } => (messages, tools),
        };
        let rendered = template.render(&messages, tools.as_ref());
        match &expected[&name] {
            Expected::Text(text) => {
                let rendered = rendered.expect(&name);
                let text = with_dates(text);
                assert_eq!(rendered.text(), text, "{name}");
                // A result leaves DeepSeek's model where it was, without a place to think.
                let thinking = if text.trim_end().ends_with("<think>") || !model.thinks {
                    model.thinking
                } else {
                    Think::Watch
                };
                assert_eq!(rendered.thinking(), thinking, "{name}");
                let prepared = template
                    .prepare(
                        vocab,
                        &Prompt::Messages(messages),
                        tools.as_ref(),
                        1_000_000,
                    )
                    .expect(&name);
                assert_eq!(prepared.tokens, whole(vocab, &text), "{name}");
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

/// Puts today's date where an expected text says so.
fn with_dates(text: &str) -> String {
    const FORMAT: &str = "%d %b %Y";
    let template = format!("{{{{ strftime_now('{FORMAT}') }}}}{{{{ messages[0].content }}}}");
    let vocab = ByteVocab::new(&CHATML).with_template(&template);
    let rendered = Template::new(&vocab, None)
        .0
        .render(&[Message::new(Role::User, "")], None);
    let today = rendered.expect("the template works");
    text.replace(&format!("⟦{FORMAT}⟧"), &today.text())
}

/// The tokens of a text without control texts in its messages, as llama.cpp tokenises it. All these templates write the
/// begin-of-sequence token themselves, if there is one.
fn whole(vocab: &ByteVocab, text: &str) -> Vec<Token> {
    vocab.tokenize(text, false, true)
}

fn fixture<T: for<'a> Deserialize<'a>>(file: &str) -> T {
    serde_json::from_str(&read(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/templates")
        .join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
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
