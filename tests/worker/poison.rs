//! A worker that some requests end: a mark in a prompt says how. It notes how many sequences were in the step that did it.

use crate::scripted::{Script, ScriptedBackend};
use pocket_llm::engine::{Token, WorkerConfig};
use pocket_llm::worker::decoder::{
    Backend, Decoder, EmbedError, LoadError, Loaded, Position, Row, SeqId, StateId, StepError,
};
use rustix::process::{Signal, getpid, kill_process};
use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Marks, and the ends that they make. A prompt with one ends its worker when it is decoded; with `late-` before it, when
/// the answer has three letters.
pub(crate) const CRASHES: [(&str, &str); 6] = [
    ("segv", "signal 11"),
    ("abrt", "signal 6"),
    ("bus!", "signal 7"),
    ("ill!", "signal 4"),
    ("exit", "status 3"),
    ("panic", "signal 6"),
];
/// Ends its worker as the system's memory killer does, three times in all.
pub(crate) const KILLED: &str = "kill";
/// Stops its worker.
pub(crate) const STOPS: &str = "stop";

const KILLS: usize = 3;

pub(crate) struct PoisonedBackend {
    pub(crate) script: Arc<Script>,
    /// Where ends are noted, a line each.
    pub(crate) notes: PathBuf,
    /// How long loading takes.
    pub(crate) load: Duration,
}

impl Backend for PoisonedBackend {
    fn run(
        &self,
        config: &WorkerConfig,
        progress: Box<dyn FnMut(f32) -> bool>,
        serve: &mut dyn FnMut(Loaded<'_>),
    ) -> Result<(), LoadError> {
        std::thread::sleep(self.load);
        let script = Arc::clone(&self.script);
        ScriptedBackend { script }.run(config, progress, &mut |loaded| {
            let mut decoder = PoisonedDecoder {
                inner: loaded.decoder,
                texts: HashMap::new(),
                notes: &self.notes,
            };
            serve(Loaded {
                info: loaded.info,
                vocab: loaded.vocab,
                decoder: &mut decoder,
                draft: None,
            });
        })
    }
}

struct PoisonedDecoder<'a> {
    inner: &'a mut dyn Decoder,
    texts: HashMap<SeqId, Vec<u8>>,
    notes: &'a Path,
}

/// The ends that were noted.
pub(crate) fn notes(path: &Path) -> Vec<String> {
    let notes = std::fs::read_to_string(path).unwrap_or_default();
    notes.lines().map(Into::into).collect()
}

impl PoisonedDecoder<'_> {
    fn end(&self, mark: &str, sequences: usize) {
        let mut notes = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.notes)
            .unwrap();
        writeln!(notes, "{mark} {sequences}").unwrap();
        drop(notes);
        let signal = match mark {
            "segv" => Signal::SEGV,
            "abrt" => Signal::ABORT,
            "bus!" => Signal::BUS,
            "ill!" => Signal::ILL,
            "kill" => Signal::KILL,
            "stop" => Signal::STOP,
            "exit" => crate::exit_with_3(),
            _ => panic!("as asked"),
        };
        // The standard library's handler lets the first signal pass that is no fault of its own.
        loop {
            kill_process(getpid(), signal).unwrap();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn look(&self, text: &[u8], sequences: usize) {
        let text = String::from_utf8_lossy(text);
        let (prompt, answer) = text.split_once('|').unwrap_or((&text, ""));
        let marks = CRASHES.iter().map(|(mark, _)| *mark);
        for mark in marks.chain([KILLED, STOPS]) {
            let late = prompt.contains(&format!("late-{mark}"));
            let killed_enough = || mark == KILLED && notes(self.notes).len() >= KILLS;
            let due = if late {
                answer.len() >= 4
            } else {
                prompt.contains(mark) && text.contains('|')
            };
            if due && !killed_enough() {
                self.end(mark, sequences);
            }
        }
    }
}

impl Decoder for PoisonedDecoder<'_> {
    fn step(
        &mut self,
        rows: &[Row],
        logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), StepError> {
        let sequences: HashSet<_> = rows.iter().map(|row| row.seq).collect();
        for row in rows {
            let text = self.texts.entry(row.seq).or_default();
            text.resize(row.position as usize, b' ');
            text.push(u8::try_from(row.token.0).unwrap_or(b' '));
        }
        for seq in &sequences {
            self.look(&self.texts[seq], sequences.len());
        }
        self.inner.step(rows, logits)
    }

    fn embed(
        &mut self,
        tokens: &[Token],
        position: Position,
        each: &mut dyn FnMut(&[f32]),
    ) -> Result<(), EmbedError> {
        let text: Vec<u8> = tokens
            .iter()
            .filter_map(|token| u8::try_from(token.0).ok())
            .collect();
        self.look(&text, 1);
        self.inner.embed(tokens, position, each)
    }

    fn cuttable(&self, seq: SeqId) -> RangeInclusive<Position> {
        self.inner.cuttable(seq)
    }

    fn truncate(&mut self, seq: SeqId, to: Position) {
        self.inner.truncate(seq, to);
    }

    fn forgets(&self) -> bool {
        self.inner.forgets()
    }

    fn takes_back(&self) -> bool {
        self.inner.takes_back()
    }

    fn state_bytes(&self, seq: SeqId) -> u64 {
        self.inner.state_bytes(seq)
    }

    fn bytes_per_token(&self) -> u64 {
        self.inner.bytes_per_token()
    }

    fn save(&mut self, seq: SeqId) -> Option<StateId> {
        self.inner.save(seq)
    }

    fn restore(&mut self, state: StateId, seq: SeqId) -> bool {
        self.inner.restore(state, seq)
    }

    fn discard(&mut self, state: StateId) {
        self.inner.discard(state);
    }

    fn embedding_bytes(&self) -> u64 {
        self.inner.embedding_bytes()
    }

    fn end_embedding(&mut self) {
        self.inner.end_embedding();
    }
}
