//! A model backend for tests: a byte vocabulary, and a decoder whose prompts say what it answers. It records every row and
//! every cut, can be held at a gate before each step, and can fail a step. Everything above the seam is the product's own.
//!
//! A prompt ends in one of
//! - `say:TEXT|` answers TEXT, then ends;
//! - `loop:TEXT|` answers TEXT again and again;
//! - `any|` gives every printable letter the same chance, so that the sampler decides;
//! - `noise|` gives every token other logits from −8 to 8 after each text, control tokens included.

#![allow(dead_code, reason = "each program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use pocket_llm::engine::{
    CacheScope, EngineHandle, EngineOptions, Event, Generation, Launch, ModelInfo, Outcome, Prompt,
    Request, Sampling, Speculate, Token, WorkerConfig,
};
use pocket_llm::worker::decoder::{
    Backend, Decoder, Draft, EmbedError, LoadError, Loaded, Position, Row, SeqId, StateId,
    StepError, Vocab,
};
use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub(crate) const END: Token = Token(256);
const CONTROL: [&str; 4] = ["<|end|>", "<|bos|>", "<|im_start|>", "<|im_end|>"];
const VOCAB_SIZE: u32 = 256 + 4;

/// Tests end with an error rather than never.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes are tokens 0 to 255; four control tokens follow.
pub(crate) struct ByteVocab {
    control: Vec<String>,
}

impl ByteVocab {
    pub(crate) fn new() -> Self {
        Self {
            control: CONTROL.map(String::from).into(),
        }
    }
}

impl Vocab for ByteVocab {
    fn size(&self) -> u32 {
        VOCAB_SIZE
    }

    fn tokenize(&self, text: &str, _: bool, parse_special: bool) -> Vec<Token> {
        let mut tokens = Vec::new();
        let mut rest = text;
        'text: while let Some(first) = rest.bytes().next() {
            if parse_special {
                for (index, control) in (256..).zip(&self.control) {
                    if let Some(after) = rest.strip_prefix(control.as_str()) {
                        tokens.push(Token(index));
                        rest = after;
                        continue 'text;
                    }
                }
            }
            tokens.push(Token(first.into()));
            // Byte by byte, also in the middle of a character.
            let length = rest.chars().next().map_or(1, char::len_utf8);
            tokens.extend(
                rest.bytes()
                    .take(length)
                    .skip(1)
                    .map(|byte| Token(byte.into())),
            );
            rest = &rest[length..];
        }
        tokens
    }

    fn append_bytes(&self, token: Token, bytes: &mut Vec<u8>) {
        bytes.extend(u8::try_from(token.0));
    }

    fn is_end(&self, token: Token) -> bool {
        token == END || token == Token(259)
    }

    fn control_texts(&self) -> &[String] {
        &self.control
    }

    fn bos(&self) -> Option<&str> {
        Some("<|bos|>")
    }

    fn eos(&self) -> Option<&str> {
        Some("<|end|>")
    }

    fn adds_bos(&self) -> bool {
        false
    }

    fn chat_template(&self) -> Option<&str> {
        None
    }

    fn longest_token_bytes(&self) -> usize {
        1
    }
}

/// What the decoder was asked, and how it is to behave.
#[derive(Default)]
pub(crate) struct Script {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Steps that may run; `None` is no limit.
    allowed: Option<u64>,
    waiting: bool,
    silent: bool,
    steps: Vec<Vec<Row>>,
    cuts: Vec<(SeqId, Position)>,
    embedded: Vec<(Vec<Token>, Position)>,
    /// Bytes that embeddings take from the first to the end.
    embedding_bytes: u64,
    fail_step: Option<usize>,
    step_time: Duration,
    /// Whether a step's time is spent computing or asleep.
    burn: bool,
    window: Option<Position>,
    /// Another script, for a draft model beside this one.
    draft: Option<Arc<Script>>,
    /// So many tokens lie between what its prompts want and what it says.
    aside: usize,
    restored: Vec<(SeqId, usize)>,
    states: usize,
}

impl Script {
    /// A script that keeps no record of steps, for benchmarks.
    pub(crate) fn silent() -> Self {
        let script = Self::default();
        script.state.lock().unwrap().silent = true;
        script
    }

    /// Holds the decoder before its next step.
    pub(crate) fn hold(&self) {
        self.state.lock().unwrap().allowed = Some(0);
    }

    /// Lets `steps` more steps run.
    pub(crate) fn allow(&self, steps: u64) {
        let mut state = self.state.lock().unwrap();
        state.allowed = state.allowed.map(|allowed| allowed + steps);
        self.changed.notify_all();
    }

    /// Lets the decoder run freely.
    pub(crate) fn open(&self) {
        self.state.lock().unwrap().allowed = None;
        self.changed.notify_all();
    }

    /// Makes the step of this number (from 0) fail.
    pub(crate) fn fail(&self, step: usize) {
        self.state.lock().unwrap().fail_step = Some(step);
    }

    /// Makes every step take this long.
    pub(crate) fn take_time(&self, step: Duration) {
        self.state.lock().unwrap().step_time = step;
    }

    /// Makes every step compute for this long.
    pub(crate) fn burn_time(&self, step: Duration) {
        let mut state = self.state.lock().unwrap();
        (state.step_time, state.burn) = (step, true);
    }

    /// Makes sequences forget all but the last tokens, as a sliding window does.
    pub(crate) fn forget_beyond(&self, window: Position) {
        self.state.lock().unwrap().window = Some(window);
    }

    /// Puts a draft model beside it, and returns that one's script.
    pub(crate) fn add_draft(&self) -> Arc<Script> {
        let draft = Arc::new(Self::default());
        self.state.lock().unwrap().draft = Some(Arc::clone(&draft));
        draft
    }

    /// Makes it always say something else than its prompts want.
    pub(crate) fn contradict(&self) {
        self.state.lock().unwrap().aside = 1;
    }

    /// Sequences that were given a state, and its tokens.
    pub(crate) fn restored(&self) -> Vec<(SeqId, usize)> {
        self.state.lock().unwrap().restored.clone()
    }

    /// States that are kept aside now.
    pub(crate) fn states(&self) -> usize {
        self.state.lock().unwrap().states
    }

    /// All steps so far, row by row.
    pub(crate) fn steps(&self) -> Vec<Vec<Row>> {
        self.state.lock().unwrap().steps.clone()
    }

    /// The most sequences that had rows in one step.
    pub(crate) fn widest_step(&self) -> usize {
        let sequences = |rows: &Vec<Row>| rows.iter().map(|row| row.seq).collect::<HashSet<_>>();
        let state = self.state.lock().unwrap();
        let widths = state.steps.iter().map(|rows| sequences(rows).len());
        widths.max().unwrap_or(0)
    }

    /// All cuts so far.
    pub(crate) fn cuts(&self) -> Vec<(SeqId, Position)> {
        self.state.lock().unwrap().cuts.clone()
    }

    /// All parts of texts that were embedded so far, and where each began.
    pub(crate) fn embedded(&self) -> Vec<(Vec<Token>, Position)> {
        self.state.lock().unwrap().embedded.clone()
    }

    /// Waits until the decoder stands at the gate.
    pub(crate) fn wait_until_held(&self) {
        let state = self.state.lock().unwrap();
        let (state, timeout) = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| !state.waiting)
            .unwrap();
        drop(state);
        assert!(!timeout.timed_out(), "the decoder never came to the gate");
    }

    fn enter(&self, rows: &[Row]) -> Result<(), StepError> {
        let mut state = self.state.lock().unwrap();
        if state.silent {
            return Ok(());
        }
        let step = state.steps.len();
        state.steps.push(rows.to_vec());
        while state.allowed == Some(0) {
            state.waiting = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap();
        }
        state.waiting = false;
        state.allowed = state.allowed.map(|allowed| allowed - 1);
        if state.fail_step == Some(step) {
            return Err(StepError("scripted".into()));
        }
        let (time, burn) = (state.step_time, state.burn);
        drop(state);
        let began = Instant::now();
        while burn && began.elapsed() < time {
            std::hint::spin_loop();
        }
        std::thread::sleep(time.saturating_sub(began.elapsed()));
        Ok(())
    }
}

/// Bytes that the first embedding takes.
pub(crate) const EMBEDDING_BYTES: u64 = 3 << 30;

pub(crate) struct ScriptedDecoder {
    script: Arc<Script>,
    held: HashMap<SeqId, Vec<Token>>,
    states: HashMap<StateId, Vec<Token>>,
    next_state: u64,
}

impl ScriptedDecoder {
    pub(crate) fn new(script: &Arc<Script>) -> Self {
        Self {
            script: Arc::clone(script),
            held: HashMap::new(),
            states: HashMap::new(),
            next_state: 0,
        }
    }

    /// The logits after a sequence's tokens.
    fn logits(tokens: &[Token]) -> Vec<f32> {
        let bytes: Vec<u8> = tokens
            .iter()
            .map(|token| u8::try_from(token.0).unwrap_or(0))
            .collect();
        let mut logits = vec![-10.0; VOCAB_SIZE as usize];
        let find = |needle: &[u8]| {
            bytes
                .windows(needle.len())
                .rposition(|window| window == needle)
                .map(|at| at + needle.len())
        };
        // In the middle of a prompt whose log-probabilities are wanted, everything is as likely.
        let Some(bar) = find(b"|") else {
            return logits;
        };
        let said = bytes.len() - bar;
        if bytes[..bar].ends_with(b"noise|") {
            return noise(&bytes);
        }
        let directive = [&b"say:"[..], b"loop:"]
            .iter()
            .filter_map(|name| Some((*name, find(name).filter(|at| *at <= bar)?)))
            .max_by_key(|(_, at)| *at);
        match directive {
            Some((b"say:", at)) => {
                let answer = &bytes[at..bar - 1];
                logits[answer
                    .get(said)
                    .map_or(END.0 as usize, |byte| usize::from(*byte))] = 10.0;
            }
            Some((_, at)) => {
                let answer = &bytes[at..bar - 1];
                logits[usize::from(answer[said % answer.len()])] = 10.0;
            }
            None => logits[usize::from(b'a')..=usize::from(b'z')].fill(10.0),
        }
        logits
    }
}

/// Numbers that look random and depend on the text alone (FNV-1a, and a multiplication for each token).
fn noise(text: &[u8]) -> Vec<f32> {
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let logit = |token: u32| {
        let mixed = (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        f32::from(u16::try_from(mixed >> 48).unwrap()) / 4096.0 - 8.0
    };
    (0..VOCAB_SIZE).map(logit).collect()
}

impl Decoder for ScriptedDecoder {
    fn step(
        &mut self,
        rows: &[Row],
        logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), StepError> {
        self.script.enter(rows)?;
        for (index, row) in rows.iter().enumerate() {
            let tokens = self.held.entry(row.seq).or_default();
            assert_eq!(
                tokens.len(),
                row.position as usize,
                "a gap in a sequence: {row:?}"
            );
            tokens.push(row.token);
            if row.logits {
                let mut wanted = Self::logits(tokens);
                wanted.rotate_left(self.script.state.lock().unwrap().aside);
                logits(index, &wanted);
            }
        }
        Ok(())
    }

    fn cuttable(&self, seq: SeqId) -> RangeInclusive<Position> {
        let held = self
            .held
            .get(&seq)
            .map_or(0, |tokens| Position::try_from(tokens.len()).unwrap());
        match self.script.state.lock().unwrap().window {
            Some(window) => held.saturating_sub(window)..=held,
            None => 0..=held,
        }
    }

    fn forgets(&self) -> bool {
        self.script.state.lock().unwrap().window.is_some()
    }

    fn takes_back(&self) -> bool {
        true
    }

    fn state_bytes(&self, seq: SeqId) -> u64 {
        self.held.get(&seq).map_or(0, |tokens| tokens.len() as u64)
    }

    fn bytes_per_token(&self) -> u64 {
        1
    }

    fn save(&mut self, seq: SeqId) -> Option<StateId> {
        let state = StateId(self.next_state);
        self.next_state += 1;
        self.states.insert(state, self.held.get(&seq)?.clone());
        self.script.state.lock().unwrap().states = self.states.len();
        Some(state)
    }

    fn restore(&mut self, state: StateId, seq: SeqId) -> bool {
        let tokens = self.states[&state].clone();
        let restored = (seq, tokens.len());
        self.script.state.lock().unwrap().restored.push(restored);
        self.held.insert(seq, tokens);
        true
    }

    fn discard(&mut self, state: StateId) {
        assert!(
            self.states.remove(&state).is_some(),
            "{state:?} is not there"
        );
        self.script.state.lock().unwrap().states = self.states.len();
    }

    /// Each token's embedding is its id, its position, and 1.
    fn embed(
        &mut self,
        tokens: &[Token],
        position: Position,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<(), EmbedError> {
        let mut state = self.script.state.lock().unwrap();
        state.embedded.push((tokens.to_vec(), position));
        state.embedding_bytes = EMBEDDING_BYTES;
        drop(state);
        let number = |number: u32| f32::from(u16::try_from(number).unwrap());
        for (position, token) in (position..).zip(tokens) {
            each(&[number(token.0), number(position), 1.0]);
        }
        Ok(())
    }

    fn embedding_bytes(&self) -> u64 {
        self.script.state.lock().unwrap().embedding_bytes
    }

    fn end_embedding(&mut self) {
        self.script.state.lock().unwrap().embedding_bytes = 0;
    }

    fn truncate(&mut self, seq: SeqId, to: Position) {
        self.script.state.lock().unwrap().cuts.push((seq, to));
        self.held.entry(seq).or_default().truncate(to as usize);
    }
}

/// Lends a scripted decoder to the loop.
pub(crate) struct ScriptedBackend {
    pub(crate) script: Arc<Script>,
}

impl Backend for ScriptedBackend {
    fn run(
        &self,
        config: &WorkerConfig,
        mut progress: Box<dyn FnMut(f32) -> bool>,
        serve: &mut dyn FnMut(Loaded<'_>),
    ) -> Result<(), LoadError> {
        if config.model.as_os_str() == "broken" {
            return Err(LoadError("the scripted model is broken".into()));
        }
        assert!(progress(0.5));
        let mut decoder = ScriptedDecoder::new(&self.script);
        let context_per_sequence = config.ctx_size.unwrap_or(4096) / config.parallel;
        let info = ModelInfo {
            name: Some("scripted".into()),
            architecture: "scripted".into(),
            vocab_size: VOCAB_SIZE,
            trained_context: context_per_sequence,
            context_per_sequence,
            sequences: config.parallel,
            embedding_width: 3,
            cache_bytes: config.cache_bytes.unwrap_or(1 << 20),
            ..ModelInfo::default()
        };
        let draft = self.script.state.lock().unwrap().draft.clone();
        let mut draft = draft.map(|script| ScriptedDecoder::new(&script));
        serve(Loaded {
            info,
            vocab: Arc::new(ByteVocab::new()),
            decoder: &mut decoder,
            draft: draft.as_mut().map(|decoder| Draft {
                decoder,
                batch_size: 64,
                weight: 0.1,
            }),
        });
        Ok(())
    }
}

/// An engine's options over a scripted model: `parallel` sequences of 1,024 tokens, `queue` places to wait.
pub(crate) fn options(script: &Arc<Script>, parallel: u32, queue: u32) -> EngineOptions {
    let backend = Arc::new(ScriptedBackend {
        script: Arc::clone(script),
    });
    EngineOptions {
        config: WorkerConfig {
            model: "scripted.gguf".into(),
            ctx_size: Some(1024 * parallel),
            parallel,
            threads: 1,
            threads_batch: 1,
            batch_size: 64,
            step_ms: 300,
            places: parallel + queue,
            chat_template: None,
            cache_bytes: None,
            cache_scope: CacheScope::Server,
            speculate: Speculate::Off,
            ..WorkerConfig::default()
        },
        launch: Launch::Thread(Arc::new(move |stream| {
            pocket_llm::worker::serve(stream, &*backend, || {});
        })),
        stall: Duration::from_mins(1),
        load_stall: Duration::from_mins(1),
        restart_pause: Duration::from_millis(5),
    }
}

/// A running engine over a scripted model.
pub(crate) async fn engine(script: &Arc<Script>, parallel: u32, queue: u32) -> EngineHandle {
    let engine = EngineHandle::start(options(script, parallel, queue)).expect("an engine");
    engine.loaded().await;
    engine
}

/// A greedy request that continues the text.
pub(crate) fn request(text: &str) -> Request {
    Request {
        sampling: Sampling {
            seed: 7,
            ..Sampling::GREEDY
        },
        ..Request::new("test", Prompt::Text(text.into()))
    }
}

/// Everything that happened to a request.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) text: String,
    pub(crate) events: Vec<Event>,
}

impl Told {
    pub(crate) fn outcome(&self) -> &Outcome {
        match self.events.last() {
            Some(Event::Finished(outcome)) => outcome,
            other => panic!("not finished: {other:?}"),
        }
    }

    /// Checks the order of events: accepted, started, text, one terminal event.
    pub(crate) fn check_order(&self) {
        let terminal = |event: &Event| matches!(event, Event::Finished(_) | Event::Failed(_));
        assert_eq!(
            self.events.iter().filter(|event| terminal(event)).count(),
            1,
            "{self:?}"
        );
        assert!(self.events.last().is_some_and(terminal), "{self:?}");
    }
}

/// Reads a generation to its end.
pub(crate) async fn read(mut generation: Generation) -> Told {
    let mut told = Told {
        text: String::new(),
        events: Vec::new(),
    };
    let reading = async {
        while let Some(event) = generation.next().await {
            if let Event::Text { text, .. } = &event {
                told.text.push_str(text);
            }
            told.events.push(event);
        }
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .expect("an answer in time");
    told.check_order();
    told
}

/// Waits for a condition on the engine's load.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
