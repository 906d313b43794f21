//! Messages to tokens: the model's own chat template makes the text, the vocabulary makes the tokens.
//!
//! Owns the compiled template and the search for control texts; knows nothing of sequences, queues or sampling. It runs
//! beside the engine thread, so everything here is read-only after loading. It must never let text that a client wrote
//! become a control token, and never spend more than a bounded time or memory on a template or a prompt.
//!
//! - `chat` has the messages and tools as a template takes them, and brings them into forms for templates that take less.
//! - `describe` tells models of tools whose template knows none.
//! - `knows` finds out what a template takes.
//! - `jinja` is the environment that the publishers write their templates for.
//! - `control` tells a template's control texts from the same letters in a message.
//! - `fallback` has the formats for models without a template that works.

mod chat;
mod control;
mod describe;
mod fallback;
mod jinja;
mod json;
mod knows;
mod strftime;

use crate::engine::{Message, Prompt, Role, Token, Tools};
use crate::worker::decoder::Vocab;
use crate::worker::text::Think;
use crate::worker::tools::Syntax;
use chat::{Chat, Turn};
use control::ControlTexts;
use fallback::Fallback;
use jinja::{Failure, Jinja};
use knows::Knows;
use std::borrow::Cow;

/// Opens a model's reasoning.
const THINK: &str = "<think>";
/// Closes it.
const THINK_END: &str = "</think>";
/// What a template must show of a conversation that consists of this.
const PROBE: &str = "Hello";
/// Noncharacters: Unicode keeps them for use inside a program, so text has none of them, let alone all 32.
const MARKERS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// Why messages or text make no prompt. The text is written for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// More tokens than the limit.
    #[error("the prompt has {prompt_tokens} tokens or more, which is too many")]
    TooLong {
        /// Tokens of the prompt; a lower bound where it was refused without tokenising.
        prompt_tokens: u32,
    },
    /// Nothing to continue.
    #[error("there is nothing to continue: send at least one message, or some text")]
    Empty,
    /// The chat template refuses these messages, or fails.
    #[error("{0}")]
    Template(String),
}

/// A prompt that is ready for the engine thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The whole prompt, the begin-of-sequence token included.
    pub tokens: Vec<Token>,
    /// Where the answer begins.
    pub thinking: Think,
    /// Strings that end the answer besides those of the request: the prompt format has no token for it.
    pub extra_stops: Vec<String>,
}

/// Messages as the model reads them, with the clients' control texts still marked.
#[derive(Clone, Debug)]
pub struct Rendered {
    text: String,
    marker: Option<char>,
    thinking: Think,
}

impl Rendered {
    /// The prompt's text.
    pub fn text(&self) -> Cow<'_, str> {
        match self.marker {
            Some(marker) if self.text.contains(marker) => self.text.replace(marker, "").into(),
            _ => Cow::Borrowed(&self.text),
        }
    }

    /// Where the answer begins.
    pub fn thinking(&self) -> Think {
        self.thinking
    }
}

/// A model's chat template, compiled.
pub struct Template {
    jinja: Jinja,
    source: &'static str,
    knows: Knows,
    thinks: bool,
    opens_thinking: bool,
    extra_stops: Vec<String>,
    controls: ControlTexts,
}

impl Template {
    /// Compiles the template that is to be used: `configured` if there is one, else the model's own. A model without one gets
    /// the format that its control tokens are made for, and so does a model whose template does not work; the second value
    /// says why, for the log.
    pub fn new(vocab: &dyn Vocab, configured: Option<&str>) -> (Self, Option<String>) {
        let controls = ControlTexts::new(vocab.control_texts());
        let sources = [("configured", configured), ("model", vocab.chat_template())];
        let mut warning = None;
        for (name, source) in sources {
            let Some(source) = source else { continue };
            match compile(source, vocab) {
                Ok(jinja) => {
                    let template = Self {
                        knows: Knows::learn(&jinja),
                        jinja,
                        source: name,
                        thinks: source.contains(THINK_END),
                        opens_thinking: source.contains(THINK),
                        extra_stops: Vec::new(),
                        controls,
                    };
                    return (template, warning);
                }
                Err(reason) => warning = Some(format!("{name}: {reason}")),
            }
        }
        (Self::fallback(vocab, controls), warning)
    }

    fn fallback(vocab: &dyn Vocab, controls: ControlTexts) -> Self {
        let fallback = Fallback::choose(vocab.control_texts());
        let jinja = Jinja::compile(fallback.template, vocab.bos(), vocab.eos())
            .expect("our own templates compile: a test compiles them all");
        Self {
            knows: Knows::learn(&jinja),
            jinja,
            source: fallback.name,
            thinks: false,
            opens_thinking: false,
            extra_stops: fallback.stops.iter().map(ToString::to_string).collect(),
            controls,
        }
    }

    /// Where the prompt format comes from: `model`, `configured`, or `fallback:` and its name.
    pub fn source(&self) -> &str {
        self.source
    }

    /// Whether the template marks reasoning.
    pub fn thinks(&self) -> bool {
        self.thinks
    }

    /// Whether the template knows tools; where it does not, they are described in the system message.
    pub fn knows_tools(&self) -> bool {
        self.knows.tools.is_some()
    }

    /// How the model writes calls.
    pub fn syntax(&self) -> Syntax {
        self.knows.tools.unwrap_or_default()
    }

    /// Renders a chat up to the point where the model speaks.
    ///
    /// A template that has no system role, or knows no tools, gets the chat in a form that it takes. One that refuses it
    /// gets it once more with user and assistant in turns.
    ///
    /// Control texts in a message are broken up by a marker, so that the template's own can be told from them. Text could
    /// also become a control text by joining what is around it: a template may cut a part out of a message, or put a
    /// message right behind half a control text. So the chat is rendered a second time with marks wherever a control text
    /// could begin or end in a message; as long as both have the same control texts, all of them are the template's. If
    /// they do not, the second rendering is the safe one, though the template may have seen its messages less clearly.
    pub fn render(
        &self,
        messages: &[Message],
        tools: Option<&Tools>,
    ) -> Result<Rendered, PromptError> {
        if messages.is_empty() {
            return Err(PromptError::Empty);
        }
        let chat = Chat::new(messages, tools)?;
        if !chat.any(|text| self.controls.touches(text)) {
            return Ok(self.rendered(self.render_chat(chat)?, None));
        }
        let marker = free_marker(&chat)?;
        let plain = self.render_chat(chat.map(|text| self.controls.break_up(text, marker)))?;
        let laced = self.render_chat(chat.map(|text| self.controls.lace(text, marker)))?;
        let same = self
            .controls
            .found(&plain, marker)
            .eq(self.controls.found(&laced, marker));
        Ok(self.rendered(if same { plain } else { laced }, Some(marker)))
    }

    fn render_chat(&self, mut chat: Chat) -> Result<String, PromptError> {
        if !self.knows_tools() {
            chat = chat.described()?;
        }
        if !self.knows.system {
            chat = chat.without_system(false);
        }
        match self.jinja.render(&chat) {
            Err(Failure::Refused(reason)) => {
                let in_turns = chat.clone().in_turns();
                let refused = Failure::Refused(reason);
                if in_turns == chat {
                    return Err(refused.into());
                }
                // What they sent was refused for the first reason.
                self.jinja.render(&in_turns).map_err(|_| refused.into())
            }
            result => Ok(result?),
        }
    }

    fn rendered(&self, text: String, marker: Option<char>) -> Rendered {
        let thinking = if self.opens_thinking && text.trim_end().ends_with(THINK) {
            Think::Inside
        } else if self.thinks {
            Think::Watch
        } else {
            Think::Off
        };
        Rendered {
            text,
            marker,
            thinking,
        }
    }

    /// Makes a prompt's tokens, at most `limit` of them.
    pub fn prepare(
        &self,
        vocab: &dyn Vocab,
        prompt: &Prompt,
        tools: Option<&Tools>,
        limit: u32,
    ) -> Result<Prepared, PromptError> {
        let prepared = match prompt {
            Prompt::Messages(messages) => {
                // Every message costs a token at least. A template may leave some text out, but not nearly all of it, so
                // text that is too long by far need not be copied and rendered first.
                check_length(messages.len(), limit)?;
                let calls = messages.iter().flat_map(|message| &message.tool_calls);
                let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
                let in_calls: usize = calls.map(|call| call.arguments.len()).sum();
                self.check_bytes(vocab, bytes + in_calls, limit)?;
                let rendered = self.render(messages, tools)?;
                Prepared {
                    tokens: self.tokenize(vocab, &rendered, limit)?,
                    thinking: rendered.thinking,
                    extra_stops: self.extra_stops.clone(),
                }
            }
            Prompt::Text(text) => {
                self.check_bytes(vocab, text.len(), limit)?;
                let mut tokens = opening(vocab);
                tokens.extend(vocab.tokenize(text, false, false));
                if tokens.is_empty() {
                    tokens = start(vocab);
                }
                Prepared {
                    tokens,
                    thinking: Think::Off,
                    extra_stops: Vec::new(),
                }
            }
            Prompt::Tokens(tokens) => Prepared {
                tokens: tokens.clone(),
                thinking: Think::Off,
                extra_stops: Vec::new(),
            },
        };
        if prepared.tokens.is_empty() {
            return Err(PromptError::Empty);
        }
        check_length(prepared.tokens.len(), limit)?;
        Ok(prepared)
    }

    /// Tokenises piece by piece only where a message holds a control text; all other text is tokenised as llama.cpp does it.
    fn tokenize(
        &self,
        vocab: &dyn Vocab,
        rendered: &Rendered,
        limit: u32,
    ) -> Result<Vec<Token>, PromptError> {
        let mut text = rendered.text.as_str();
        if vocab.adds_bos() {
            // Most templates write the token themselves: one is enough.
            text = vocab
                .bos()
                .and_then(|bos| text.strip_prefix(bos))
                .unwrap_or(text);
        }
        self.check_bytes(vocab, text.len(), limit)?;
        let mut tokens = opening(vocab);
        for piece in self.controls.pieces(text, rendered.marker) {
            tokens.extend(vocab.tokenize(&piece.text, false, piece.special));
        }
        Ok(tokens)
    }

    /// Refuses what can't fit without tokenising it, which would take seconds for megabytes.
    fn check_bytes(&self, vocab: &dyn Vocab, bytes: usize, limit: u32) -> Result<(), PromptError> {
        let longest = vocab
            .longest_token_bytes()
            .max(self.controls.longest())
            .max(1);
        check_length(bytes.div_ceil(longest), limit)
    }
}

impl From<Failure> for PromptError {
    fn from(failure: Failure) -> Self {
        Self::Template(match failure {
            Failure::Refused(reason) => {
                format!("the model's chat template refuses these messages: {reason}")
            }
            Failure::Failed(reason) => {
                format!("the model's chat template fails on these messages: {reason}")
            }
        })
    }
}

/// Compiles a template and tries it, because much of what a template can get wrong shows only when it runs.
fn compile(source: &str, vocab: &dyn Vocab) -> Result<Jinja, String> {
    let jinja = Jinja::compile(source, vocab.bos(), vocab.eos())
        .map_err(|error| format!("the model's chat template does not compile: {error}"))?;
    let probe = Chat::of(vec![Turn::new(Role::User, PROBE)]);
    match jinja.render(&probe) {
        Ok(text) if text.contains(PROBE) => Ok(jinja),
        Ok(_) => Err("the model's chat template leaves a message's text out".into()),
        // It may want a system message first, say; whoever asks is told.
        Err(Failure::Refused(_)) => Ok(jinja),
        Err(Failure::Failed(error)) => {
            Err(format!("the model's chat template does not run: {error}"))
        }
    }
}

/// The begin-of-sequence token by its id, if the model wants it. Asking for special tokens around the text itself would
/// also end it, in a vocabulary that adds an end-of-sequence token.
pub(super) fn opening(vocab: &dyn Vocab) -> Vec<Token> {
    let mut tokens = if vocab.adds_bos() {
        vocab.tokenize("", true, false)
    } else {
        Vec::new()
    };
    tokens.truncate(1);
    tokens
}

/// What a text begins behind where there is none yet: the begin-of-sequence token, also of a model that does not want it before a
/// prompt, or the end of another text.
fn start(vocab: &dyn Vocab) -> Vec<Token> {
    let marks = [vocab.bos(), vocab.eos()];
    let mut tokens = marks.into_iter().flatten().map(|mark| {
        let mut tokens = vocab.tokenize(mark, false, true);
        tokens.truncate(1);
        tokens
    });
    tokens.find(|tokens| !tokens.is_empty()).unwrap_or_default()
}

fn check_length(tokens: usize, limit: u32) -> Result<(), PromptError> {
    let prompt_tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
    if prompt_tokens > limit {
        return Err(PromptError::TooLong { prompt_tokens });
    }
    Ok(())
}

/// A character that no text of the chat has.
fn free_marker(chat: &Chat) -> Result<char, PromptError> {
    MARKERS
        .into_iter()
        .find(|&marker| !chat.any(|text| text.contains(marker)))
        .ok_or_else(|| {
            PromptError::Template("the messages use up all of Unicode's noncharacters".into())
        })
}
