//! `pocket-llm rm`: removes models from the store, and says exactly what it removed.

use crate::config::StoreArgs;
use crate::models::memory::Bytes;
use crate::models::{Catalogue, Store};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::Write;
use std::process::ExitCode;

/// What `rm` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct RmArgs {
    /// Models by name, or hf:owner/name/file.gguf; a download that is not complete too
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,

    #[command(flatten)]
    models: StoreArgs,
}

/// Removes what it can; status 1 if it could not remove all.
pub(super) fn run(args: &RmArgs) -> Result<ExitCode> {
    let (catalogue, store) = (args.models.catalogue()?, args.models.store_as_it_is()?);
    let mut code = ExitCode::SUCCESS;
    let mut freed = 0;
    for name in &args.names {
        match remove(name, &catalogue, &store) {
            Ok(bytes) => freed += bytes,
            Err(error) => {
                eprintln!("pocket-llm: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    if freed > 0 {
        say(&format!("{} freed ({freed} bytes)", Bytes(freed)))?;
    }
    Ok(code)
}

fn remove(text: &str, catalogue: &Catalogue, store: &Store) -> Result<u64> {
    let name = store.name_of(text, catalogue)?;
    if !store.has(&name) {
        bail!("{name} is not on disk: `pocket-llm list` shows what is");
    }
    let removed = store.remove(&name)?;
    for file in &removed.files {
        say(&format!("removed {}", file.display()))?;
    }
    Ok(removed.bytes)
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("standard output can't be written")
}
