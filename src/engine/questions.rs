//! What else can be asked of a loaded model besides an answer, and what it says to that.

use super::{Message, Prompt, Request, Token, Tools};
use serde::{Deserialize, Serialize};

/// Something that needs the model, but no sampling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// The tokens of a text.
    Tokenize {
        /// The text.
        text: String,
        /// Whether the model's begin-of-sequence token comes first, if it wants one.
        add_special: bool,
        /// Whether names of control tokens are read as those tokens.
        parse_special: bool,
    },
    /// The text of tokens.
    Detokenize {
        /// The tokens.
        tokens: Vec<Token>,
    },
    /// The prompt that a chat makes.
    Render {
        /// The chat.
        messages: Vec<Message>,
        /// Tools that it describes.
        tools: Option<Tools>,
    },
    /// The embedding of each text or list of tokens ([`Prompt::Messages`] is refused).
    Embed {
        /// Who asks: clients take turns.
        client: String,
        /// At most [`Question::MOST_INPUTS`] of them.
        inputs: Vec<Prompt>,
        /// Milliseconds from submission within which the answer must be there.
        deadline_ms: Option<u64>,
    },
}

impl Question {
    /// Inputs of one [`Question::Embed`].
    pub const MOST_INPUTS: usize = 2048;
}

/// The answer to a [`Question`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Question::Tokenize`]: each token with its bytes.
    Tokens(Vec<(Token, Vec<u8>)>),
    /// To [`Question::Detokenize`] and [`Question::Render`].
    Text(String),
    /// To [`Question::Embed`].
    Embeddings(Embedded),
}

/// Embeddings, in the order of the inputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Embedded {
    /// One of length 1 for each input, `embedding_width` numbers each.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all inputs.
    pub prompt_tokens: u32,
}

/// How a text's embedding is made of those of its tokens (`{architecture}.pooling_type` of the file).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first one's.
    Cls,
    /// The last one's, which has seen all others: what a model that only looks back has to offer.
    #[default]
    Last,
}

/// What a handle gives its worker to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// An answer.
    Generate(Box<Request>),
    /// A question.
    Ask(Box<Question>),
}

impl Work {
    /// Milliseconds from submission within which it must end.
    pub fn deadline_ms(&self) -> Option<u64> {
        match self {
            Self::Generate(request) => request.deadline_ms,
            Self::Ask(question) => match **question {
                Question::Embed { deadline_ms, .. } => deadline_ms,
                _ => None,
            },
        }
    }

    /// As [`Work::deadline_ms`], to be changed.
    pub fn deadline_ms_mut(&mut self) -> Option<&mut u64> {
        match self {
            Self::Generate(request) => request.deadline_ms.as_mut(),
            Self::Ask(question) => match &mut **question {
                Question::Embed { deadline_ms, .. } => deadline_ms.as_mut(),
                _ => None,
            },
        }
    }
}
