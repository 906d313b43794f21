//! Asks llama.cpp about a file's vocabulary, in a child process: a malformed file can crash C++, and must not take us along.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

/// No answer takes longer; the first one waits for the file to be read.
const PATIENCE: Duration = Duration::from_mins(2);
/// Bytes of an answer at most.
const MOST_LINE: u64 = 8 << 20;
/// Bytes of its last words that are kept.
const LAST_WORDS: u64 = 8 << 10;
/// Variables that a program may need to start; the rest of ours is not for a process that reads files of strangers.
const KEPT: [&str; 5] = ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD"];

/// The running child. Dropping it ends it.
pub(super) struct Vocabulary {
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<Result<Vec<u32>, String>>,
    last_words: Option<thread::JoinHandle<String>>,
}

impl Vocabulary {
    /// Starts a child that reads `model`.
    pub(super) fn of(model: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the child process does not start: {error}");
        let mut child = command(model)
            .and_then(|mut command| command.spawn())
            .map_err(failed)?;
        let (Some(input), Some(output), Some(errors)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err("the child process has no pipes".into());
        };
        let (found, answers) = sync_channel(64);
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            // It ends with the child, or when nobody listens any more.
            while let Some(answer) = next(&mut output)
                && found.send(answer).is_ok()
            {}
        });
        let last_words = thread::spawn(move || {
            let mut words = Vec::new();
            let mut errors = errors;
            // More is read, so that the child never waits, and dropped.
            let _ = errors.by_ref().take(LAST_WORDS).read_to_end(&mut words);
            let _ = std::io::copy(&mut errors, &mut std::io::sink());
            String::from_utf8_lossy(&words).into_owned()
        });
        Ok(Self {
            child,
            input: Some(input),
            answers,
            last_words: Some(last_words),
        })
    }

    /// The token ids of each text; `true` reads the names of control tokens as those tokens.
    pub(super) fn ask(&mut self, questions: &[(String, bool)]) -> Result<Vec<Vec<u32>>, String> {
        let mut lines = Vec::new();
        for (text, special) in questions {
            let question = serde_json::json!({ "text": text, "special": special });
            lines.extend_from_slice(question.to_string().as_bytes());
            lines.push(b'\n');
        }
        let Some(mut input) = self.input.take() else {
            return Err(self.obituary());
        };
        thread::scope(|scope| {
            // Beside the reading: both pipes may be full at once. A child that does not read any more has said why.
            let writer = scope.spawn(move || input.write_all(&lines).map(|()| input));
            let answers = questions.iter().map(|_| self.answer()).collect();
            self.input = writer.join().ok().and_then(Result::ok);
            answers
        })
    }

    fn answer(&mut self) -> Result<Vec<u32>, String> {
        match self.answers.recv_timeout(PATIENCE) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => {
                self.end();
                Err(format!(
                    "the child process said nothing for {} s",
                    PATIENCE.as_secs()
                ))
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.obituary()),
        }
    }

    /// Why it ended before its time.
    fn obituary(&mut self) -> String {
        let status = self.child.wait();
        let words = self
            .last_words
            .take()
            .and_then(|words| words.join().ok())
            .unwrap_or_default();
        let mut own = words
            .lines()
            .filter_map(|line| line.strip_prefix("pocket-llm: "));
        match (own.next_back(), status) {
            (Some(sentence), _) => sentence.to_owned(),
            (None, Ok(status)) => format!(
                "llama.cpp ended over its vocabulary ({status}): the file is damaged, or of a kind that it does not know"
            ),
            (None, Err(error)) => format!("the child process can't be waited for: {error}"),
        }
    }

    fn end(&mut self) {
        // Harmless when it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Vocabulary {
    fn drop(&mut self) {
        self.end();
    }
}

fn command(model: &Path) -> std::io::Result<Command> {
    let mut command = if cfg!(target_os = "linux") {
        // This binary even after its file was replaced by an upgrade.
        Command::new("/proc/self/exe")
    } else {
        Command::new(std::env::current_exe()?)
    };
    command
        .arg("tokenise")
        .arg("--")
        .arg(model)
        .env_clear()
        .env("GGML_NO_BACKTRACE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    Ok(command)
}

fn next(output: &mut impl BufRead) -> Option<Result<Vec<u32>, String>> {
    let mut line = Vec::new();
    match output.take(MOST_LINE).read_until(b'\n', &mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => {
            Some(serde_json::from_slice(&line).map_err(|error| {
                format!("the child process does not answer in token ids: {error}")
            }))
        }
    }
}
