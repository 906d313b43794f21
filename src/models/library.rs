//! Which model a request means: the names of the default model, of the catalogue, and of the files in the store.

use super::catalogue::{Catalogue, Entry};
use super::reference::ModelName;
use super::store::{Store, StoreError, Stored};
use super::{Model, shortened};
use std::path::Path;
use std::sync::Arc;

/// Every model that this server can be asked for.
pub struct Library {
    catalogue: Arc<Catalogue>,
    store: Option<Store>,
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
    /// Models of a catalogue and a store, of which one may be the default and may have further names.
    pub fn new(
        catalogue: Arc<Catalogue>,
        store: Option<Store>,
        default: Option<Model>,
        aliases: Vec<String>,
    ) -> Self {
        Self {
            catalogue,
            store,
            default,
            aliases,
        }
    }

    /// The catalogue.
    pub fn catalogue(&self) -> &Arc<Catalogue> {
        &self.catalogue
    }

    /// The store, if there is one.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// Whether it is the model that the server was started with.
    pub fn is_default(&self, path: &Path) -> bool {
        self.default.as_ref().is_some_and(|model| model.path == path)
    }

    /// The model for requests that name none: the one that the server was started with, else the first one on disk, in the
    /// catalogue's order.
    pub fn default(&self) -> Result<Model, NoModel> {
        if let Some(model) = &self.default {
            return Ok(model.clone());
        }
        let mut models = self.list()?.into_iter();
        models.find_map(|listed| listed.model).ok_or(NoModel::Nothing)
    }

    /// The model that a request means. Names are compared without regard to case.
    pub fn resolve(&self, asked: Option<&str>) -> Result<Model, NoModel> {
        let Some(asked) = asked.map(str::trim).filter(|asked| !asked.is_empty()) else {
            return self.default();
        };
        if let Some(model) = &self.default
            && self.names_of_default(model).any(|name| same(name, asked))
        {
            return Ok(model.clone());
        }
        if let Some(entry) = self.catalogue.find(asked) {
            let stored = self.stored(&entry.name)?;
            let model = stored.map(|stored| self.model(&stored));
            return model.ok_or_else(|| NoModel::NotDownloaded(entry.name.clone()));
        }
        match self.stored(asked)? {
            Some(stored) => Ok(self.model(&stored)),
            None => Err(NoModel::Unknown {
                asked: shortened(asked),
                available: self.available()?,
            }),
        }
    }

    /// Every name that can be asked for now: the default model's, its aliases, and those of the other models on disk.
    pub fn available(&self) -> Result<Vec<String>, NoModel> {
        let usable = self.list()?.into_iter().filter(|listed| listed.model.is_some());
        Ok(usable
            .flat_map(|listed| {
                let default = listed.model.as_ref().is_some_and(|model| self.is_default(&model.path));
                // The catalogue's aliases of a model are many, and its name is enough.
                let aliases = if default { self.aliases.clone() } else { Vec::new() };
                std::iter::once(listed.name).chain(aliases)
            })
            .collect())
    }

    /// Every model: the default one, then the catalogue, then what else is on disk.
    pub fn list(&self) -> Result<Vec<Listed>, NoModel> {
        let mut stored = match &self.store {
            Some(store) => store.list()?,
            None => Vec::new(),
        };
        let mut take = |fits: &dyn Fn(&Stored) -> bool| {
            let index = stored.iter().position(fits)?;
            Some(stored.remove(index))
        };
        let mut list = Vec::new();
        if let Some(model) = &self.default {
            let stored = take(&|stored| stored.path == model.path);
            list.push(Listed {
                name: model.name.clone(),
                aliases: self.aliases.clone(),
                entry: model.entry.clone(),
                stored,
                model: Some(model.clone()),
            });
        }
        for entry in self.catalogue.entries() {
            if list.first().is_some_and(|first| same(&first.name, &entry.name)) {
                list[0].aliases.extend(entry.aliases.iter().cloned());
                continue;
            }
            let stored = take(&|stored| same(&stored.name, &entry.name));
            list.push(Listed {
                name: entry.name.clone(),
                aliases: entry.aliases.clone(),
                entry: Some(Arc::clone(entry)),
                model: stored.as_ref().map(|stored| self.model(stored)),
                stored,
            });
        }
        list.extend(stored.into_iter().map(|stored| Listed {
            name: stored.name.clone(),
            aliases: Vec::new(),
            entry: None,
            model: Some(self.model(&stored)),
            stored: Some(stored),
        }));
        Ok(list)
    }

    fn names_of_default<'a>(&'a self, model: &'a Model) -> impl Iterator<Item = &'a str> {
        let aliases = self.aliases.iter().map(String::as_str);
        let of_entry = model.entry.iter().flat_map(|entry| entry.names());
        std::iter::once(model.name.as_str()).chain(aliases).chain(of_entry)
    }

    fn stored(&self, name: &str) -> Result<Option<Stored>, NoModel> {
        let (Some(store), Ok(name)) = (&self.store, ModelName::parse(name)) else {
            return Ok(None);
        };
        Ok(store.find(&name)?)
    }

    fn model(&self, stored: &Stored) -> Model {
        Model {
            name: stored.name.clone(),
            path: stored.path.clone(),
            entry: self.catalogue.find(&stored.name).cloned(),
        }
    }
}

fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}
