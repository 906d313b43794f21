//! A model's vocabulary without its weights, for `verify`: texts in, token ids out, line by line.
//!
//! It reads a stranger's file through C++ and must run in a process of its own.

use super::{backend, log, read_header};
use crate::worker::decoder::{LoadError, Vocab};
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::sync::Arc;

/// Bytes of a line at most.
const MOST_LINE: u64 = 1 << 20;
/// Lines that are answered at most.
const MOST_LINES: usize = 10_000;

/// A line of input: a JSON object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    text: String,
    /// Whether the names of control tokens in the text are those tokens.
    special: bool,
}

/// A line of output: a JSON array of token ids.
#[derive(Debug, Serialize)]
struct Answer(Vec<u32>);

/// Answers questions about the vocabulary of a file until they end.
pub fn answer(
    model: &Path,
    questions: &mut dyn BufRead,
    answers: &mut dyn Write,
) -> Result<(), LoadError> {
    let vocab = vocabulary(model)?;
    for _ in 0..MOST_LINES {
        let Some(question) = next(questions)? else {
            return Ok(());
        };
        let tokens = vocab.tokenize(&question.text, false, question.special);
        let answer = Answer(tokens.into_iter().map(|token| token.0).collect());
        let line = serde_json::to_vec(&answer).map_err(io::Error::from);
        line.and_then(|mut line| {
            line.push(b'\n');
            answers.write_all(&line)
        })
        .and_then(|()| answers.flush())
        .map_err(|error| LoadError(format!("token ids can't be written: {error}")))?;
    }
    Err(LoadError(format!("there are more than {MOST_LINES} texts")))
}

fn vocabulary(path: &Path) -> Result<super::LlamaVocabulary, LoadError> {
    let backend = backend()?;
    read_header(path)?;
    log::forget();
    let params = LlamaModelParams::default().with_vocab_only(true);
    let model = LlamaModel::load_from_file(backend, path, &params).map_err(|_| {
        let why = log::errors()
            .pop()
            .unwrap_or_else(|| "llama.cpp did not say why".into());
        LoadError(format!(
            "the vocabulary of {} can't be loaded: {why}",
            path.display()
        ))
    })?;
    super::LlamaVocabulary::new(&Arc::new(model))
}

fn next(questions: &mut dyn BufRead) -> Result<Option<Question>, LoadError> {
    let mut line = Vec::new();
    let read = questions.take(MOST_LINE).read_until(b'\n', &mut line);
    let unusable = |why: String| LoadError(format!("a text can't be read: {why}"));
    if read.map_err(|error| unusable(error.to_string()))? == 0 {
        return Ok(None);
    }
    if !line.ends_with(b"\n") && line.len() as u64 == MOST_LINE {
        return Err(unusable(format!("it has more than {MOST_LINE} bytes")));
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|error| unusable(error.to_string()))
}
