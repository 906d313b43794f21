//! `pocket-llm tokenise`, hidden: the child process in which `verify` asks llama.cpp about a file's vocabulary.
//!
//! Reads `{"text": …, "special": …}` line by line from standard input and writes an array of token ids for each. Like a worker
//! it ends with who started it and leaves no core behind: it reads files of strangers.

use anyhow::{Context, Result};
use clap::Args;
use rustix::process::{self, Resource, Rlimit, Signal};
use std::path::PathBuf;

/// What `tokenise` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct TokeniseArgs {
    /// A GGUF file
    model: PathBuf,
}

pub(super) fn run(args: &TokeniseArgs) -> Result<()> {
    process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("no parent-death signal")?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Where it is refused, a core is a nuisance and nothing worse.
    let _ = process::setrlimit(Resource::Core, none);
    answer(args)
}

#[cfg(feature = "llama")]
fn answer(args: &TokeniseArgs) -> Result<()> {
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    crate::worker::llama::answer_texts(&args.model, &mut input, &mut output)?;
    Ok(())
}

#[cfg(not(feature = "llama"))]
fn answer(args: &TokeniseArgs) -> Result<()> {
    anyhow::bail!(
        "this binary was built without llama.cpp (feature `llama`) and can't read the vocabulary of {}",
        args.model.display()
    )
}
