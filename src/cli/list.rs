//! `pocket-llm list`: which models are on disk, which are being fetched, and which are known.

use super::models::ago;
use crate::config::StoreArgs;
use crate::models::catalogue::Capability;
use crate::models::memory::Bytes;
use crate::models::store::{Manifest, Moment, Origin, Partial, State, Stored};
use crate::models::{Catalogue, Entry, Store};
use anyhow::{Context, Result};
use clap::Args;
use clap::builder::FalseyValueParser;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::iter;
use std::process::ExitCode;

/// What `list` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct ListArgs {
    /// One JSON object, for programs
    #[arg(long, env = "POCKET_LLM_JSON", value_parser = FalseyValueParser::new())]
    json: bool,

    #[command(flatten)]
    models: StoreArgs,
}

pub(super) fn run(args: &ListArgs) -> Result<ExitCode> {
    let (catalogue, store) = (args.models.catalogue()?, args.models.store_as_it_is()?);
    let listed = Listed::new(&catalogue, &store)?;
    let text = if args.json {
        format!("{:#}\n", listed.json())
    } else {
        listed.text()
    };
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough (`| head`).
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        other => other.context("standard output can't be written")?,
    }
    let unused = listed
        .models
        .iter()
        .filter_map(|model| model.problem.clone());
    let unnameable = store
        .unnameable()?
        .into_iter()
        .map(|error| error.to_string());
    for problem in unused.chain(unnameable) {
        eprintln!("pocket-llm: {problem}");
    }
    Ok(ExitCode::SUCCESS)
}

struct Listed<'a> {
    catalogue: &'a Catalogue,
    store: &'a Store,
    models: Vec<Stored>,
    partials: Vec<Partial>,
}

impl<'a> Listed<'a> {
    fn new(catalogue: &'a Catalogue, store: &'a Store) -> Result<Self> {
        Ok(Self {
            models: store.list()?,
            partials: store.partials()?,
            catalogue,
            store,
        })
    }

    fn entry(&self, model: &Stored) -> Option<&'a Entry> {
        let entry = self.catalogue.find(&model.name.to_string())?;
        (entry.model_name() == model.name).then_some(entry)
    }

    /// Models of the catalogue that are not on disk.
    fn absent(&self) -> impl Iterator<Item = &'a Entry> {
        self.catalogue.entries().filter(|entry| {
            let name = entry.model_name();
            self.models.iter().all(|model| model.name != name)
        })
    }

    fn text(&self) -> String {
        let mut parts = Vec::new();
        if self.models.is_empty() {
            parts.push(format!("No models in {}.\n", self.store.root().display()));
        } else {
            let head = ["NAME", "SIZE", "QUANT", "FROM", "FETCHED", "USED"].map(String::from);
            let rows: Vec<_> = iter::once(head)
                .chain(self.models.iter().map(row))
                .collect();
            parts.push(table(&rows));
        }
        parts.extend(self.models.iter().filter_map(damage));
        if !self.partials.is_empty() {
            let rows: Vec<_> = self.partials.iter().map(partial_row).collect();
            parts.push(format!("\nNot complete:\n{}", table(&rows)));
        }
        let rows: Vec<_> = self.absent().map(known_row).collect();
        if !rows.is_empty() {
            parts.push(format!(
                "\nKnown, fetched by `pocket-llm pull NAME`:\n{}",
                table(&rows)
            ));
        }
        parts.concat()
    }

    fn json(&self) -> Value {
        json!({
            "directory": self.store.root(),
            "models": self.models.iter().map(|model| self.model_json(model)).collect::<Vec<_>>(),
            "partials": self.partials.iter().map(partial_json).collect::<Vec<_>>(),
            "known": self.catalogue.entries().map(|entry| self.known_json(entry)).collect::<Vec<_>>(),
        })
    }

    fn model_json(&self, model: &Stored) -> Value {
        let manifest = model.manifest.as_ref();
        json!({
            "name": model.name.to_string(),
            "path": model.path,
            "bytes": model.bytes,
            "state": match model.state {
                State::Complete => "complete",
                State::SizeDiffers { .. } => "size_differs",
            },
            "quantisation": quantisation(&file_of(model)),
            "catalogue": self.entry(model).map(|entry| &entry.name),
            "source": manifest.map(origin),
            "revision": manifest.and_then(|manifest| manifest.revision.as_ref()),
            "sha256": manifest.and_then(|manifest| manifest.sha256),
            "fetched_at": manifest.and_then(|manifest| manifest.fetched_at),
            "verified_at": manifest.and_then(|manifest| manifest.verified_at),
            "last_used": manifest.and_then(|manifest| manifest.last_used),
        })
    }

    fn known_json(&self, entry: &Entry) -> Value {
        let name = entry.model_name();
        json!({
            "name": entry.name,
            "aliases": entry.aliases,
            "display_name": entry.display_name,
            "description": entry.description,
            "parameters": entry.parameters,
            "licence": entry.licence,
            "login": entry.login,
            "source": entry.source.hub.to_string(),
            "bytes": entry.source.bytes,
            "context": entry.context,
            "capabilities": entry.capabilities.iter().map(|it| it.word()).collect::<Vec<_>>(),
            "on_disk": self.models.iter().any(|model| model.name == name),
        })
    }
}

fn row(model: &Stored) -> [String; 6] {
    let manifest = model.manifest.as_ref();
    let when = |moment: Option<Moment>| moment.map_or_else(|| "-".into(), ago);
    [
        model.name.to_string(),
        Bytes(model.bytes).to_string(),
        quantisation(&file_of(model)).unwrap_or("-").into(),
        manifest.map_or_else(|| "-".into(), origin),
        when(manifest.and_then(|manifest| manifest.fetched_at)),
        when(manifest.and_then(|manifest| manifest.last_used)),
    ]
}

/// What its size says against a model.
fn damage(model: &Stored) -> Option<String> {
    let State::SizeDiffers { expected } = model.state else {
        return None;
    };
    Some(format!(
        "{} is damaged: {} bytes where its manifest states {expected}. Remove it and fetch it again.\n",
        model.name, model.bytes
    ))
}

fn partial_row(partial: &Partial) -> [String; 4] {
    let progress = match partial.percent() {
        Some(percent) => format!("{percent} %"),
        None => "? %".into(),
    };
    let of = partial
        .expected
        .map_or_else(String::new, |expected| format!(" of {}", Bytes(expected)));
    [
        partial.stem.clone(),
        progress,
        format!("{}{of}", Bytes(partial.bytes)),
        if partial.running {
            "being fetched"
        } else {
            "stopped"
        }
        .into(),
    ]
}

fn partial_json(partial: &Partial) -> Value {
    json!({
        "name": partial.stem,
        "path": partial.path,
        "bytes": partial.bytes,
        "expected_bytes": partial.expected,
        "percent": partial.percent(),
        "running": partial.running,
    })
}

fn known_row(entry: &Entry) -> [String; 5] {
    let abilities = entry
        .capabilities
        .iter()
        .filter(|it| **it != Capability::Text);
    let abilities: Vec<&str> = abilities.map(|it| it.word()).collect();
    [
        entry.name.clone(),
        entry
            .source
            .bytes
            .map_or_else(|| "-".into(), |bytes| Bytes(bytes).to_string()),
        quantisation(entry.source.hub.file()).unwrap_or("-").into(),
        entry.licence.clone(),
        abilities.join(", "),
    ]
}

fn origin(manifest: &Manifest) -> String {
    match &manifest.source {
        Origin::Hub(hub) => hub.to_string(),
        Origin::Url { url } => url.clone(),
        Origin::ByHand => "put there by hand".into(),
    }
}

/// The name that tells most about the file: the hub's, else its own.
fn file_of(model: &Stored) -> String {
    match model.manifest.as_ref().map(|manifest| &manifest.source) {
        Some(Origin::Hub(hub)) => hub.file().to_owned(),
        _ => model.name.to_string(),
    }
}

/// The quantisation that a file's name states: `…-Q4_K_M.gguf`.
fn quantisation(file: &str) -> Option<&'static str> {
    const KNOWN: [&str; 28] = [
        "Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q8_0", "Q5_K_M", "Q5_K_S", "Q5_0", "Q5_1", "Q6_K",
        "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "IQ4_XS", "IQ4_NL", "IQ3_XXS", "IQ3_XS", "IQ3_M",
        "IQ3_S", "IQ2_XXS", "IQ2_XS", "IQ2_M", "IQ2_S", "IQ1_M", "IQ1_S", "BF16", "F16",
    ];
    let file = file.to_uppercase();
    let file = file.strip_suffix(".GGUF").unwrap_or(&file);
    let words: Vec<&str> = file.split(['-', '.', '/', ' ', '~', '@']).collect();
    KNOWN.into_iter().find(|known| words.contains(known))
}

/// Rows in columns that are as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_quantisation() {
        let table = [
            ("gemma-3-1b-it-Q4_K_M.gguf", Some("Q4_K_M")),
            ("qwen2.5-1.5b-instruct-q4_0.gguf", Some("Q4_0")),
            ("TinyLlama.IQ2_XXS.gguf", Some("IQ2_XXS")),
            ("folder/model-BF16.gguf", Some("BF16")),
            ("gemma-3-1b", None),
            ("FAQ4_0s.gguf", None),
        ];
        for (file, expected) in table {
            assert_eq!(quantisation(file), expected, "{file}");
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let rows = [["a", "bb", ""], ["größer", "c", "d"]].map(|row| row.map(String::from));
        assert_eq!(table(&rows), "a       bb\ngrößer  c   d\n");
    }
}
