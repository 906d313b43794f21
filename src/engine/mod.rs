//! What an engine is, seen from outside: plain data and one handle.
//!
//! An engine is one loaded model that turns requests into events. `http/` and `cli/` see this module
//! and nothing of `worker/`: they hand a [`Request`] to an [`EngineHandle`] and read [`Event`]s from the
//! [`Generation`] they get back. Dropping the `Generation` is the cancel button.

pub mod wire;

mod connection;
mod formats;
mod handle;
mod launch;
mod places;
mod quarantine;
mod questions;
mod supervisor;

use crate::device::{Placement, Team};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

pub use formats::{Format, Tool, ToolCall, ToolChoice, Tools};
pub use handle::{EngineHandle, EngineOptions, EngineState, Generation, Load};
pub use launch::{Launch, Launched};
pub use places::Queued;
pub use questions::{Answer, Embedded, Pooling, Question, Work};

/// A token id of the model's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Token(pub u32);

/// Who speaks in a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Standing instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A program that the model called.
    Tool,
}

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What was said; always text, never control tokens.
    pub content: String,
    /// What the model called in this turn; for [`Role::Assistant`] only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that this turn is the result of; for [`Role::Tool`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A turn of text.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

/// What the model is to continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// A chat, rendered through the model's own template.
    Messages(Vec<Message>),
    /// Bare text, continued as it stands.
    Text(String),
    /// Tokens, continued as they stand; nothing is put before them.
    Tokens(Vec<Token>),
}

/// How a token is chosen from the logits. Neutral values switch a stage off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 is greedy; logits are divided by it after the truncating stages, as llama.cpp's chain does.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens with at least this share of the likeliest token's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides (positive) or multiplies (negative) the logits of recent tokens; 1 is off.
    pub repeat_penalty: f32,
    /// How many of the latest tokens (prompt included) the three penalties look at.
    pub repeat_last_n: u32,
    /// Subtracted from a logit once for each occurrence among the recent tokens; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once from the logits of recent tokens; 0 is off.
    pub presence_penalty: f32,
    /// Added to the logits of single tokens before everything else; −100 forbids in practice, 100 forces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logit_bias: Vec<(Token, f32)>,
    /// The same seed draws the same random number at each position.
    pub seed: u64,
}

impl Sampling {
    /// Always the likeliest token, with every stage off: where a request names nothing else.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_last_n: 64,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logit_bias: Vec::new(),
        seed: 0,
    };

    /// A seed for a request that names none. 53 bits: clients that keep numbers in a double get it back whole.
    pub fn random_seed() -> u64 {
        use std::hash::BuildHasher;
        // The standard library's hash keys are random; there is no need for more than that here.
        std::hash::RandomState::new().hash_one(0u8) >> 11
    }
}

/// One generation asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Who asks: the queue is fair between clients.
    pub client: String,
    /// What to continue.
    pub prompt: Prompt,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// The answer ends before the first of these strings; they never appear in it.
    pub stop: Vec<String>,
    /// At most this many tokens; the context's end is a limit in any case.
    pub max_tokens: Option<u32>,
    /// Goes on past end-of-generation tokens (benchmarks).
    pub ignore_eos: bool,
    /// Whether tokens that a sequence still holds may be continued instead of decoded again.
    pub cache_prompt: bool,
    /// Milliseconds from submission within which the answer must end.
    pub deadline_ms: Option<u64>,
    /// The form that the whole answer must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Programs that the model may call; for [`Prompt::Messages`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Tools>,
    /// Log-probabilities of the sampled tokens, with this many alternatives for each (0 to [`MOST_ALTERNATIVES`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u32>,
    /// Whether the answer begins with the prompt, with its log-probabilities if those are wanted.
    #[serde(default)]
    pub echo: bool,
}

/// Alternatives that can be had with each token's log-probability.
pub const MOST_ALTERNATIVES: u32 = 20;

impl Request {
    /// A greedy request with nothing else asked for.
    pub fn new(client: impl Into<String>, prompt: Prompt) -> Self {
        Self {
            client: client.into(),
            prompt,
            sampling: Sampling::GREEDY,
            stop: Vec::new(),
            max_tokens: None,
            ignore_eos: false,
            cache_prompt: true,
            deadline_ms: None,
            format: None,
            tools: None,
            logprobs: None,
            echo: false,
        }
    }
}

/// How likely a token was, by the model's own distribution: before penalties, temperature and truncation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Likelihood {
    /// The token.
    pub token: Token,
    /// Its bytes: possibly not whole characters; none for control tokens.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability; −∞ is given as the lowest finite number.
    pub logprob: f32,
}

/// A token of an answer, or of an echoed prompt, and what could have stood in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprob {
    /// The token. The first one of a prompt has nothing before it, and so 0 as its logarithm and no alternatives.
    pub chosen: Likelihood,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<Likelihood>,
}

/// What happens to a request. Exactly one of `Finished`, `Answered` and `Failed` comes, and it comes last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The prompt was tokenised, fits, and has a place in the queue.
    Accepted {
        /// Tokens of the whole prompt.
        prompt_tokens: u32,
        /// Requests ahead of this one; 0 is next.
        position: u32,
    },
    /// A sequence is the request's own from here on.
    Started {
        /// Prompt tokens that need no decoding, because the sequence still held them.
        cached_tokens: u32,
    },
    /// A piece of the answer: whole characters. Empty only where log-probabilities are left at the end whose text is not whole.
    Text {
        /// What was said.
        text: String,
        /// Whether it belongs to the model's reasoning, not to its answer.
        thinking: bool,
        /// The tokens sampled since the last piece, if log-probabilities are wanted.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        logprobs: Vec<Logprob>,
    },
    /// A piece of a call of a tool.
    ToolCall {
        /// Which of the answer's calls, from 0.
        index: u32,
        /// The tool's name; comes with the first piece of each call.
        name: Option<String>,
        /// The next piece of its arguments: put together they are a JSON object.
        arguments: String,
    },
    /// The answer to a [`Question`]; nothing else comes before or after it.
    Answered(Answer),
    /// The end of an answer.
    Finished(Outcome),
    /// The end without an answer, or in the middle of one.
    Failed(EngineError),
}

impl Event {
    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        matches!(
            self,
            Self::Finished(_) | Self::Answered(_) | Self::Failed(_)
        )
    }
}

/// How an answer ended and what it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why generation ended.
    pub reason: FinishReason,
    /// Tokens and times.
    pub usage: Usage,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model said its end token, or a stop string came.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// The request's deadline passed; the text so far stands.
    Deadline,
    /// The answer ends with calls of tools, whose results the model waits for.
    ToolCalls,
}

/// Tokens counted and times measured (milliseconds) for one request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the whole prompt, cached ones included.
    pub prompt_tokens: u32,
    /// Prompt tokens that were not decoded again.
    pub cached_tokens: u32,
    /// Tokens sampled, the end token included.
    pub completion_tokens: u32,
    /// Tokens that were guessed and decoded together with one that was due.
    #[serde(default)]
    pub drafted_tokens: u32,
    /// Those of them that the model said indeed: each saved a step.
    #[serde(default)]
    pub draft_tokens_kept: u32,
    /// Those of them that are part of the reasoning; its marks are not.
    pub reasoning_tokens: u32,
    /// From arrival in the worker to the first prefill step.
    pub queue_ms: f64,
    /// From the first prefill step to the first sampled token.
    pub prompt_ms: f64,
    /// From arrival in the worker to the first sampled token.
    pub ttft_ms: f64,
    /// From the first sampled token to the last.
    pub predicted_ms: f64,
}

/// Why a request got no (whole) answer. The text is written for the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum EngineError {
    /// The request can't be served as it is; the text says what to change.
    #[error("{0}")]
    BadRequest(String),
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has at least {prompt_tokens} tokens, but this server gives each request {limit}: shorten it, or start the server with a larger --ctx-size or a smaller --parallel"
    )]
    PromptTooLong {
        /// Tokens of the prompt (a lower bound where it was refused before counting to the end).
        prompt_tokens: u32,
        /// Tokens that prompt and answer may have together.
        limit: u32,
    },
    /// Every place is taken.
    #[error("all {places} places are taken: try again in {retry_after_seconds} s")]
    Overloaded {
        /// Running and waiting requests that the server takes at once.
        places: u32,
        /// Estimated from the speed of late requests.
        retry_after_seconds: u32,
    },
    /// The client has as many places as one may have.
    #[error(
        "{own} requests of yours are under way, and the places that are left are kept for others: try again in {retry_after_seconds} s"
    )]
    ShareTaken {
        /// Running and waiting requests of this client.
        own: u32,
        /// Estimated from the speed of late requests.
        retry_after_seconds: u32,
    },
    /// The deadline would pass in the queue.
    #[error(
        "the request would wait about {wait_seconds} s for its turn, and its deadline is before that: ask later, or give it more time"
    )]
    DeadlineUnreachable {
        /// Estimated from the speed of late requests.
        wait_seconds: u32,
    },
    /// The deadline passed before the first token.
    #[error("the request's deadline passed before an answer began")]
    DeadlineExceeded,
    /// The worker process ended in the middle of the request.
    #[error("the model's process ended while it answered ({0}): ask again")]
    EngineDied(String),
    /// The model can't be loaded, and asking again does not help: its file is damaged, or memory is too small for it.
    #[error("{0}")]
    Unloadable(String),
    /// There is no model to ask now.
    #[error("{0}")]
    NotReady(String),
    /// The server is going down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// This very request ended the model's process before.
    #[error("{0}")]
    Refused(String),
    /// Our own fault; details are in the log.
    #[error("internal error: {0}")]
    Internal(String),
}

/// More sequences are refused by llama.cpp.
pub const MOST_SEQUENCES: u32 = 256;

/// More rows in a step only cost memory.
pub const MOST_ROWS: u32 = 8192;

/// Tokens that a request may use where nobody asked for another number: some turns of a chat.
pub const DEFAULT_CONTEXT_PER_SEQUENCE: u32 = 2048;

/// How the numbers of the KV cache are stored.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
pub enum CacheType {
    /// Floats of 16 bits.
    #[default]
    #[serde(rename = "f16")]
    #[value(name = "f16")]
    F16,
    /// Integers of 8 bits with a common scale for 32 of them: little more than half the memory, and less to read in long
    /// contexts, for a small loss.
    #[serde(rename = "q8_0")]
    #[value(name = "q8_0")]
    Q8_0,
}

impl CacheType {
    /// Numbers that are stored together.
    pub const fn block_numbers(self) -> u64 {
        match self {
            Self::F16 => 1,
            Self::Q8_0 => 32,
        }
    }

    /// Bytes of so many numbers.
    pub const fn bytes_of(self, numbers: u64) -> u64 {
        match self {
            Self::F16 => numbers.saturating_mul(2),
            Self::Q8_0 => numbers.div_ceil(32).saturating_mul(34),
        }
    }
}

impl std::fmt::Display for CacheType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        })
    }
}

/// What a worker needs to know to load its model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerConfig {
    /// The GGUF file.
    pub model: PathBuf,
    /// KV cells in all, shared equally between the sequences; `None` gives each
    /// [`DEFAULT_CONTEXT_PER_SEQUENCE`], or what the model was trained with if that is less.
    pub ctx_size: Option<u32>,
    /// Sequences that run at once.
    pub parallel: u32,
    /// Threads for steps of one row.
    pub threads: u32,
    /// Threads for steps of several rows.
    pub threads_batch: u32,
    /// Rows of one step at most.
    pub batch_size: u32,
    /// How long a step may take, in milliseconds; prefill chunks are sized for it.
    pub step_ms: u32,
    /// Requests that may wait or run at once (the front counts them; the worker's channels are sized by it).
    pub places: u32,
    /// A chat template to use instead of the file's own.
    pub chat_template: Option<String>,
    /// Cores and threads by the size of a step; `None` for `threads` and `threads_batch` on any core.
    #[serde(default)]
    pub placement: Option<Placement>,
    /// How the KV cache is stored.
    #[serde(default)]
    pub cache_type: CacheType,
    /// Bytes that states of earlier prompts may take beside the KV cache; `None` is as many as there is room for, up to
    /// [`DEFAULT_CACHE_BYTES`].
    #[serde(default)]
    pub cache_bytes: Option<u64>,
    /// Whose prompts and answers a request may profit from.
    #[serde(default)]
    pub cache_scope: CacheScope,
    /// When tokens are guessed and decoded together with those that are due.
    #[serde(default)]
    pub speculate: Speculate,
    /// The GGUF file of a smaller model with the same vocabulary that guesses them too.
    #[serde(default)]
    pub draft_model: Option<PathBuf>,
}

impl WorkerConfig {
    /// Cores and threads by the size of a step.
    pub fn placement(&self) -> Placement {
        let anywhere = |threads| Team {
            threads,
            ..Team::default()
        };
        let several = anywhere(self.threads_batch);
        let plain = || Placement {
            one: anywhere(self.threads),
            few: several.clone(),
            many: several.clone(),
        };
        self.placement.clone().unwrap_or_else(plain)
    }

    /// Sets cores and threads.
    pub fn place(&mut self, placement: Placement) {
        self.threads = placement.one.threads;
        self.threads_batch = placement.many.threads;
        self.placement = Some(placement);
    }
}

/// When tokens are guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speculate {
    /// Never.
    Off,
    /// Where that is measured to be faster.
    #[default]
    Auto,
    /// Wherever there is a guess, as if further rows cost little.
    Always,
}

/// Bytes for states of earlier prompts where nobody said a number.
pub const DEFAULT_CACHE_BYTES: u64 = 64 << 20;

/// Whose prompts and answers a request may profit from: their KV cells, and guesses at what comes next. It never shows in an answer;
/// but how soon an answer comes tells whether its prompt was here before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheScope {
    /// Everybody's.
    #[default]
    Server,
    /// Those of the same client: who holds one of several API keys, else an address.
    Client,
}

/// What a loaded model is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `general.name` of the file, if it has one.
    pub name: Option<String>,
    /// `general.architecture`, such as `gemma3`.
    pub architecture: String,
    /// `general.license`, if the file states one.
    pub licence: Option<String>,
    /// The most common quantisation, such as `Q4_K - Medium`, if known.
    pub quantisation: Option<String>,
    /// Bytes of all tensors.
    pub size_bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// Context length that the model was trained with.
    pub trained_context: u32,
    /// Tokens that one request may use (prompt and answer).
    pub context_per_sequence: u32,
    /// Rows of a step at most; 0 before it was loaded.
    #[serde(default)]
    pub batch_size: u32,
    /// Bytes that states of earlier prompts may take beside the KV cache.
    #[serde(default)]
    pub cache_bytes: u64,
    /// Sequences that run at once.
    pub sequences: u32,
    /// The name of the smaller model that guesses what it says, if there is one.
    #[serde(default)]
    pub draft_model: Option<String>,
    /// Where the prompt format comes from: `model`, `configured`, or the name of the fallback.
    pub template: String,
    /// Whether the template marks reasoning (`<think>`).
    pub thinks: bool,
    /// Whether the template knows tools; where it does not, they are described in the system message.
    #[serde(default)]
    pub template_knows_tools: bool,
    /// Numbers of an embedding.
    #[serde(default)]
    pub embedding_width: u32,
    /// How a text's embedding is made of those of its tokens.
    #[serde(default)]
    pub pooling: Pooling,
    /// Kernels that llama.cpp chose for the weights (repacked layouts), as its log names them.
    pub kernels: Vec<String>,
    /// The kernels that were chosen for this CPU at start, such as `armv8.6_0`; `None` where they are part of the program.
    pub cpu_variant: Option<String>,
    /// Bytes of the buffers that llama.cpp reported, by name (`CPU_Mapped model`, `KV`, `compute`, …).
    pub buffers: Vec<(String, u64)>,
    /// Milliseconds from the start of loading to readiness.
    pub load_ms: f64,
}

/// A worker's own numbers, sent with each step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStats {
    /// Requests that have a sequence.
    pub running: u32,
    /// Requests that wait for one.
    pub queued: u32,
    /// KV cells that hold tokens, running and kept ones.
    pub kv_cells_used: u32,
    /// KV cells in all.
    pub kv_cells: u32,
    /// Bytes that embeddings take beside what the model was planned with, while there are some to make.
    pub embedding_bytes: u64,
    /// Threads that the last step had less than planned, because other programs or a quota took its cores.
    pub threads_left_out: u32,
    /// Steps since the worker started.
    pub steps: u64,
    /// Rows decoded for prompts since the worker started.
    pub prefill_rows: u64,
    /// Rows decoded for answers since the worker started.
    pub decode_rows: u64,
    /// Guessed tokens decoded since the worker started; they are among `decode_rows`.
    pub draft_rows: u64,
    /// Those of them that the model said.
    pub draft_rows_kept: u64,
    /// Rows of idle sequences, decoded only because a step is faster with them, since the worker started. They are among no others.
    pub padding_rows: u64,
    /// Prompt tokens that needed no decoding, since the worker started.
    pub cached_rows: u64,
    /// Bytes of states kept beside the KV cache.
    pub saved_bytes: u64,
    /// Sequences freed because their client left or their deadline passed, since the worker started.
    pub cancelled: u64,
    /// Microseconds inside `llama_decode`, since the worker started.
    pub decode_us: u64,
    /// Microseconds of everything else in a step, since the worker started. Reports count by the processor time that they took.
    pub overhead_us: u64,
}

impl WorkerStats {
    /// Adds another worker's counters. Gauges stay: they are of a moment.
    pub fn add_counters(&mut self, other: &Self) {
        self.steps += other.steps;
        self.prefill_rows += other.prefill_rows;
        self.decode_rows += other.decode_rows;
        self.draft_rows += other.draft_rows;
        self.draft_rows_kept += other.draft_rows_kept;
        self.padding_rows += other.padding_rows;
        self.cached_rows += other.cached_rows;
        self.cancelled += other.cancelled;
        self.decode_us += other.decode_us;
        self.overhead_us += other.overhead_us;
    }
}
