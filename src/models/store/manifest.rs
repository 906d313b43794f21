//! What is known of a file in the store: `NAME.gguf.json` beside it.

use super::with_end;
use crate::models::digest::Digest;
use crate::models::reference::HubFile;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The version of the format that is written, and the only one that is read.
pub const MANIFEST_VERSION: u32 = 1;

/// Bytes of a manifest at most.
const MOST_BYTES: u64 = 64 << 10;

/// A point in time: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// The wall clock's time.
    pub fn now() -> Self {
        SystemTime::now().into()
    }

    /// How long ago it was; nothing for one in the future.
    pub fn age(self) -> Duration {
        Duration::from_millis(Self::now().0.saturating_sub(self.0))
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Where a file came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// The hub, at the revision that was asked for.
    Hub(HubFile),
    /// Another address.
    Url {
        /// The address, without its query.
        url: String,
    },
    /// Somebody put it there. Its size and digest are what was seen, not what it should have.
    ByHand,
}

/// A file's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// Where the file came from.
    pub source: Origin,
    /// The commit that it was fetched at.
    pub revision: Option<String>,
    /// The server's entity tag.
    pub etag: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// Its digest.
    pub sha256: Option<Digest>,
    /// When it was complete here.
    pub fetched_at: Option<Moment>,
    /// When it was last read whole and found to have its digest.
    pub verified_at: Option<Moment>,
    /// The file's modification time then. Another one says that somebody wrote to it since.
    pub verified_mtime: Option<Moment>,
    /// When it was last loaded.
    pub last_used: Option<Moment>,
}

impl Manifest {
    /// A manifest that knows no more than where a file came from and its size.
    pub fn new(source: Origin, bytes: u64) -> Self {
        Self {
            version: MANIFEST_VERSION,
            source,
            revision: None,
            etag: None,
            bytes,
            sha256: None,
            fetched_at: None,
            verified_at: None,
            verified_mtime: None,
            last_used: None,
        }
    }

    /// The size that the file should have, if anybody said so.
    pub fn expected_bytes(&self) -> Option<u64> {
        (self.source != Origin::ByHand).then_some(self.bytes)
    }
}

/// Where a model's manifest is.
pub fn manifest_path(model: &Path) -> PathBuf {
    with_end(model, ".json")
}

/// A model's manifest; an error says why the one that is there can't be used.
pub(super) fn read(model: &Path) -> Result<Option<Manifest>, String> {
    let path = manifest_path(model);
    let unusable =
        |why: &dyn std::fmt::Display| format!("the manifest {} is not used: {why}", path.display());
    let Some(json) = read_bounded(&path).map_err(|error| unusable(&error))? else {
        return Ok(None);
    };
    let manifest: Manifest = serde_json::from_slice(&json).map_err(|error| unusable(&error))?;
    if manifest.version == MANIFEST_VERSION {
        Ok(Some(manifest))
    } else {
        Err(unusable(&format!("it has version {}", manifest.version)))
    }
}

/// A small file's bytes; `None` if there is none.
pub(super) fn read_bounded(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is too large",
        ));
    }
    Ok(Some(bytes))
}
