//! What `pocket-llm tune` found out: which cores, threads and rows are best for a model on this machine with this build.
//!
//! One file each, `tuning/MACHINE-MODEL.json` in the folder of models. MACHINE stands for the cores, their features, and what of
//! them was allowed; MODEL for the file's header and length (weights of the same shapes take the same time). What was measured with
//! another build is not used, because other kernels have other limits. A file that is lost or damaged costs another `tune`.

use super::gguf::Gguf;
use crate::device::{Allowed, Placement, Topology};
use crate::engine::wire::BUILD;
use crate::engine::{CacheType, WorkerConfig};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The folder beside the models.
const FOLDER: &str = "tuning";
/// A file is not longer than this.
const MOST_BYTES: u64 = 64 << 10;

/// What was measured, and what follows from it. A part that somebody settles by hand is `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// The build that was measured.
    pub build: String,
    /// The model's name, for people.
    pub model: String,
    /// When it was measured, in seconds since 1970.
    pub measured_at: u64,
    /// Cores and threads.
    pub placement: Option<Placement>,
    /// Rows of a step.
    pub batch_size: Option<u32>,
    /// How the KV cache is stored.
    pub cache_type: Option<CacheType>,
    /// Bytes that all cores together read from memory in a second.
    pub bandwidth: Option<u64>,
    /// What was reached so.
    pub figures: Figures,
}

/// Tokens per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Prompts.
    pub prefill: f64,
    /// One answer.
    pub decode: f64,
    /// Several answers, together.
    pub decode_few: f64,
}

impl Tuned {
    /// Sets what was found, but for the rows, which a memory plan has a say in.
    pub fn apply(&self, config: &mut WorkerConfig) {
        if let Some(placement) = &self.placement {
            config.place(placement.clone());
        }
        if let Some(cache_type) = self.cache_type {
            config.cache_type = cache_type;
        }
    }
}

/// The results for this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunings {
    folder: PathBuf,
    machine: String,
    /// Whether cores and threads were said by hand.
    placed_by_hand: bool,
    /// Whether the KV cache's type was.
    stored_by_hand: bool,
}

impl Tunings {
    /// Those beside the models in `root`.
    pub fn new(root: &Path, topology: &Topology, allowed: &Allowed) -> Self {
        Self {
            folder: root.join(FOLDER),
            machine: machine(topology, allowed),
            placed_by_hand: false,
            stored_by_hand: false,
        }
    }

    /// What was said by hand is not to be found.
    #[must_use]
    pub fn without(mut self, placement: bool, cache_type: bool) -> Self {
        self.placed_by_hand = placement;
        self.stored_by_hand = cache_type;
        self
    }

    /// What was found for a model. Blocks while it reads the model's header.
    pub fn find(&self, header: &Gguf) -> Option<Tuned> {
        // Most machines have no results, and need not read that much.
        if !self.has_any() {
            return None;
        }
        let path = self.path(header).ok()?;
        let mut text = String::new();
        let file = File::open(&path).ok()?;
        file.take(MOST_BYTES).read_to_string(&mut text).ok()?;
        let mut tuned: Tuned = match serde_json::from_str(&text) {
            Ok(tuned) => tuned,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "the result of a tuning can't be read");
                return None;
            }
        };
        if tuned.build != BUILD {
            tracing::info!(
                model = tuned.model,
                "tuned with another build, which is not used: `pocket-llm tune` measures anew"
            );
            return None;
        }
        tuned.placement = tuned.placement.filter(|_| !self.placed_by_hand);
        tuned.cache_type = tuned.cache_type.filter(|_| !self.stored_by_hand);
        Some(tuned)
    }

    /// Keeps what was found for a model; returns where.
    pub fn save(&self, header: &Gguf, tuned: &Tuned) -> io::Result<PathBuf> {
        let path = self.path(header)?;
        fs::create_dir_all(&self.folder)?;
        let mut text = serde_json::to_string_pretty(tuned)?;
        text.push('\n');
        // Whole or not there: a server may look at this moment.
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&temporary, text)?;
        fs::rename(&temporary, &path)?;
        Ok(path)
    }

    fn has_any(&self) -> bool {
        let entries = fs::read_dir(&self.folder).into_iter().flatten();
        let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.any(|name| name.starts_with(&self.machine))
    }

    fn path(&self, header: &Gguf) -> io::Result<PathBuf> {
        let model = model(header)?;
        Ok(self.folder.join(format!("{}-{model}.json", self.machine)))
    }
}

fn machine(topology: &Topology, allowed: &Allowed) -> String {
    // Debug would change with the compiler, JSON doesn't.
    let about = serde_json::json!({"topology": topology, "allowed": allowed});
    digest(Sha256::new_with_prefix(about.to_string()))
}

/// The header's digest: names, shapes and types of all tensors, and the vocabulary.
fn model(header: &Gguf) -> io::Result<String> {
    let data = header.tensors().map(|tensor| tensor.offset).min();
    let mut hash = Sha256::new_with_prefix(header.file_bytes().to_le_bytes());
    let head = File::open(header.path())?.take(data.unwrap_or(0));
    io::copy(&mut io::BufReader::with_capacity(64 << 10, head), &mut hash)?;
    Ok(digest(hash))
}

fn digest(hash: Sha256) -> String {
    let mut text = String::new();
    for byte in &hash.finalize()[..8] {
        // Writing into a text can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
