//! The keys that clients show, kept as digests, and the file that they may come from.
//!
//! A file is read again when it changes, so that keys can be exchanged without a restart (a mounted Kubernetes Secret changes so).

use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use subtle::{Choice, ConstantTimeEq};

/// Bytes of a file of keys at most.
const MOST_BYTES: u64 = 64 << 10;
/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(2);

/// A secret that clients show. It can't be printed by accident.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// Wraps a key.
    pub fn new(key: String) -> Self {
        Self(key)
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl From<String> for ApiKey {
    fn from(key: String) -> Self {
        Self::new(key.trim().to_owned())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Why a file gives no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It can't be read.
    #[error("--api-key-file {path}: {error}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// It is something else.
    #[error(
        "--api-key-file {path}: more than {MOST_BYTES} bytes; give a text file with one key per line"
    )]
    TooLarge {
        /// The file.
        path: String,
    },
    /// Nobody could get in, or everybody.
    #[error(
        "--api-key-file {path}: there is no key in it; write one per line (a # begins a comment)"
    )]
    Empty {
        /// The file.
        path: String,
    },
}

/// The keys of which a client must show one; none for an open door. Clones are the same keys.
#[derive(Clone, Default)]
pub struct Keys {
    /// Given once.
    fixed: Arc<[[u8; 32]]>,
    /// From the file.
    file: Option<Arc<KeyFile>>,
}

struct KeyFile {
    path: PathBuf,
    digests: RwLock<Arc<[[u8; 32]]>>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

impl Keys {
    /// Keys given once, and those of a file.
    pub fn new(keys: &[ApiKey], file: Option<&Path>) -> Result<Self, KeyFileError> {
        let file = match file {
            None => None,
            Some(path) => Some(Arc::new(KeyFile {
                path: path.to_owned(),
                digests: RwLock::new(read(path)?),
            })),
        };
        Ok(Self {
            fixed: keys.iter().map(ApiKey::digest).collect(),
            file,
        })
    }

    /// Whether the door is open.
    pub fn is_open(&self) -> bool {
        self.fixed.is_empty() && self.file.is_none()
    }

    /// Whether this is one of them. Digests are compared, all of them and each in constant time: neither a key's length nor how
    /// much of it was right shows.
    pub(super) fn accept(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        let of_file = self.file.as_ref().map(|file| file.digests());
        let of_file = of_file.iter().flat_map(|digests| digests.iter());
        let any = self
            .fixed
            .iter()
            .chain(of_file)
            .fold(Choice::from(0), |any, key| any | key.ct_eq(&shown));
        any.into()
    }

    /// Whether there are several keys, so that one tells who asks.
    pub(super) fn are_several(&self) -> bool {
        self.fixed.len() + self.file.as_ref().map_or(0, |file| file.digests().len()) > 1
    }

    /// Looks at the file now and then, for as long as the future is polled. A file that can't be read, or has no key, changes
    /// nothing.
    pub async fn watch(self) {
        self.watch_every(EVERY).await;
    }

    async fn watch_every(self, pause: Duration) {
        let Some(file) = self.file else {
            return std::future::pending().await;
        };
        let mut complained = false;
        loop {
            tokio::time::sleep(pause).await;
            let again = Arc::clone(&file);
            let Ok(read) = tokio::task::spawn_blocking(move || read(&again.path)).await else {
                continue;
            };
            match read {
                Ok(digests) if digests == file.digests() => complained = false,
                Ok(digests) => {
                    tracing::info!(keys = digests.len(), "the file of keys was read again");
                    *file.digests.write().unwrap_or_else(PoisonError::into_inner) = digests;
                    complained = false;
                }
                Err(error) if !complained => {
                    tracing::warn!(%error, "the keys stay as they are");
                    complained = true;
                }
                Err(_) => {}
            }
        }
    }
}

impl KeyFile {
    fn digests(&self) -> Arc<[[u8; 32]]> {
        Arc::clone(&self.digests.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One key per line; blanks around it, empty lines and lines that begin with `#` do not count.
fn read(path: &Path) -> Result<Arc<[[u8; 32]]>, KeyFileError> {
    let shown = || path.display().to_string();
    let unreadable = |error| KeyFileError::Unreadable {
        path: shown(),
        error,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MOST_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(KeyFileError::TooLarge { path: shown() });
    }
    let lines = text.lines().map(str::trim);
    let keys = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let digests: Arc<[_]> = keys.map(|key| ApiKey::new(key.into()).digest()).collect();
    if digests.is_empty() {
        return Err(KeyFileError::Empty { path: shown() });
    }
    Ok(digests)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "# ours\n\n one \r\ntwo\n").unwrap();
        let keys = Keys::new(&[ApiKey::new("three".into())], Some(&path)).unwrap();
        for (shown, right) in [
            ("one", true),
            ("two", true),
            ("three", true),
            ("# ours", false),
            ("", false),
        ] {
            assert_eq!(keys.accept(shown.as_bytes()), right, "{shown}");
        }
        assert!(!keys.is_open());
        assert!(!format!("{keys:?}").contains("three"));
    }

    #[test]
    fn a_file_without_keys_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let error = || Keys::new(&[], Some(&path)).unwrap_err().to_string();
        assert!(error().contains("No such file"), "{}", error());
        std::fs::write(&path, "# none\n").unwrap();
        assert!(error().contains("no key in it"), "{}", error());
        std::fs::write(&path, "x".repeat(70_000)).unwrap();
        assert!(error().contains("more than"), "{}", error());
        std::fs::write(&path, [0xff]).unwrap();
        assert!(error().contains("UTF-8"), "{}", error());
    }

    #[tokio::test]
    async fn a_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "old").unwrap();
        let keys = Keys::new(&[], Some(&path)).unwrap();
        let pause = Duration::from_millis(2);
        let watch = tokio::spawn(keys.clone().watch_every(pause));
        std::fs::write(&path, "new").unwrap();
        // Ends by the test's own time limit if it never happens.
        while !keys.accept(b"new") {
            tokio::time::sleep(pause).await;
        }
        assert!(!keys.accept(b"old"));
        std::fs::remove_file(&path).unwrap();
        tokio::time::sleep(10 * pause).await;
        assert!(
            keys.accept(b"new"),
            "a file that is gone locks nobody out, and lets nobody in"
        );
        assert!(!keys.accept(b""));
        watch.abort();
    }
}
