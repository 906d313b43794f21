//! What is known of a model before it is loaded: its header, and what the catalogue or its family wants of it.

use super::Family;
use super::catalogue::{Entry, Sampling};
use super::gguf::{Gguf, GgufError};
use super::tuned::Tuned;
use crate::engine::ModelInfo;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model that can be asked: a name and a file.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name that answers carry.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// What the catalogue says about it, if it has it.
    pub entry: Option<Arc<Entry>>,
}

/// Sampling values for requests that name none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingDefaults {
    /// As [`Sampling::temperature`](crate::engine::Sampling::temperature).
    pub temperature: f32,
    /// As [`Sampling::top_k`](crate::engine::Sampling::top_k).
    pub top_k: u32,
    /// As [`Sampling::top_p`](crate::engine::Sampling::top_p).
    pub top_p: f32,
    /// As [`Sampling::min_p`](crate::engine::Sampling::min_p).
    pub min_p: f32,
    /// As [`Sampling::repeat_penalty`](crate::engine::Sampling::repeat_penalty).
    pub repeat_penalty: f32,
}

/// A model and what its file's header tells.
#[derive(Debug)]
pub struct Facts {
    /// Which model it is.
    pub model: Model,
    /// The file's header.
    pub header: Gguf,
    /// The header in the engine's words; what only loading tells is zero.
    pub info: ModelInfo,
    /// Where a request names no sampling values.
    pub sampling: SamplingDefaults,
    /// The sentence that the licence wants beside answers.
    pub licence_notice: Option<String>,
    /// What was measured with it on this machine. Not told by the header; whoever knows sets it.
    pub tuned: Option<Tuned>,
    /// A smaller model to draft for it, and that one's header. Not told by the header; whoever knows sets it.
    pub draft: Option<(Model, Gguf)>,
    /// Which file it was.
    identity: Option<Identity>,
}

/// What tells a file from another one at the same path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    changed: (i64, i64),
}

impl Identity {
    /// Of the file that is there now.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let about = std::fs::metadata(path).ok()?;
        Some(Self {
            device: about.dev(),
            inode: about.ino(),
            bytes: about.len(),
            changed: (about.mtime(), about.mtime_nsec()),
        })
    }
}

impl Facts {
    /// Reads the header of a model's file. Blocks for as long as that takes: some ten milliseconds for a vocabulary of 262,144
    /// tokens.
    pub fn read(model: Model) -> Result<Self, GgufError> {
        // Before it is read: a file that is replaced meanwhile is taken for another one.
        let identity = Identity::of(&model.path);
        let header = Gguf::read_in_bites(&model.path)?;
        let info = header.model_info();
        let family = Family::of(&info);
        let of_family = SamplingDefaults {
            temperature: family.temperature,
            top_k: family.top_k,
            top_p: family.top_p,
            min_p: 0.0,
            repeat_penalty: 1.0,
        };
        let entry = model.entry.as_deref();
        let sampling = entry.map_or(of_family, |entry| of_entry(&entry.sampling));
        let licence_notice = match entry {
            Some(entry) => entry.licence_notice.clone(),
            None => family.licence_notice.clone(),
        };
        Ok(Self {
            model,
            header,
            info,
            sampling,
            licence_notice,
            tuned: None,
            draft: None,
            identity,
        })
    }

    /// Sets the model that drafts for this one, if its file can be read; the log says if not.
    pub fn set_draft(&mut self, draft: Model) {
        match Gguf::read_in_bites(&draft.path) {
            Ok(header) => self.draft = Some((draft, header)),
            Err(error) => tracing::warn!(%error, "the draft model is not used"),
        }
    }

    /// Whether the file is still the one that was read. One that is gone is nobody else: whoever has it open keeps it.
    pub fn is_current(&self) -> bool {
        Identity::of(&self.model.path).is_none_or(|now| Some(now) == self.identity)
    }

    /// Whether both are about the same file with the same content.
    pub fn is_same_file(&self, other: &Self) -> bool {
        self.model.path == other.model.path && self.identity == other.identity
    }

    /// The template to use instead of the file's own, if the catalogue has one.
    pub fn chat_template(&self) -> Option<String> {
        self.model.entry.as_ref()?.chat_template.clone()
    }
}

fn of_entry(sampling: &Sampling) -> SamplingDefaults {
    SamplingDefaults {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: sampling.top_p,
        min_p: sampling.min_p.unwrap_or(0.0),
        repeat_penalty: sampling.repeat_penalty.unwrap_or(1.0),
    }
}
