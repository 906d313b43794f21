//! The models that are known by name: `models/*.toml`, compiled in, and a directory of further files of that kind.
//!
//! Where a model comes from, what it answers to, what its publisher recommends. Pure data: nothing here fetches or looks into
//! a model. Every problem in a file is one sentence that names the file and the key.

mod entry;
mod fields;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

pub use entry::{Capability, Entry, Sampling, Source};

/// Files of a directory at most.
const MOST_FILES: usize = 1000;
/// Bytes of a file at most; the largest thing in it is a chat template.
const MOST_BYTES: u64 = 256 << 10;
/// Names that are suggested for an unknown one.
const MOST_NEAR: usize = 3;

/// The compiled-in files.
const BUILT_IN: [(&str, &str); 11] = [
    (
        "deepseek-r1-1.5b.toml",
        include_str!("../../../models/deepseek-r1-1.5b.toml"),
    ),
    (
        "gemma-3-1b.toml",
        include_str!("../../../models/gemma-3-1b.toml"),
    ),
    (
        "gemma-3-270m.toml",
        include_str!("../../../models/gemma-3-270m.toml"),
    ),
    (
        "llama-3.2-1b.toml",
        include_str!("../../../models/llama-3.2-1b.toml"),
    ),
    (
        "llama-3.2-3b.toml",
        include_str!("../../../models/llama-3.2-3b.toml"),
    ),
    (
        "qwen2.5-0.5b.toml",
        include_str!("../../../models/qwen2.5-0.5b.toml"),
    ),
    (
        "qwen2.5-1.5b.toml",
        include_str!("../../../models/qwen2.5-1.5b.toml"),
    ),
    (
        "smollm2-1.7b.toml",
        include_str!("../../../models/smollm2-1.7b.toml"),
    ),
    (
        "smollm2-135m.toml",
        include_str!("../../../models/smollm2-135m.toml"),
    ),
    (
        "smollm2-360m.toml",
        include_str!("../../../models/smollm2-360m.toml"),
    ),
    (
        "tinyllama-1.1b.toml",
        include_str!("../../../models/tinyllama-1.1b.toml"),
    ),
];

static CATALOGUE: LazyLock<Catalogue> = LazyLock::new(|| {
    Catalogue::built_in().expect("the compiled-in catalogue is sound, as a test checks")
});

/// Why a catalogue can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The directory can't be read.
    #[error("the catalogue directory {} can't be read: {source}", path.display())]
    Unreadable {
        /// The directory or file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is too much in it.
    #[error("the catalogue {} is too large: {limit}", path.display())]
    TooLarge {
        /// The directory or file.
        path: PathBuf,
        /// The limit.
        limit: &'static str,
    },
    /// A file says something that can't be used.
    #[error("{file}: {key}: {problem}")]
    Key {
        /// The file's name.
        file: String,
        /// The key, with its table.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A file that is no TOML.
    #[error("{file} is no TOML: {problem}")]
    Syntax {
        /// The file's name.
        file: String,
        /// Where and why.
        problem: String,
    },
}

/// The known models.
#[derive(Clone, Debug)]
pub struct Catalogue {
    entries: Vec<Entry>,
}

impl Catalogue {
    /// What is compiled in.
    pub fn builtin() -> &'static Self {
        &CATALOGUE
    }

    /// What is compiled in, and the `*.toml` of a directory. One with the name of a built-in model replaces it.
    pub fn load(extra: Option<&Path>) -> Result<Self, CatalogueError> {
        let mut files = Self::built_in_entries()?;
        if let Some(folder) = extra {
            let mut added: Vec<(String, Entry)> = Vec::new();
            for path in toml_files(folder)? {
                let name = file_name(&path);
                let entry = entry::read(&name, &text_of(&path)?)?;
                added.push((name, entry));
            }
            files.retain(|(_, old)| !added.iter().any(|(_, new)| new.name == old.name));
            files.extend(added);
        }
        Self::checked(files)
    }

    /// The model with this name, alias or display name, in any case.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        let wanted = folded(name);
        self.entries
            .iter()
            .find(|entry| entry.names().any(|name| folded(name) == wanted))
    }

    /// All models, by name.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Names of models that look like an unknown one, best first, three at most.
    pub fn near(&self, name: &str) -> Vec<String> {
        let wanted = folded(super::shortened(name).as_str());
        let distance_of = |entry: &Entry| {
            let names = entry.names().map(|name| distance(&folded(name), &wanted));
            names.min().unwrap_or(usize::MAX)
        };
        let mut near: Vec<(usize, &Entry)> = self
            .entries
            .iter()
            .map(|entry| (distance_of(entry), entry))
            .filter(|(distance, _)| *distance <= wanted.chars().count() / 3)
            .collect();
        near.sort_by_key(|(distance, _)| *distance);
        near.truncate(MOST_NEAR);
        near.into_iter()
            .map(|(_, entry)| entry.name.clone())
            .collect()
    }

    fn built_in() -> Result<Self, CatalogueError> {
        Self::checked(Self::built_in_entries()?)
    }

    fn built_in_entries() -> Result<Vec<(String, Entry)>, CatalogueError> {
        let read = |(file, text): (&str, &str)| Ok((file.to_owned(), entry::read(file, text)?));
        BUILT_IN.into_iter().map(read).collect()
    }

    /// Checks what entries say about each other: no two answer to the same name, and a draft partner exists.
    fn checked(mut files: Vec<(String, Entry)>) -> Result<Self, CatalogueError> {
        files.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        let mut taken = std::collections::HashMap::new();
        for (file, entry) in &files {
            for (at, name) in entry.names().enumerate() {
                let Some(other) = taken.insert(folded(name), &entry.name) else {
                    continue;
                };
                // Within one entry, a display name may repeat the name.
                if std::ptr::eq(other, &raw const entry.name) {
                    continue;
                }
                return Err(CatalogueError::Key {
                    file: file.clone(),
                    key: entry::key_of(at).into(),
                    problem: format!("{name:?} is a name of {other} already"),
                });
            }
        }
        for (file, entry) in &files {
            if let Some(draft) = &entry.draft
                && (*draft == entry.name || !files.iter().any(|(_, other)| other.name == *draft))
            {
                return Err(CatalogueError::Key {
                    file: file.clone(),
                    key: "draft".into(),
                    problem: format!("{draft:?} is the name of no other model"),
                });
            }
        }
        Ok(Self {
            entries: files.into_iter().map(|(_, entry)| entry).collect(),
        })
    }
}

fn folded(name: &str) -> String {
    name.to_lowercase()
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// The `*.toml` of a directory, by name.
fn toml_files(folder: &Path) -> Result<Vec<PathBuf>, CatalogueError> {
    let unreadable = |source| CatalogueError::Unreadable {
        path: folder.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for item in fs::read_dir(folder).map_err(unreadable)? {
        let path = item.map_err(unreadable)?.path();
        if path.extension().is_some_and(|end| end == "toml") {
            files.push(path);
        }
        if files.len() > MOST_FILES {
            return Err(CatalogueError::TooLarge {
                path: folder.to_owned(),
                limit: "1000 files at most",
            });
        }
    }
    files.sort();
    Ok(files)
}

fn text_of(path: &Path) -> Result<String, CatalogueError> {
    let unreadable = |source| CatalogueError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    let read = file.take(MOST_BYTES + 1).read_to_string(&mut text);
    if read.map_err(unreadable)? as u64 > MOST_BYTES {
        return Err(CatalogueError::TooLarge {
            path: path.to_owned(),
            limit: "256 KiB at most",
        });
    }
    Ok(text)
}

/// Characters to insert, remove or replace to make one of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
