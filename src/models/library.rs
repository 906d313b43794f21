//! Which model a request means: the names of the default model, of the catalogue, and of the files in the store.

use super::gguf::Gguf;
use super::store::{State, StoreError, Stored};
use super::{Collection, Entry, Model, shortened};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Files whose headers are remembered.
const MOST_LOOKS: usize = 1024;

/// Every model that this server can be asked for.
#[derive(Clone, Debug)]
pub struct Library {
    collection: Collection,
    /// The model that the server was started with.
    default: Option<Model>,
    /// Further names of the default model; they beat the catalogue and the store.
    aliases: Vec<String>,
    /// Headers that were looked at. Locked for a look only.
    looked_at: Arc<Mutex<HashMap<PathBuf, Look>>>,
}

/// What a look at a file's header found, for as long as the file is the same.
#[derive(Clone, Debug)]
struct Look {
    bytes: u64,
    modified: Option<SystemTime>,
    fault: Option<String>,
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
    /// Its file can't be used.
    #[error("model {name:?} {fault}")]
    Damaged {
        /// Its name.
        name: String,
        /// What is wrong with it; completes a sentence.
        fault: String,
    },
    /// There is no model at all.
    #[error("there is no model on this server yet")]
    Nothing,
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A name that two models have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} means {means:?} here, and {hidden:?} has that name too: rename {} if that is not meant", path.display()
)]
pub struct SharedName {
    /// The name.
    pub name: String,
    /// Whom it means.
    pub means: String,
    /// Who has it too.
    pub hidden: String,
    /// The file in the store that is one of the two.
    pub path: PathBuf,
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
    /// What is wrong with its file, if it is there and can't be used; completes a sentence that begins with its name.
    pub fault: Option<String>,
}

impl Library {
    /// The models of a collection, of which one may be the default and may have further names.
    pub fn new(collection: Collection, default: Option<Model>, aliases: Vec<String>) -> Self {
        let library = Self {
            collection,
            default,
            aliases,
            looked_at: Arc::default(),
        };
        for shared in library.shared_names() {
            tracing::warn!("{shared}");
        }
        library
    }

    /// Names that mean one model although another one has them too.
    pub fn shared_names(&self) -> Vec<SharedName> {
        let store = self.collection.store.iter();
        let stored = store.flat_map(|store| store.list().unwrap_or_default());
        let mut shared = Vec::new();
        for stored in stored {
            if self.is_default(&stored.path) {
                continue;
            }
            let name = stored.name.to_string();
            let entry = self.collection.catalogue.find(&name);
            let (means, hidden) = match (&self.default, entry) {
                (Some(default), _) if self.is_name_of_default(&name) => {
                    (default.name.clone(), name.clone())
                }
                (_, Some(entry)) if entry.model_name() != stored.name => {
                    (name.clone(), entry.name.clone())
                }
                _ => continue,
            };
            let path = stored.path;
            shared.push(SharedName {
                name,
                means,
                hidden,
                path,
            });
        }
        shared
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

    /// The model for requests that name none: the one that the server was started with, else the first one on disk that can be
    /// used, in the order of the list.
    pub fn default(&self) -> Result<Model, NoModel> {
        if let Some(model) = &self.default {
            if !model.path.exists() {
                return Err(NoModel::NotDownloaded(model.name.clone()));
            }
            return Ok(model.clone());
        }
        let mut models = self.list()?.into_iter();
        models
            .find_map(|listed| listed.model)
            .ok_or(NoModel::Nothing)
    }

    /// The model that a request means: the default one by its name or a configured alias, then a file of exactly this name, then
    /// what the catalogue calls so, then a file whose name differs in case only.
    pub fn resolve(&self, asked: Option<&str>) -> Result<Model, NoModel> {
        let Some(asked) = asked.filter(|asked| !asked.is_empty()) else {
            return self.default();
        };
        if self.is_name_of_default(asked) {
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

    /// Whether the default model answers to this name before anybody else is asked.
    pub fn is_name_of_default(&self, name: &str) -> bool {
        let own = self.default.iter().map(|model| &model.name);
        own.chain(&self.aliases).any(|known| same(known, name))
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
            let stored = take(&|stored| stored.path == model.path);
            let fault = self.fault(&model.path);
            list.push(Listed {
                name: model.name.clone(),
                aliases: self.aliases.iter().cloned().chain(of_entry).collect(),
                entry: model.entry.clone(),
                stored,
                model: fault.is_none().then(|| model.clone()),
                fault,
            });
        }
        for entry in self.collection.catalogue.entries() {
            // Whoever asks for this name gets the default model.
            if self.is_name_of_default(&entry.name) {
                continue;
            }
            let name = entry.model_name();
            let stored = take(&|stored| stored.name == name);
            list.push(self.listed(entry.name.clone(), Some(Arc::new(entry.clone())), stored));
        }
        for stored in stored {
            let name = stored.name.to_string();
            if !self.is_name_of_default(&name) {
                list.push(self.listed(name, None, Some(stored)));
            }
        }
        Ok(list)
    }

    fn listed(&self, name: String, entry: Option<Arc<Entry>>, stored: Option<Stored>) -> Listed {
        let fault = stored.as_ref().and_then(|stored| self.fault_of(stored));
        let model = stored.as_ref().filter(|_| fault.is_none());
        let model = model.map(|stored| self.collection.model(stored));
        Listed {
            aliases: entry
                .as_ref()
                .map(|entry| entry.aliases.clone())
                .unwrap_or_default(),
            name,
            entry,
            stored,
            model,
            fault,
        }
    }

    /// What is wrong with a file in the store, if anything; completes a sentence that begins with its name.
    pub fn fault_of(&self, stored: &Stored) -> Option<String> {
        match self.usable(stored) {
            Ok(_) => None,
            Err(NoModel::Damaged { fault, .. }) => Some(fault),
            Err(error) => Some(error.to_string()),
        }
    }

    fn usable(&self, stored: &Stored) -> Result<Model, NoModel> {
        let wrong_size = match stored.state {
            State::Complete => None,
            State::SizeDiffers { expected } => {
                let bytes = stored.bytes;
                Some(format!(
                    "has {bytes} bytes instead of {expected}: pull it again"
                ))
            }
        };
        match wrong_size.or_else(|| self.fault(&stored.path)) {
            None => Ok(self.collection.model(stored)),
            Some(fault) => Err(NoModel::Damaged {
                name: stored.name.to_string(),
                fault,
            }),
        }
    }

    /// What is wrong with a file, told from its header, which is read once for as long as the file stays the same.
    fn fault(&self, path: &Path) -> Option<String> {
        let about = match std::fs::metadata(path) {
            Ok(about) => about,
            Err(error) => return Some(format!("can't be opened: {error}")),
        };
        let (bytes, modified) = (about.len(), about.modified().ok());
        let looked_at = || {
            self.looked_at
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let known = looked_at().get(path).cloned();
        if let Some(look) = known.filter(|look| (look.bytes, look.modified) == (bytes, modified)) {
            return look.fault;
        }
        let fault = Gguf::read_in_bites(path)
            .err()
            .map(|error| error.fault.to_string());
        let mut looks = looked_at();
        // Files that are gone are forgotten with all others, now and then.
        if looks.len() >= MOST_LOOKS {
            looks.clear();
        }
        let look = Look {
            bytes,
            modified,
            fault: fault.clone(),
        };
        looks.insert(path.to_owned(), look);
        fault
    }
}

fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}
