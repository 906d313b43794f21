//! Changes on disk that are whole or not there, also after a power cut.

use super::StoreError;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// The end of a temporary file's name. It begins with a dot.
pub(super) const TEMPORARY: &str = ".tmp";

/// Puts bytes at a path in place of what is there.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Two processes, and two threads of one, may write the same manifest at once: the last one wins.
    let temporary =
        path.with_file_name(format!(".{name}.{}-{count}{TEMPORARY}", std::process::id()));
    let written = write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if let Err(source) = written {
        // What is left of it is of no use; if it can't be removed either, `clean` will try.
        let _ = fs::remove_file(&temporary);
        return Err(StoreError::Write {
            path: path.to_owned(),
            source,
        });
    }
    if let Some(folder) = path.parent() {
        sync_folder(folder);
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes renames and removals last. Some file systems can't, and lose no more than the last change.
pub(super) fn sync_folder(folder: &Path) {
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        tracing::debug!(%error, folder = %folder.display(), "a directory is not synced");
    }
}

/// Removes a file and tells its bytes; `None` if there is none.
pub(super) fn remove(path: &Path) -> Result<Option<u64>, StoreError> {
    let bytes = match fs::symlink_metadata(path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return failed(path, source),
    };
    match fs::remove_file(path) {
        Ok(()) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => failed(path, source),
    }
}

fn failed<T>(path: &Path, source: io::Error) -> Result<T, StoreError> {
    Err(StoreError::Remove {
        path: path.to_owned(),
        source,
    })
}
