//! The model's vocabulary. The binding crashes on token ids that do not exist, so ids are checked here.

use crate::engine::Token;
use crate::worker::decoder::{LoadError, Vocab};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;
use std::sync::Arc;

/// Shares the model with the decoder: the vocabulary does not change and may be read from any thread.
pub(super) struct LlamaVocabulary {
    model: Arc<LlamaModel>,
    size: u32,
    control: Vec<String>,
    bos: Option<String>,
    eos: Option<String>,
    adds_bos: bool,
    template: Option<String>,
    longest: usize,
}

impl LlamaVocabulary {
    pub(super) fn new(model: &Arc<LlamaModel>) -> Result<Self, LoadError> {
        let vocab = model.vocab();
        let size = u32::try_from(vocab.n_tokens()).unwrap_or(0);
        if size == 0 {
            return Err(LoadError(
                "the file has no vocabulary: it is not a language model".into(),
            ));
        }
        let text = |token: LlamaToken| -> Option<String> {
            let known = u32::try_from(token.0).is_ok_and(|id| id < size);
            known
                .then(|| vocab.text(token))?
                .map(|text| text.to_string_lossy().into_owned())
        };
        let mut control = Vec::new();
        let mut longest = 1;
        let mut bytes = Vec::new();
        for token in vocab.tokens() {
            let attributes = vocab.attr(token);
            if attributes.contains(LlamaTokenAttr::Control)
                || attributes.contains(LlamaTokenAttr::Unknown)
            {
                control.extend(text(token).filter(|text| !text.is_empty()));
            } else {
                bytes.clear();
                vocab.token_to_piece_into(token, &mut bytes, false, None);
                longest = longest.max(bytes.len());
            }
        }
        let (bos, eos) = (text(vocab.bos()), text(vocab.eos()));
        let adds_bos = vocab.should_add_bos() && bos.is_some();
        // An override for a named template is a use after free in the binding; the default one is read like any key.
        let template = model
            .meta_val_str("tokenizer.chat_template")
            .ok()
            .filter(|text| !text.is_empty());
        Ok(Self {
            size,
            control,
            bos,
            eos,
            adds_bos,
            template,
            longest,
            model: Arc::clone(model),
        })
    }

    fn known(&self, token: Token) -> Option<LlamaToken> {
        i32::try_from(token.0)
            .ok()
            .filter(|_| token.0 < self.size)
            .map(LlamaToken::new)
    }
}

impl Vocab for LlamaVocabulary {
    fn size(&self) -> u32 {
        self.size
    }

    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<Token> {
        let tokens = self
            .model
            .vocab()
            .tokenize(text.as_bytes(), add_special, parse_special);
        tokens
            .into_iter()
            .filter_map(|token| u32::try_from(token.0).ok().map(Token))
            .collect()
    }

    fn append_bytes(&self, token: Token, bytes: &mut Vec<u8>) {
        if let Some(token) = self.known(token) {
            self.model
                .vocab()
                .token_to_piece_into(token, bytes, false, None);
        }
    }

    fn is_end(&self, token: Token) -> bool {
        self.known(token)
            .is_some_and(|token| self.model.vocab().is_eog(token))
    }

    fn control_texts(&self) -> &[String] {
        &self.control
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
        self.longest
    }
}
