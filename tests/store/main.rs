//! The store on disk: what is found in a directory, what is refused, and what survives processes that die. Through the library, and
//! through the real binary's `list` and `rm`.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "the tests of the server need more of it")]
#[path = "../support/program.rs"]
mod program;

mod commands;
mod disk;
mod names;
mod processes;

use pocket_llm::models::store::{Manifest, Origin};
use pocket_llm::models::{HubFile, ModelName, Store};
use std::path::PathBuf;
use tempfile::TempDir;

/// A store in a directory that ends with the test.
struct Fixture {
    store: Store,
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            store: Store::open(folder.path()).unwrap(),
            folder,
        }
    }

    /// Puts a file into the directory.
    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Names of all files in the directory, sorted.
    fn files(&self) -> Vec<String> {
        let items = std::fs::read_dir(self.folder.path()).unwrap();
        let names = items.map(|item| item.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

fn name(text: &str) -> ModelName {
    ModelName::parse(text).unwrap()
}

fn hub(text: &str) -> HubFile {
    HubFile::parse(text).unwrap()
}

/// What a download writes beside a file.
fn fetched(from: &str, bytes: u64) -> Manifest {
    Manifest::new(Origin::Hub(hub(from)), bytes)
}
