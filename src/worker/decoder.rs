//! The seam: what a model backend implements. Rows go in, logits come out, and KV is moved about.
//!
//! Sampling, stop rules, scheduling and the cache's book-keeping live above it, so that the tests' scripted
//! decoder drives all of that too. The llama.cpp side of it is `llama/`.

use crate::engine::{ModelInfo, Token, WorkerConfig};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A sequence's number, below [`ModelInfo::sequences`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeqId(pub u32);

/// A token's place in its sequence, from 0.
pub type Position = u32;

/// One token to be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The sequence it belongs to.
    pub seq: SeqId,
    /// Its place there: always the number of tokens that the sequence holds already.
    pub position: Position,
    /// The token.
    pub token: Token,
    /// Whether the logits after it are wanted.
    pub logits: bool,
}

/// A copy of what a sequence held, kept by its decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StateId(pub u64);

/// A step that did not happen. The sequences of its rows are unusable until they are cleared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("decoding failed: {0}")]
pub struct StepError(pub String);

/// Embeddings that can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmbedError {
    /// There is no memory for it; the text says how much is missing.
    #[error("{0}")]
    NoRoom(String),
    /// Decoding failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// A model that can't be loaded: one sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// Turns text to tokens and back. Shared with the threads that tokenise: they must not wait for decoding.
pub trait Vocab: Send + Sync {
    /// Number of tokens.
    fn size(&self) -> u32;
    /// Tokenises; `add_special` adds what the model wants around a whole prompt (begin of sequence), `parse_special`
    /// reads the names of control tokens as those tokens instead of as text.
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<Token>;
    /// Appends the token's bytes; control tokens have none.
    fn append_bytes(&self, token: Token, bytes: &mut Vec<u8>);
    /// Whether the token ends a generation.
    fn is_end(&self, token: Token) -> bool;
    /// The texts of all control tokens, such as `<|im_end|>`.
    fn control_texts(&self) -> &[String];
    /// Text of the begin-of-sequence token, if there is one.
    fn bos(&self) -> Option<&str>;
    /// Text of the end-of-sequence token, if there is one.
    fn eos(&self) -> Option<&str>;
    /// Whether `tokenize` with `add_special` puts the begin-of-sequence token first.
    fn adds_bos(&self) -> bool;
    /// The model's chat template (Jinja), if its file has one.
    fn chat_template(&self) -> Option<&str>;
    /// The most bytes that one token stands for.
    fn longest_token_bytes(&self) -> usize;
}

/// Decodes rows. Owned by the engine thread; need not be `Send`.
pub trait Decoder {
    /// Decodes `rows` and calls `logits` with the index and the logits (vocabulary-sized) of each row that asked.
    fn step(
        &mut self,
        rows: &[Row],
        logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), StepError>;
    /// The lengths to which [`Decoder::truncate`] may cut the sequence such that what follows is exact. A full
    /// cache gives `0..=held`; a sliding window forgets, and gives a shorter range.
    fn cuttable(&self, seq: SeqId) -> RangeInclusive<Position>;
    /// Forgets everything from position `to` on.
    fn truncate(&mut self, seq: SeqId, to: Position);
    /// Whether there are lengths to which a sequence can't be cut once it is longer (sliding windows, recurrent states).
    fn forgets(&self) -> bool;
    /// Whether rows of the last step can be taken back: what drafts need.
    fn takes_back(&self) -> bool;
    /// Bytes that a state of the sequence takes now.
    fn state_bytes(&self, seq: SeqId) -> u64;
    /// What a token takes of a state, about; 0 if nobody knows.
    fn bytes_per_token(&self) -> u64;
    /// Copies what the sequence holds aside; `None` if that can't be done.
    fn save(&mut self, seq: SeqId) -> Option<StateId>;
    /// Gives a sequence what another one, or itself, held when it was saved. `false` leaves it empty.
    fn restore(&mut self, state: StateId, seq: SeqId) -> bool;
    /// Drops a state.
    fn discard(&mut self, state: StateId);
    /// Decodes the next tokens of a text apart from all sequences, and calls `each` with the embedding of each of them, in order.
    /// Position 0 begins a new text. What it needs of memory is taken at the first call.
    fn embed(
        &mut self,
        tokens: &[Token],
        position: Position,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<(), EmbedError>;
    /// Bytes that [`Decoder::embed`] has taken and not given back.
    fn embedding_bytes(&self) -> u64 {
        0
    }
    /// Gives back what [`Decoder::embed`] took.
    fn end_embedding(&mut self);
    /// Rows that [`Decoder::step`] added since the decoder was made, because a step was faster with them.
    fn padding_rows(&self) -> u64 {
        0
    }
    /// Threads that the last step had less than planned, because its cores were taken.
    fn threads_left_out(&self) -> u32 {
        0
    }
    /// Forgets the sequence.
    fn clear(&mut self, seq: SeqId) {
        self.truncate(seq, 0);
    }
}

/// A loaded model, lent to the loop.
pub struct Loaded<'a> {
    /// What it is.
    pub info: ModelInfo,
    /// Its vocabulary.
    pub vocab: Arc<dyn Vocab>,
    /// Its decoder.
    pub decoder: &'a mut dyn Decoder,
    /// A smaller model that guesses what it says next.
    pub draft: Option<Draft<'a>>,
}

/// A smaller model with the same vocabulary and as many sequences, each as long.
pub struct Draft<'a> {
    /// Its decoder.
    pub decoder: &'a mut dyn Decoder,
    /// Rows of one of its steps at most.
    pub batch_size: u32,
    /// Bytes of its weights for each byte of the large model's: about what its steps take of time.
    pub weight: f32,
}

/// Loads a model and lends it to `serve`, all on the calling thread, so that a decoder may borrow from its model.
pub trait Backend {
    /// `progress` gets the loaded fraction and answers whether to go on.
    fn run(
        &self,
        config: &WorkerConfig,
        progress: Box<dyn FnMut(f32) -> bool>,
        serve: &mut dyn FnMut(Loaded<'_>),
    ) -> Result<(), LoadError>;
}
