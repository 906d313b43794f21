//! Removes what is of no use to anybody any more.

use super::{GGUF, ModelName, Store, StoreError, lock::Lock, with_end, write};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files that may be left behind beside a model's.
const LEFT: [&str; 5] = [
    ".partial",
    ".partial.json",
    ".partial.json.new",
    ".json",
    ".lock",
];
/// Nobody takes longer to write a small file.
const LONGEST_WRITE: Duration = Duration::from_mins(1);

/// What was cleaned away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Their bytes.
    pub bytes: u64,
}

impl Store {
    /// Removes partial downloads that did not grow for `older_than` and that nobody fetches, manifests without a file, and
    /// temporary files and locks that were left behind.
    pub fn clean(&self, older_than: Duration) -> Result<Cleaned, StoreError> {
        let mut cleaned = Cleaned::default();
        let files = self.files()?;
        for name in files.iter().filter(|name| is_temporary(name)) {
            let path = self.root().join(name);
            if is_older(&path, older_than.max(LONGEST_WRITE)) {
                cleaned.add(&path)?;
            }
        }
        let stems: BTreeSet<&str> = files.iter().filter_map(|name| stem(name)).collect();
        for stem in stems {
            self.clean_model(stem, older_than, &mut cleaned)?;
        }
        Ok(cleaned)
    }

    fn clean_model(
        &self,
        stem: &str,
        older_than: Duration,
        cleaned: &mut Cleaned,
    ) -> Result<(), StoreError> {
        let model = self.root().join(format!("{stem}{GGUF}"));
        // Who fetches it now knows better what is needed. Taking the lock makes a file, which is removed below.
        let lock = match Lock::take(&model) {
            Ok(lock) => lock,
            Err(StoreError::Locked { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let partial = with_end(&model, ".partial");
        if !partial.exists() || is_older(&partial, older_than) {
            for end in ["", ".json", ".json.new"] {
                cleaned.add(&with_end(&partial, end))?;
            }
        }
        // A link that leads nowhere now may lead somewhere tomorrow, when a card is back in.
        if model.symlink_metadata().is_err() {
            cleaned.add(&super::manifest_path(&model))?;
        }
        lock.discard();
        Ok(())
    }
}

impl Cleaned {
    fn add(&mut self, path: &Path) -> Result<(), StoreError> {
        if let Some(bytes) = write::remove(path)? {
            self.bytes += bytes;
            self.files.push(path.to_owned());
        }
        Ok(())
    }
}

fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.contains(GGUF) && name.ends_with(write::TEMPORARY)
}

/// The stem of the model that this file was left beside.
fn stem(name: &str) -> Option<&str> {
    let stem = LEFT
        .iter()
        .find_map(|end| name.strip_suffix(end)?.strip_suffix(GGUF))?;
    ModelName::own(stem).is_ok().then_some(stem)
}

/// Whether a file was not written for this long.
fn is_older(path: &Path, than: Duration) -> bool {
    let modified = fs::metadata(path).and_then(|found| found.modified());
    modified.is_ok_and(|modified| modified.elapsed().unwrap_or_default() >= than)
}
