//! What can go wrong with the store, each as one sentence that says what to do.

use std::io;
use std::path::PathBuf;

/// Why the store can't do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no directory to take by default.
    #[error("there is no home directory for models: set POCKET_LLM_MODELS to a directory")]
    NoHome,
    /// The path is something else.
    #[error("{} is not a directory: set POCKET_LLM_MODELS to one", path.display())]
    NotADirectory {
        /// The store's root.
        path: PathBuf,
    },
    /// The directory can't be made.
    #[error("the model directory {} can't be created: {source}", path.display())]
    Create {
        /// The store's root.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Reading failed.
    #[error("{} can't be read: {source}", path.display())]
    Read {
        /// The directory or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no directory for models only.
    #[error("{} has more than 10000 files: give models a directory of their own", path.display())]
    Crowded {
        /// The store's root.
        path: PathBuf,
    },
    /// Writing failed.
    #[error("{} can't be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Removing failed.
    #[error("{} can't be removed: {source}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Somebody else holds the lock.
    #[error("another process is fetching {name}: wait for it, or end it")]
    Locked {
        /// The model.
        name: String,
    },
    /// A path that the store did not give out.
    #[error("{} is no model file in {}", path.display(), root.display())]
    Foreign {
        /// The path.
        path: PathBuf,
        /// The store's root.
        root: PathBuf,
    },
    /// There is nothing to remove.
    #[error("{name} is not on disk")]
    Missing {
        /// The model.
        name: String,
    },
}
