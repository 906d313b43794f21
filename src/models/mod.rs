//! What the front knows about models: which are known by name, how they are called, which are on disk, what the served one
//! answers to, and what its family wants.
//!
//! What is inside a file is the worker's knowledge and arrives as [`ModelInfo`](crate::engine::ModelInfo); nothing here computes.

pub mod catalogue;
pub mod digest;
pub mod download;
mod families;
pub mod nasty;
pub mod parity;
pub mod reference;
pub mod store;

use std::path::{Path, PathBuf};

pub use catalogue::{Catalogue, Entry};
pub use digest::{Digest, verify};
pub use families::Family;
pub use reference::{HubFile, ModelName, ModelRef};
pub use store::Store;

/// Characters of an unknown name that are shown.
const LONGEST_SHOWN: usize = 100;

/// The model that this server serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedModel {
    name: String,
    aliases: Vec<String>,
    path: PathBuf,
}

/// A name that nothing here answers to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("model {asked:?} is not available")]
pub struct UnknownModel {
    /// The name that was asked for, cut if it is long.
    pub asked: String,
    /// The names that exist.
    pub available: Vec<String>,
}

impl ServedModel {
    /// A model at `path` that is called `name`, and answers to the aliases too.
    pub fn new(name: String, aliases: Vec<String>, path: PathBuf) -> Self {
        Self {
            name,
            aliases,
            path,
        }
    }

    /// The name that answers carry.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Further names that it answers to.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The true name of the model that a request means. Without a name it means the served model; otherwise the name
    /// must be this model's or an alias, in any case.
    pub fn resolve(&self, asked: Option<&str>) -> Result<&str, UnknownModel> {
        let Some(asked) = asked.filter(|asked| !asked.is_empty()) else {
            return Ok(&self.name);
        };
        let wanted = asked.to_lowercase();
        let mut names = std::iter::once(&self.name).chain(&self.aliases);
        if names.any(|name| name.to_lowercase() == wanted) {
            return Ok(&self.name);
        }
        Err(UnknownModel {
            asked: shortened(asked),
            available: std::iter::once(&self.name)
                .chain(&self.aliases)
                .cloned()
                .collect(),
        })
    }
}

/// A name as it goes into a message: nobody needs a megabyte of it back.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(LONGEST_SHOWN) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_aliases_resolve_to_the_true_name() {
        let aliases = vec!["GEMMA_3_1B_IT".into(), "Kleine Größe".into()];
        let model = ServedModel::new("tiny".into(), aliases, "tiny.gguf".into());
        for asked in [
            None,
            Some(""),
            Some("tiny"),
            Some("TINY"),
            Some("gemma_3_1b_it"),
            Some("kleine GRÖßE"),
        ] {
            assert_eq!(model.resolve(asked), Ok("tiny"), "{asked:?}");
        }
        for asked in ["tin", "tiny.gguf", " tiny", "gpt-4o"] {
            let unknown = model.resolve(Some(asked)).unwrap_err();
            assert_eq!(unknown.asked, asked);
            assert_eq!(unknown.available, ["tiny", "GEMMA_3_1B_IT", "Kleine Größe"]);
        }
    }

    #[test]
    fn a_long_name_is_not_sent_back_whole() {
        let model = ServedModel::new("tiny".into(), Vec::new(), "tiny.gguf".into());
        let unknown = model.resolve(Some(&"é".repeat(5000))).unwrap_err();
        assert_eq!(unknown.asked.chars().count(), LONGEST_SHOWN + 1);
    }
}
