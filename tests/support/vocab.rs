//! A vocabulary for tests: a token for each byte, then one for each control text. It reads control texts as llama.cpp
//! does: the longest of all first, wherever it is.

use pocket_llm::engine::Token;
use pocket_llm::worker::decoder::Vocab;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByteVocab {
    pub(crate) controls: Vec<String>,
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) adds_bos: bool,
    pub(crate) template: Option<String>,
}

impl ByteVocab {
    pub(crate) fn new(controls: &[&str]) -> Self {
        Self {
            controls: controls.iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }

    pub(crate) fn with_template(mut self, template: &str) -> Self {
        self.template = Some(template.into());
        self
    }

    pub(crate) fn with_bos(mut self, bos: &str) -> Self {
        self.bos = Some(bos.into());
        self.adds_bos = true;
        self
    }

    /// The names of the control tokens among `tokens`.
    pub(crate) fn control_names<'a>(&'a self, tokens: &'a [Token]) -> Vec<&'a str> {
        tokens
            .iter()
            .filter_map(|token| self.controls.get((token.0 as usize).checked_sub(256)?))
            .map(String::as_str)
            .collect()
    }

    fn id(&self, control: &str) -> Token {
        let index = self
            .controls
            .iter()
            .position(|other| other == control)
            .expect("it is a control text");
        Token(u32::try_from(256 + index).expect("there are few"))
    }

    fn split(&self, text: &str, by_length: &[&str], tokens: &mut Vec<Token>) {
        let Some((control, shorter)) = by_length.split_first() else {
            tokens.extend(text.bytes().map(|byte| Token(byte.into())));
            return;
        };
        for (index, part) in text.split(control).enumerate() {
            if index > 0 {
                tokens.push(self.id(control));
            }
            self.split(part, shorter, tokens);
        }
    }
}

/// What the tokens other than control tokens say, with a `\u{1}` for each of those.
pub(crate) fn plain_text(tokens: &[Token]) -> String {
    let bytes = tokens
        .iter()
        .map(|token| u8::try_from(token.0).unwrap_or(1))
        .collect();
    String::from_utf8(bytes).expect("the tokens came from text")
}

impl Vocab for ByteVocab {
    fn size(&self) -> u32 {
        u32::try_from(256 + self.controls.len()).expect("there are few")
    }

    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<Token> {
        let mut tokens = Vec::new();
        if add_special && self.adds_bos {
            tokens.extend(self.bos.as_deref().map(|bos| self.id(bos)));
        }
        let mut by_length: Vec<&str> = Vec::new();
        if parse_special {
            by_length.extend(self.controls.iter().map(String::as_str));
            by_length.sort_by_key(|control| std::cmp::Reverse(control.len()));
        }
        self.split(text, &by_length, &mut tokens);
        tokens
    }

    fn append_bytes(&self, token: Token, bytes: &mut Vec<u8>) {
        bytes.extend(u8::try_from(token.0).ok());
    }

    fn is_end(&self, token: Token) -> bool {
        self.eos.as_deref().is_some_and(|eos| self.id(eos) == token)
    }

    fn control_texts(&self) -> &[String] {
        &self.controls
    }

    fn bos(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    fn eos(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    fn chat_template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    fn longest_token_bytes(&self) -> usize {
        1
    }
}
