//! Models on disk: one directory, found by looking at it.
//!
//! Any `*.gguf` directly in it is a model. Beside `NAME.gguf` may lie `NAME.gguf.json` (its manifest), `NAME.gguf.partial` and
//! `NAME.gguf.partial.json` (a download that is not complete), `NAME.gguf.lock` (held by whoever fetches or removes it) and
//! `NAME.tokenizer.json` (its publisher's tokenizer). The directory is the truth: a manifest only adds to what is seen there, and one
//! that is lost or damaged costs nothing but what it knew. Nothing outside the directory is ever touched.

mod clean;
mod error;
mod lock;
mod manifest;
mod root;
mod write;

use super::catalogue::Catalogue;
use super::reference::{GGUF, ModelName, NameError};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use clean::Cleaned;
pub use error::StoreError;
pub use lock::Lock;
pub use manifest::{MANIFEST_VERSION, Manifest, Moment, Origin, manifest_path};
pub use root::default_root;

/// Files in the directory at most, of any kind.
const MOST_FILES: usize = 10_000;

/// The directory of models.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// A model on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// What it is called.
    pub name: ModelName,
    /// Its file.
    pub path: PathBuf,
    /// The file's size.
    pub bytes: u64,
    /// When it was last written.
    pub modified: Option<Moment>,
    /// What is known of it.
    pub manifest: Option<Manifest>,
    /// Why a manifest that is there is not used, in one sentence.
    pub problem: Option<String>,
    /// What can be said without reading it.
    pub state: State,
}

/// What a file's size says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has the size that it should have, or nobody said which.
    Complete,
    /// It has another one.
    SizeDiffers {
        /// The manifest's.
        expected: u64,
    },
}

/// A download that is not complete.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// The stem of the file that it will be.
    pub stem: String,
    /// Where its bytes are.
    pub path: PathBuf,
    /// Bytes there.
    pub bytes: u64,
    /// Bytes that it will have, if its description (`bytes` in `NAME.gguf.partial.json`) says so.
    pub expected: Option<u64>,
    /// When it last grew.
    pub modified: Option<Moment>,
    /// Whether a process is fetching it now.
    pub running: bool,
}

impl Partial {
    /// Per cent of the bytes that are there, if it is known how many there will be.
    pub fn percent(&self) -> Option<u64> {
        let expected = self.expected.filter(|expected| *expected > 0)?;
        Some(self.bytes.saturating_mul(100) / expected)
    }
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Opens a directory, and creates it if it is not there.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self::look(root)?;
        fs::create_dir_all(root).map_err(|source| StoreError::Create {
            path: root.to_owned(),
            source,
        })?;
        Ok(store)
    }

    /// Opens a directory as it is; one that is not there holds no models.
    pub fn look(root: &Path) -> Result<Self, StoreError> {
        let path = root.to_owned();
        match fs::metadata(root) {
            Ok(found) if found.is_dir() => Ok(Self { root: path }),
            Ok(_) => Err(StoreError::NotADirectory { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self { root: path }),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Err(StoreError::Create {
                path,
                source: error,
            }),
            Err(source) => Err(StoreError::Read { path, source }),
        }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a model's file is, or will be.
    pub fn place(&self, name: &ModelName) -> PathBuf {
        self.root.join(name.stem() + GGUF)
    }

    /// All models, by name.
    pub fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let mut models = Vec::new();
        for name in self.names()?.into_iter().flatten() {
            models.extend(self.stored(&name)?);
        }
        models.sort_by_cached_key(|model| model.name.to_string());
        Ok(models)
    }

    /// Model files that are not found, because their names can't be a model's: renamed they are.
    pub fn unnameable(&self) -> Result<Vec<NameError>, StoreError> {
        Ok(self.names()?.into_iter().filter_map(Result::err).collect())
    }

    fn names(&self) -> Result<Vec<Result<ModelName, NameError>>, StoreError> {
        let files = self.files()?;
        let stems = files.iter().filter_map(|file| file.strip_suffix(GGUF));
        Ok(stems.map(ModelName::own).collect())
    }

    /// The model of this name, if it is on disk.
    pub fn find(&self, name: &ModelName) -> Result<Option<Stored>, StoreError> {
        self.stored(name)
    }

    /// The name under which a model is on disk, or would be. What is there under exactly this name comes first, then what the
    /// catalogue calls so, then what differs in case only.
    pub fn name_of(&self, text: &str, catalogue: &Catalogue) -> Result<ModelName, NameError> {
        let own = ModelName::parse(text);
        if let Ok(name) = &own
            && self.has(name)
        {
            return own;
        }
        if let Some(entry) = catalogue.find(text) {
            return Ok(entry.model_name());
        }
        let wanted = text.strip_suffix(GGUF).unwrap_or(text).to_lowercase();
        let alike = self.list().unwrap_or_default().into_iter();
        let mut alike = alike.filter(|model| model.name.to_string().to_lowercase() == wanted);
        match (alike.next(), alike.next()) {
            (Some(only), None) => Ok(only.name),
            _ => own,
        }
    }

    /// Whether a model, or a part of it, is on disk.
    pub fn has(&self, name: &ModelName) -> bool {
        let path = self.place(name);
        path.symlink_metadata().is_ok() || with_end(&path, ".partial").exists()
    }

    /// Downloads that are not complete, by name.
    pub fn partials(&self) -> Result<Vec<Partial>, StoreError> {
        let mut partials = Vec::new();
        for file in self.files()? {
            let Some(stem) = file.strip_suffix(".gguf.partial") else {
                continue;
            };
            if ModelName::own(stem).is_ok()
                && let Some(partial) = self.partial(stem)
            {
                partials.push(partial);
            }
        }
        partials.sort_by(|a, b| a.stem.cmp(&b.stem));
        Ok(partials)
    }

    /// Removes a model, and all that lies beside it under its name.
    pub fn remove(&self, name: &ModelName) -> Result<Removed, StoreError> {
        let path = self.place(name);
        let parts = beside(&path);
        if !parts.iter().any(|part| part.symlink_metadata().is_ok()) {
            return Err(StoreError::Missing {
                name: name.to_string(),
            });
        }
        let lock = self.lock(&path)?;
        let mut removed = Removed::default();
        // The model first: what is left when this is cut short is what `clean` finds.
        for part in parts {
            if let Some(bytes) = write::remove(&part)? {
                removed.bytes += bytes;
                removed.files.push(part);
            }
        }
        lock.discard();
        write::sync_folder(&self.root);
        Ok(removed)
    }

    /// Takes the lock of a model's file, which is held until it is dropped or the process ends, however it ends.
    pub fn lock(&self, path: &Path) -> Result<Lock, StoreError> {
        self.own(path)?;
        Lock::take(path)
    }

    /// Writes a file's manifest: whole or not at all, whatever happens meanwhile.
    pub fn record(&self, path: &Path, manifest: &Manifest) -> Result<(), StoreError> {
        self.own(path)?;
        let json = serde_json::to_vec_pretty(manifest).map_err(|error| StoreError::Write {
            path: manifest_path(path),
            source: error.into(),
        })?;
        write::replace(&manifest_path(path), &json)
    }

    /// Notes that a model is used now. A directory that can't be written is no reason to fail.
    pub fn touch(&self, path: &Path) {
        if let Err(error) = self.try_touch(path) {
            tracing::debug!(%error, "the use of a model is not noted");
        }
    }

    fn try_touch(&self, path: &Path) -> Result<(), StoreError> {
        // Whoever removes the model meanwhile must not find its manifest come back.
        let lock = self.lock(path)?;
        let noted = self.note_use(path);
        lock.discard();
        noted
    }

    fn note_use(&self, path: &Path) -> Result<(), StoreError> {
        let bytes = fs::metadata(path).map(|found| found.len());
        let bytes = bytes.map_err(|source| StoreError::Read {
            path: path.to_owned(),
            source,
        })?;
        let known = manifest::read(path).ok().flatten();
        let mut manifest = known.unwrap_or_else(|| Manifest::new(Origin::ByHand, bytes));
        manifest.last_used = Some(Moment::now());
        self.record(path, &manifest)
    }

    /// Only files directly in the directory are ours.
    fn own(&self, path: &Path) -> Result<(), StoreError> {
        let name = path.file_name().map(|name| name.to_string_lossy());
        let valid = name.is_some_and(|name| {
            name.strip_suffix(GGUF)
                .is_some_and(|stem| ModelName::own(stem).is_ok())
        });
        if valid && path.parent() == Some(&self.root) {
            return Ok(());
        }
        Err(StoreError::Foreign {
            path: path.to_owned(),
            root: self.root.clone(),
        })
    }

    /// Names of the files in the directory that are text, sorted.
    fn files(&self) -> Result<Vec<String>, StoreError> {
        let unreadable = |source| StoreError::Read {
            path: self.root.clone(),
            source,
        };
        let mut names = Vec::new();
        let items = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            items => items.map_err(unreadable)?,
        };
        for (count, item) in items.enumerate() {
            if count == MOST_FILES {
                let path = self.root.clone();
                return Err(StoreError::Crowded { path });
            }
            names.extend(item.map_err(unreadable)?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    fn stored(&self, name: &ModelName) -> Result<Option<Stored>, StoreError> {
        let path = self.place(name);
        let found = match fs::metadata(&path) {
            Ok(found) if found.is_file() => found,
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        let (manifest, problem) = match manifest::read(&path) {
            Ok(manifest) => (manifest, None),
            Err(problem) => (None, Some(problem)),
        };
        let expected = manifest.as_ref().and_then(Manifest::expected_bytes);
        let state = match expected {
            Some(expected) if expected != found.len() => State::SizeDiffers { expected },
            _ => State::Complete,
        };
        Ok(Some(Stored {
            name: true_name(name, manifest.as_ref()),
            path,
            bytes: found.len(),
            modified: found.modified().ok().map(Moment::from),
            manifest,
            problem,
            state,
        }))
    }

    fn partial(&self, stem: &str) -> Option<Partial> {
        let model = self.root.join(format!("{stem}{GGUF}"));
        let path = with_end(&model, ".partial");
        // It may be complete, and renamed, by now.
        let found = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?;
        let note = manifest::read_bounded(&with_end(&path, ".json"))
            .ok()
            .flatten();
        let note = note.and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
        Some(Partial {
            stem: stem.to_owned(),
            path,
            bytes: found.len(),
            expected: note.and_then(|note| note.get("bytes")?.as_u64()),
            modified: found.modified().ok().map(Moment::from),
            running: Lock::is_held(&model),
        })
    }
}

/// All files that belong to a model's, which comes first. The lock is not among them.
fn beside(path: &Path) -> [PathBuf; 6] {
    [
        path.to_owned(),
        with_end(path, ".partial"),
        with_end(path, ".partial.json"),
        with_end(path, ".partial.json.new"),
        tokenizer_path(path),
        manifest_path(path),
    ]
}

/// Where a model's published tokenizer is, if somebody put it there.
pub fn tokenizer_path(model: &Path) -> PathBuf {
    model.with_extension("tokenizer.json")
}

/// `path` with something put behind its name.
pub fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// A file that was fetched from the hub is called by where it came from.
fn true_name(asked: &ModelName, manifest: Option<&Manifest>) -> ModelName {
    if let Some(Origin::Hub(hub)) = manifest.map(|manifest| &manifest.source) {
        let name = ModelName::from(hub.clone());
        if name.stem() == asked.stem() {
            return name;
        }
    }
    asked.clone()
}
