//! `pocket-llm verify`: whether model files are what they should be.
//!
//! Size and digest against what the manifest and the catalogue state, the file's structure, and, where the publisher's
//! `tokenizer.json` is at hand, whether the vocabulary tokenises as it does. Findings are standard output; a file that fails is a
//! sentence on standard error and status 1.

#[cfg(feature = "tokenizers")]
use super::vocabulary::Vocabulary;
use crate::config::StoreArgs;
use crate::models::catalogue::Source;
use crate::models::gguf::Gguf;
#[cfg(feature = "tokenizers")]
use crate::models::parity;
use crate::models::store::{Manifest, Moment, Origin, Stored, tokenizer_path};
use crate::models::{Catalogue, Digest, ModelRef, Store, verify as digest_of};
use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

/// Whether this build can compare vocabularies.
const COMPARES: bool = cfg!(feature = "tokenizers");
/// What is said where it can't.
const INCAPABLE: &str = "this build can't compare with a tokenizer.json (it was built without the feature `tokenizers`)";

/// What `verify` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct VerifyArgs {
    /// Models by name, or GGUF files
    #[arg(required = true, value_name = "MODEL")]
    which: Vec<String>,

    /// The publisher's tokenizer.json, to compare the vocabulary with [default: NAME.tokenizer.json beside the model]
    #[arg(long, env = "POCKET_LLM_TOKENIZER", value_name = "FILE")]
    tokenizer: Option<PathBuf>,

    #[command(flatten)]
    models: StoreArgs,
}

pub(super) fn run(args: &VerifyArgs) -> Result<ExitCode> {
    let catalogue = args.models.catalogue()?;
    // A file by its path can be verified without one.
    let store = args.models.store_as_it_is().map_err(anyhow::Error::from);
    let mut code = ExitCode::SUCCESS;
    for text in &args.which {
        let checked = Subject::of(text, &catalogue, &store)
            .and_then(|subject| subject.check(args.tokenizer.as_deref()));
        if let Err(error) = checked {
            eprintln!("pocket-llm: {error:#}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// A file, and what it should be.
struct Subject<'a> {
    name: String,
    path: PathBuf,
    /// What the store knows of it, if it is there.
    stored: Option<Stored>,
    catalogue: &'a Catalogue,
    store: Option<&'a Store>,
}

/// What a file should be, and who says so.
struct Expected {
    who: &'static str,
    /// What to do about a file that is something else.
    remedy: &'static str,
    bytes: Option<u64>,
    sha256: Option<Digest>,
}

impl<'a> Subject<'a> {
    fn of(text: &str, catalogue: &'a Catalogue, store: &'a Result<Store>) -> Result<Self> {
        if let Ok(ModelRef::Path(path)) = ModelRef::parse(text, catalogue) {
            return Self::at(path, catalogue, store.as_ref().ok());
        }
        let store = store
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let name = store.name_of(text, catalogue)?;
        let Some(stored) = store.find(&name)? else {
            bail!("{name} is not on disk: `pocket-llm list` shows what is");
        };
        Ok(Self {
            name: name.to_string(),
            path: stored.path.clone(),
            stored: Some(stored),
            catalogue,
            store: Some(store),
        })
    }

    /// A file by its path, which may lie in the store all the same.
    fn at(path: PathBuf, catalogue: &'a Catalogue, store: Option<&'a Store>) -> Result<Self> {
        let all = store.map_or_else(|| Ok(Vec::new()), Store::list)?;
        let true_path = path.canonicalize().ok();
        let same =
            |stored: &Stored| true_path.is_some() && stored.path.canonicalize().ok() == true_path;
        Ok(Self {
            name: path.display().to_string(),
            stored: all.into_iter().find(same),
            path,
            catalogue,
            store,
        })
    }

    fn check(&self, tokenizer: Option<&Path>) -> Result<()> {
        if self.path.display().to_string() == self.name {
            say(&self.name)?;
        } else {
            say(&format!("{}: {}", self.name, self.path.display()))?;
        }
        if let Some(problem) = self.stored.as_ref().and_then(|s| s.problem.as_deref()) {
            say(&format!("  note       {problem}"))?;
        }
        let name = &self.name;
        let found = self
            .path
            .metadata()
            .with_context(|| format!("{name} can't be read"))?;
        if !found.is_file() {
            bail!("{name} is not a file");
        }
        let expected = self.expected();
        self.check_size(found.len(), &expected)?;
        say(&format!("  structure  {}", structure(&self.path)?))?;
        self.check_digest(&expected)?;
        let beside = tokenizer_path(&self.path);
        let found = beside.is_file().then_some(beside.as_path());
        match tokenizer.or(found) {
            // Who did not ask for it is told, and no more.
            Some(_) if !COMPARES && tokenizer.is_none() => {
                say(&format!("  tokenizer  not compared: {INCAPABLE}"))
            }
            Some(tokenizer) => self.check_vocabulary(tokenizer),
            None => say(
                "  tokenizer  not compared: there is no --tokenizer and no NAME.tokenizer.json beside it",
            ),
        }
    }

    /// What is stated about the file, by those who can know.
    fn expected(&self) -> Vec<Expected> {
        let mut expected = Vec::new();
        let Some(stored) = &self.stored else {
            return expected;
        };
        let manifest = stored.manifest.as_ref();
        let fetched = manifest.filter(|manifest| manifest.source != Origin::ByHand);
        expected.extend(fetched.map(|manifest| Expected {
            who: "the manifest",
            remedy: "it is damaged, remove it and fetch it again",
            bytes: Some(manifest.bytes),
            sha256: manifest.sha256,
        }));
        let named = self.catalogue.find(&stored.name.to_string());
        let named = named.filter(|entry| entry.model_name() == stored.name);
        if let Some(entry) = named
            && fetched.is_none_or(|manifest| is_from(manifest, &entry.source))
        {
            expected.push(Expected {
                who: "the catalogue",
                remedy: "it is another file, give it another name or remove it",
                bytes: entry.source.bytes,
                sha256: entry.source.sha256,
            });
        }
        expected
    }

    fn check_size(&self, bytes: u64, expected: &[Expected]) -> Result<()> {
        let stated = |expected: &Expected| Some((expected.bytes?, expected.who, expected.remedy));
        let who = self.compare(&bytes, expected.iter().filter_map(stated), |it| {
            format!("{it} bytes")
        })?;
        say(&format!("  size       {bytes} bytes{who}"))
    }

    /// Compares what was found with what is stated; who states it, to be put behind it.
    fn compare<T: PartialEq>(
        &self,
        found: &T,
        stated: impl Iterator<Item = (T, &'static str, &'static str)>,
        show: impl Fn(&T) -> String,
    ) -> Result<String> {
        let mut says = String::new();
        for (should, who, remedy) in stated {
            if should != *found {
                bail!(
                    "{} has {} where {who} states {}: {remedy}",
                    self.name,
                    show(found),
                    show(&should)
                );
            }
            says = format!(", as {who} states");
        }
        Ok(says)
    }

    fn check_digest(&self, expected: &[Expected]) -> Result<()> {
        let before = modified(&self.path);
        let sha256 = digest(&self.path, &self.name)?;
        let stated = |expected: &Expected| Some((expected.sha256?, expected.who, expected.remedy));
        let mut says = self.compare(&sha256, expected.iter().filter_map(stated), |it| {
            format!("sha256 {it}")
        })?;
        if says.is_empty() {
            says = self.unstated(sha256, before)?;
        }
        say(&format!("  sha256     {sha256}{says}"))?;
        // Only a file that is still the one that was read is known now.
        if modified(&self.path) == before {
            self.note(sha256, before);
        }
        Ok(())
    }

    /// What can be said of a digest that nobody states.
    fn unstated(&self, sha256: Digest, modified: Option<Moment>) -> Result<String> {
        let mut entries = self.catalogue.entries();
        if let Some(entry) = entries.find(|entry| entry.source.sha256 == Some(sha256)) {
            return Ok(format!(": it is {} of the catalogue", entry.name));
        }
        let manifest = self.stored.as_ref().and_then(|s| s.manifest.as_ref());
        let unchanged = manifest.filter(|manifest| {
            manifest.verified_mtime.is_some() && manifest.verified_mtime == modified
        });
        match unchanged.and_then(|manifest| manifest.sha256) {
            Some(earlier) if earlier == sha256 => {
                Ok(", as when it was last verified; nothing states what it should be".into())
            }
            Some(earlier) => bail!(
                "{} has sha256 {sha256}, had {earlier} when it was last verified, and was not written to since: the disk has \
                 damaged it",
                self.name
            ),
            None => Ok("; nothing states what it should be".into()),
        }
    }

    /// Notes in the manifest that the file was read whole. A store that can't be written is no reason to fail.
    fn note(&self, sha256: Digest, modified: Option<Moment>) {
        let (Some(store), Some(stored)) = (self.store, &self.stored) else {
            return;
        };
        let known = stored.manifest.clone();
        let mut manifest = known.unwrap_or_else(|| Manifest::new(Origin::ByHand, stored.bytes));
        manifest.bytes = stored.bytes;
        manifest.sha256 = Some(sha256);
        manifest.verified_at = Some(Moment::now());
        manifest.verified_mtime = modified;
        if let Err(error) = store.record(&stored.path, &manifest) {
            tracing::debug!(%error, "the verification is not noted");
        }
    }

    #[cfg(not(feature = "tokenizers"))]
    fn check_vocabulary(&self, _: &Path) -> Result<()> {
        bail!("{}: {INCAPABLE}", self.name)
    }

    #[cfg(feature = "tokenizers")]
    fn check_vocabulary(&self, tokenizer: &Path) -> Result<()> {
        let compared = Vocabulary::of(&self.path).and_then(|mut vocabulary| {
            parity::compare(tokenizer, &mut |questions| vocabulary.ask(questions))
        });
        let parity = compared.map_err(|error| anyhow::anyhow!("{}: {error}", self.name))?;
        if parity.different > 0 {
            bail!(
                "the vocabulary of {} is not the one of {}: {}",
                self.name,
                tokenizer.display(),
                parity.disagreement()
            );
        }
        say(&format!(
            "  tokenizer  {} texts give the tokens of {}{}",
            parity.texts,
            tokenizer.display(),
            parity.known_differences()
        ))
    }
}

/// Whether a manifest is about the file that the catalogue means.
fn is_from(manifest: &Manifest, source: &Source) -> bool {
    let Origin::Hub(hub) = &manifest.source else {
        return false;
    };
    let commit = manifest.revision.as_deref().or(hub.revision());
    let same_file = (hub.repo(), hub.file()) == (source.hub.repo(), source.hub.file());
    same_file
        && source
            .hub
            .revision()
            .is_none_or(|revision| commit == Some(revision))
}

fn modified(path: &Path) -> Option<Moment> {
    path.metadata()
        .and_then(|found| found.modified())
        .ok()
        .map(Moment::from)
}

/// What can be said of a file without llama.cpp: that all its tensors are there.
fn structure(path: &Path) -> Result<String> {
    let gguf = Gguf::read(path)?;
    Ok(format!(
        "{} {}, {} tensors, all within the file",
        gguf.architecture(),
        gguf.quantisation(),
        gguf.tensors().len()
    ))
}

/// Reads the whole file, with a bar where somebody sees it.
fn digest(path: &Path, name: &str) -> Result<Digest> {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(None, target);
    if let Ok(style) = ProgressStyle::with_template(
        "  sha256     {binary_bytes}/{binary_total_bytes} {wide_bar} {binary_bytes_per_sec}",
    ) {
        bar.set_style(style);
    }
    let digested = digest_of(path, &AtomicBool::new(false), &mut |bytes, size| {
        bar.set_length(size);
        bar.set_position(bytes);
    });
    bar.finish_and_clear();
    Ok(digested
        .with_context(|| format!("{name} can't be read"))?
        .sha256)
}

fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{line}").context("standard output can't be written")
}
