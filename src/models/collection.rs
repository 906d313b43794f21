//! What is known and what is on disk: a catalogue and a store, opened together.

use super::catalogue::CatalogueError;
use super::reference::RefError;
use super::store::{State, StoreError, Stored, default_root};
use super::{Catalogue, Model, ModelName, ModelRef, Store};
use std::path::Path;
use std::sync::Arc;

/// A catalogue and a store. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Collection {
    /// The known models.
    pub catalogue: Arc<Catalogue>,
    /// The models on disk; there may be no place for them.
    pub store: Option<Store>,
}

/// Why words mean no model here.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Nobody knows it.
    #[error(transparent)]
    Unknown(#[from] RefError),
    /// It is known, and not on disk.
    #[error("{name} is not on disk: get it with `pocket-llm pull {name}`")]
    NotOnDisk {
        /// Its name.
        name: String,
    },
    /// Its file has the wrong size.
    #[error(
        "{name} has {bytes} bytes instead of {expected}: get it again with `pocket-llm pull {name}`"
    )]
    Damaged {
        /// Its name.
        name: String,
        /// Bytes on disk.
        bytes: u64,
        /// Bytes that it should have.
        expected: u64,
    },
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Collection {
    /// Opens what was named, or what is usual. A store that somebody named must work; without the usual one, models are
    /// files.
    pub fn open(models: Option<&Path>, catalogue: Option<&Path>) -> Result<Self, CollectionError> {
        Self::with(Store::open, models, catalogue)
    }

    /// The same, and creates nothing.
    pub fn look(models: Option<&Path>, catalogue: Option<&Path>) -> Result<Self, CollectionError> {
        Self::with(Store::look, models, catalogue)
    }

    fn with(
        open: fn(&Path) -> Result<Store, StoreError>,
        models: Option<&Path>,
        catalogue: Option<&Path>,
    ) -> Result<Self, CollectionError> {
        let catalogue = Arc::new(Catalogue::load(catalogue)?);
        let store = match models {
            Some(root) => Some(open(root)?),
            None => default_root().and_then(|root| open(&root)).map_or_else(
                |error| {
                    tracing::warn!(%error, "there is no place for models: only files can be served");
                    None
                },
                Some,
            ),
        };
        Ok(Self { catalogue, store })
    }

    /// The model that somebody at a command line means: a name, a file on the hub that was fetched before, or a file.
    pub fn find(&self, words: &str) -> Result<Model, FindError> {
        let name = match ModelRef::parse(words, &self.catalogue) {
            Ok(ModelRef::Path(path)) => return Ok(self.file(&path)),
            Ok(ModelRef::Hub(file)) => ModelName::from(file),
            Ok(ModelRef::Known(entry)) => self.named(words).unwrap_or_else(|| entry.model_name()),
            // A file that somebody dropped into the store has a name that the catalogue does not know.
            Err(unknown) => self.named(words).ok_or(unknown)?,
        };
        let stored = self.stored(&name)?.ok_or_else(|| FindError::NotOnDisk {
            name: name.to_string(),
        })?;
        if let State::SizeDiffers { expected } = stored.state {
            return Err(FindError::Damaged {
                name: name.to_string(),
                bytes: stored.bytes,
                expected,
            });
        }
        Ok(self.model(&stored))
    }

    /// A model on disk with what the catalogue says about it.
    pub fn model(&self, stored: &Stored) -> Model {
        let name = stored.name.to_string();
        Model {
            // A file that somebody named like an alias is not that model.
            entry: self
                .catalogue
                .find(&name)
                .filter(|entry| entry.model_name() == stored.name)
                .cloned()
                .map(Arc::new),
            path: stored.path.clone(),
            name,
        }
    }

    /// A file anywhere; one that lies in the store is the store's.
    fn file(&self, path: &Path) -> Model {
        let stored = self
            .store
            .iter()
            .flat_map(|store| store.list().unwrap_or_default());
        let same = |stored: &Stored| {
            let (one, other) = (stored.path.canonicalize(), path.canonicalize());
            one.ok()
                .zip(other.ok())
                .is_some_and(|(one, other)| one == other)
        };
        if let Some(stored) = stored.into_iter().find(same) {
            return self.model(&stored);
        }
        let stem = path.file_stem().unwrap_or(path.as_os_str());
        Model {
            name: stem.to_string_lossy().into_owned(),
            path: path.to_owned(),
            entry: None,
        }
    }

    /// The smaller model that the catalogue offers to draft for this one, if it is on disk.
    pub fn draft_of(&self, model: &Model) -> Option<Model> {
        let name = model.entry.as_ref()?.draft.as_ref()?;
        self.find(name).ok()
    }

    /// A model on disk that answers to these words.
    fn named(&self, words: &str) -> Option<ModelName> {
        let store = self.store.as_ref()?;
        let name = store.name_of(words, &self.catalogue).ok()?;
        store.has(&name).then_some(name)
    }

    fn stored(&self, name: &ModelName) -> Result<Option<Stored>, StoreError> {
        self.store
            .as_ref()
            .map_or(Ok(None), |store| store.find(name))
    }
}

/// Why a collection can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum CollectionError {
    /// A description of a model is wrong.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The folder of models can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}
