//! The lock of one model's file: who holds it may write `NAME.gguf` and what lies beside it.
//!
//! The kernel holds it for an open file, so it ends with the process, however that ends. The file itself means nothing; it may stay.

use super::{StoreError, with_end};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

/// Times that we try before we say that somebody else has it: its file may be replaced under us, and who only looks whether it is
/// held holds it for a moment.
const TRIES: usize = 10;
/// Between two of them.
const MOMENT: Duration = Duration::from_millis(5);

/// A held lock.
#[derive(Debug)]
pub struct Lock {
    /// Closing it releases the lock.
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of the model file `model`, or says that somebody else has it.
    pub(super) fn take(model: &Path) -> Result<Self, StoreError> {
        let path = with_end(model, ".lock");
        let failed = |source| StoreError::Write {
            path: path.clone(),
            source,
        };
        for _ in 0..TRIES {
            let file = File::options()
                .create(true)
                .write(true)
                .truncate(false)
                .open(&path)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    thread::sleep(MOMENT);
                    continue;
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            // Who held it before may have removed the file: then others would lock a new one.
            if is_at(&file, &path).map_err(failed)? {
                return Ok(Self { _file: file, path });
            }
        }
        Err(StoreError::Locked {
            name: model
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        })
    }

    /// Whether somebody holds the lock of this model file now.
    pub(super) fn is_held(model: &Path) -> bool {
        let Ok(file) = File::open(with_end(model, ".lock")) else {
            return false;
        };
        matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
    }

    /// Removes the lock's file and releases it. Errors leave a file behind that means nothing.
    pub(super) fn discard(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "a lock file stays");
        }
    }
}

/// Whether the open file is the one at this path.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
