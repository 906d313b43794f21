//! What is known of a file in the store: `NAME.gguf.json` beside it.

use crate::models::digest::Digest;
use crate::models::reference::HubFile;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The version of the format that is written, and the only one that is read.
pub const MANIFEST_VERSION: u32 = 1;

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
