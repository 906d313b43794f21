//! Which model a request means: the names of the default model, of the catalogue, and of the files in the store.

use super::store::{State, StoreError, Stored};
use super::{Collection, Entry, Model, shortened};
use std::path::Path;
use std::sync::Arc;

/// Every model that this server can be asked for.
#[derive(Clone, Debug)]
pub struct Library {
    collection: Collection,
    /// The model that the server was started with.
    default: Option<Model>,
    /// Further names of the default model; they beat the catalogue.
    aliases: Vec<String>,
}

/// Why a name means no model that can be asked.
#[derive(Debug, thiserror::Error)]
pub enum NoModel {
    /// Nothing has this name.
    #[error("model {asked:?} is not available")]
    Unknown {
        /// The name that was asked for, cut if it is long.
        asked: String,
        /// The names that exist.
        available: Vec<String>,
    },
    /// The catalogue has it, the disk does not.
    #[error("model {0:?} is not downloaded")]
    NotDownloaded(String),
    /// Its file has the wrong size.
    #[error("the file of model {name:?} has {bytes} bytes instead of {expected}")]
    Damaged {
        /// Its name.
        name: String,
        /// Bytes on disk.
        bytes: u64,
        /// Bytes that it should have.
        expected: u64,
    },
    /// There is no model at all.
    #[error("there is no model on this server yet")]
    Nothing,
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A model as lists show it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// What the catalogue says about it.
    pub entry: Option<Arc<Entry>>,
    /// Its file in the store.
    pub stored: Option<Stored>,
    /// The model, if it can be asked.
    pub model: Option<Model>,
}

impl Library {
    /// The models of a collection, of which one may be the default and may have further names.
    pub fn new(collection: Collection, default: Option<Model>, aliases: Vec<String>) -> Self {
        Self {
            collection,
            default,
            aliases,
        }
    }

    /// What is known and what is on disk.
    pub fn collection(&self) -> &Collection {
        &self.collection
    }

    /// Whether it is the model that the server was started with.
    pub fn is_default(&self, path: &Path) -> bool {
        self.default
            .as_ref()
            .is_some_and(|model| model.path == path)
    }

    /// The model for requests that name none: the one that the server was started with, else the first one on disk, in the
    /// order of the list.
    pub fn default(&self) -> Result<Model, NoModel> {
        if let Some(model) = &self.default {
            return Ok(model.clone());
        }
        let mut models = self.list()?.into_iter();
        models
            .find_map(|listed| listed.model)
            .ok_or(NoModel::Nothing)
    }

    /// The model that a request means. Names are compared without regard to case.
    pub fn resolve(&self, asked: Option<&str>) -> Result<Model, NoModel> {
        let Some(asked) = asked.filter(|asked| !asked.is_empty()) else {
            return self.default();
        };
        let of_default = self.default.iter().flat_map(names);
        let mut names = self.aliases.iter().map(String::as_str).chain(of_default);
        if names.any(|name| same(name, asked)) {
            return self.default();
        }
        let catalogue = &self.collection.catalogue;
        let stored = match &self.collection.store {
            // A name that can't be one means nothing.
            Some(store) => match store.name_of(asked, catalogue) {
                Ok(name) => store.find(&name)?,
                Err(_) => None,
            },
            None => None,
        };
        match (stored, catalogue.find(asked)) {
            (Some(stored), _) => self.usable(&stored),
            (None, Some(entry)) => Err(NoModel::NotDownloaded(entry.name.clone())),
            (None, None) => Err(NoModel::Unknown {
                asked: shortened(asked),
                available: self.available()?,
            }),
        }
    }

    /// Every name that can be asked for now: the default model's, its aliases, and those of the other models on disk.
    pub fn available(&self) -> Result<Vec<String>, NoModel> {
        let mut available = Vec::new();
        for listed in self.list()? {
            let Some(model) = &listed.model else { continue };
            available.push(listed.name);
            // The catalogue's aliases of a model are many, and its name is enough.
            if self.is_default(&model.path) {
                available.extend(self.aliases.iter().cloned());
            }
        }
        Ok(available)
    }

    /// Every model: the default one, then the catalogue, then what else is on disk.
    pub fn list(&self) -> Result<Vec<Listed>, NoModel> {
        let mut stored = match &self.collection.store {
            Some(store) => store.list()?,
            None => Vec::new(),
        };
        let mut take = |fits: &dyn Fn(&Stored) -> bool| {
            let index = stored.iter().position(fits)?;
            Some(stored.remove(index))
        };
        let mut list = Vec::new();
        if let Some(model) = &self.default {
            let of_entry = model.entry.iter().flat_map(|entry| entry.aliases.clone());
            list.push(Listed {
                name: model.name.clone(),
                aliases: self.aliases.iter().cloned().chain(of_entry).collect(),
                entry: model.entry.clone(),
                stored: take(&|stored| stored.path == model.path),
                model: Some(model.clone()),
            });
        }
        for entry in self.collection.catalogue.entries() {
            let is_default = |model: &Model| {
                model
                    .entry
                    .as_ref()
                    .is_some_and(|own| own.name == entry.name)
            };
            if self.default.as_ref().is_some_and(is_default) {
                continue;
            }
            let stored = take(&|stored| same(&stored.name.to_string(), &entry.name));
            list.push(Listed {
                name: entry.name.clone(),
                aliases: entry.aliases.clone(),
                entry: Some(Arc::new(entry.clone())),
                model: stored.as_ref().and_then(|stored| self.usable(stored).ok()),
                stored,
            });
        }
        list.extend(stored.into_iter().map(|stored| Listed {
            name: stored.name.to_string(),
            aliases: Vec::new(),
            entry: None,
            model: self.usable(&stored).ok(),
            stored: Some(stored),
        }));
        Ok(list)
    }

    fn usable(&self, stored: &Stored) -> Result<Model, NoModel> {
        match stored.state {
            State::Complete => Ok(self.collection.model(stored)),
            State::SizeDiffers { expected } => Err(NoModel::Damaged {
                name: stored.name.to_string(),
                bytes: stored.bytes,
                expected,
            }),
        }
    }
}

/// All names of a model.
fn names(model: &Model) -> impl Iterator<Item = &str> {
    let of_entry = model.entry.iter().flat_map(|entry| entry.names());
    std::iter::once(model.name.as_str()).chain(of_entry)
}

fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}
