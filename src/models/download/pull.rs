//! One model by its name: finds out where it is and what it should be, fetches it, and writes down what came.
//!
//! What is on disk already is not fetched again: a file that we fetched is trusted, one that somebody put there is adopted if it
//! has the right digest, and never replaced unasked if it has not. Everything happens under the file's lock, so of two
//! processes that want the same model one fetches, and the other finds it.

use super::location::shown;
use super::partial;
use super::{Described, DownloadError, Fetched, Hub, Job, Phase, Progress, Reach, Settings, fetch};
use crate::models::digest::{Digest, verify};
use crate::models::reference::{HubFile, ModelName, ModelRef};
use crate::models::store::{Lock, Manifest, Moment, Origin, State, Store, StoreError, Stored};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks at a lock that another process holds.
const LOCK_PAUSE: Duration = Duration::from_millis(250);

/// Fetches models into a store.
#[derive(Clone, Debug)]
pub struct Puller {
    /// Where they go.
    pub store: Store,
    /// Where they come from.
    pub hub: Hub,
    /// How patient it is.
    pub settings: Settings,
}

/// What to do with a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Its manifest is believed.
    Trust,
    /// Its bytes are read and compared with its digest.
    Verify,
    /// It is fetched again, and replaced when the new one is whole.
    Replace,
}

/// A model that is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Its file.
    pub path: PathBuf,
    /// The file's length.
    pub bytes: u64,
    /// The file's digest, if it was ever computed.
    pub sha256: Option<Digest>,
    /// How it got there.
    pub how: How,
}

/// How a model got to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It was fetched now.
    Fetched {
        /// Bytes that came over the network, repeated ones too.
        received: u64,
    },
    /// It was there.
    AlreadyThere,
    /// It was there, and was read and found right now.
    Verified,
}

impl Puller {
    /// Brings a model to the disk.
    pub fn pull(
        &self,
        reference: &ModelRef,
        existing: Existing,
        progress: &Progress,
    ) -> Result<Pulled, DownloadError> {
        let pulled = Wanted::of(reference).and_then(|wanted| self.run(&wanted, existing, progress));
        progress.set_phase(Phase::Ended);
        pulled
    }

    /// The model, if it is on disk and nothing speaks against it. Nothing is asked and little is read.
    pub fn available(&self, reference: &ModelRef) -> Result<Option<Pulled>, DownloadError> {
        self.trusted(&Wanted::of(reference)?)
    }

    fn run(
        &self,
        wanted: &Wanted<'_>,
        existing: Existing,
        progress: &Progress,
    ) -> Result<Pulled, DownloadError> {
        let trusted = || match existing {
            Existing::Trust => self.trusted(wanted),
            Existing::Verify | Existing::Replace => Ok(None),
        };
        if let Some(there) = trusted()? {
            return Ok(there);
        }
        let path = self.store.place(&wanted.name);
        let _lock = self.lock(&path, progress)?;
        // Whoever held the lock may have fetched it.
        if let Some(there) = trusted()? {
            return Ok(there);
        }
        let stored = self.store.find(&wanted.name)?;
        if let Some(stored) = stored.filter(|_| existing != Existing::Replace)
            && let Some(there) = self.examine(wanted, &stored, progress)?
        {
            return Ok(there);
        }
        let promised = self.promised(wanted, progress)?;
        let fetched = self.fetch(wanted, &promised, &path, progress)?;
        self.record(wanted, promised.commit, &fetched)
    }

    fn trusted(&self, wanted: &Wanted<'_>) -> Result<Option<Pulled>, DownloadError> {
        let stored = self.store.find(&wanted.name)?;
        Ok(stored
            .filter(|stored| wanted.is_met_by(stored))
            .map(|stored| Pulled {
                sha256: stored.manifest.and_then(|manifest| manifest.sha256),
                path: stored.path,
                bytes: stored.bytes,
                how: How::AlreadyThere,
            }))
    }

    /// Takes the file's lock, however long another process fetches it.
    pub(super) fn lock(&self, path: &Path, progress: &Progress) -> Result<Lock, DownloadError> {
        loop {
            progress.check()?;
            match self.store.lock(path) {
                Err(StoreError::Locked { .. }) => {
                    progress.set_phase(Phase::Locked);
                    progress.pause(LOCK_PAUSE)?;
                }
                taken => return Ok(taken?),
            }
        }
    }

    /// Reads a file that is there. `None`: it was fetched once and is not what it should be, so it is to be fetched again.
    fn examine(
        &self,
        wanted: &Wanted<'_>,
        stored: &Stored,
        progress: &Progress,
    ) -> Result<Option<Pulled>, DownloadError> {
        let known = stored
            .manifest
            .as_ref()
            .filter(|known| known.source != Origin::ByHand);
        let mut expected = wanted.sha256.or(known.and_then(|known| known.sha256));
        let mut commit = known.and_then(|known| known.revision.clone());
        if expected.is_none() {
            let promised = self.promised(wanted, progress)?;
            (expected, commit) = (promised.sha256, promised.commit.or(commit));
        }
        progress.set_phase(Phase::Rereading);
        let read = verify(&stored.path, progress.cancel_flag(), &mut |bytes, total| {
            progress.set_total(Some(total));
            progress.set_received(bytes);
        });
        let found = read.map_err(|source| match source.kind() {
            io::ErrorKind::Interrupted => DownloadError::Cancelled,
            _ => DownloadError::file("read", &stored.path)(source),
        })?;
        // A file of ours of which nobody ever knew the digest is as right as its length.
        let is_right = match expected {
            Some(expected) => found.sha256 == expected,
            None => known.is_some() && stored.state == State::Complete,
        };
        if is_right {
            let right = Fetched {
                path: stored.path.clone(),
                bytes: found.bytes,
                sha256: found.sha256,
                etag: known.and_then(|known| known.etag.clone()),
                received: 0,
            };
            let pulled = self.record(wanted, commit, &right)?;
            partial::forget(&stored.path)?;
            return Ok(Some(Pulled {
                how: How::Verified,
                ..pulled
            }));
        }
        if known.is_some() {
            tracing::warn!(path = %stored.path.display(), found = %found.sha256, "a file is damaged or outdated; fetching it again");
            return Ok(None);
        }
        Err(DownloadError::InTheWay {
            path: stored.path.clone(),
            found: format!("sha256 {}", found.sha256),
        })
    }

    /// What the catalogue and the hub promise together.
    fn promised(
        &self,
        wanted: &Wanted<'_>,
        progress: &Progress,
    ) -> Result<Described, DownloadError> {
        let known = wanted.bytes.is_some() && wanted.sha256.is_some();
        let described = match self
            .hub
            .describe(wanted.hub, known, &self.settings, progress)
        {
            Ok(described) => described,
            Err(error @ (DownloadError::Cancelled | DownloadError::NoSuchFile(_))) => {
                return Err(error);
            }
            Err(error @ DownloadError::GaveUp { .. }) if !known => return Err(error),
            // Whoever can't be described may still be fetched; if not, that error says more.
            Err(error) => {
                tracing::debug!(%error, file = %wanted.hub, "the hub does not describe a file");
                Described::default()
            }
        };
        let differ = |what, hub, catalogue| DownloadError::HubDiffers {
            what,
            hub,
            catalogue,
        };
        match (wanted.sha256, described.sha256) {
            (Some(ours), Some(hubs)) if ours != hubs => {
                return Err(differ("sha256", hubs.to_string(), ours.to_string()));
            }
            _ => {}
        }
        match (wanted.bytes, described.bytes) {
            (Some(ours), Some(hubs)) if ours != hubs => {
                return Err(differ("bytes", hubs.to_string(), ours.to_string()));
            }
            _ => {}
        }
        Ok(Described {
            commit: described.commit,
            bytes: wanted.bytes.or(described.bytes),
            sha256: wanted.sha256.or(described.sha256),
        })
    }

    fn fetch(
        &self,
        wanted: &Wanted<'_>,
        promised: &Described,
        path: &Path,
        progress: &Progress,
    ) -> Result<Fetched, DownloadError> {
        // At its commit, so that a try tomorrow continues the same file.
        let pinned = promised
            .commit
            .as_ref()
            .and_then(|commit| wanted.hub.at(commit).ok());
        let job = Job {
            url: self.hub.url(pinned.as_ref().unwrap_or(wanted.hub))?,
            token: self.hub.token().cloned(),
            bytes: promised.bytes,
            sha256: promised.sha256,
            target: path.to_owned(),
            reach: Reach::Any,
        };
        tracing::debug!(url = shown(&job.url), "fetching");
        fetch(&job, &self.settings, progress)
    }

    /// Writes the manifest of a file whose bytes were all read now.
    fn record(
        &self,
        wanted: &Wanted<'_>,
        commit: Option<String>,
        fetched: &Fetched,
    ) -> Result<Pulled, DownloadError> {
        let now = Moment::now();
        let mut manifest = Manifest::new(Origin::Hub(wanted.hub.clone()), fetched.bytes);
        manifest.revision = commit;
        manifest.etag.clone_from(&fetched.etag);
        manifest.sha256 = Some(fetched.sha256);
        manifest.fetched_at = Some(now);
        manifest.verified_at = Some(now);
        let found = fs::metadata(&fetched.path).and_then(|found| found.modified());
        manifest.verified_mtime = found.ok().map(Moment::from);
        if let Some(old) = self.store.find(&wanted.name)?.and_then(|old| old.manifest) {
            manifest.last_used = old.last_used;
            manifest.fetched_at = Some(now)
                .filter(|_| fetched.received > 0)
                .or(old.fetched_at);
        }
        self.store.record(&fetched.path, &manifest)?;
        Ok(Pulled {
            path: fetched.path.clone(),
            bytes: fetched.bytes,
            sha256: Some(fetched.sha256),
            how: How::Fetched {
                received: fetched.received,
            },
        })
    }
}

/// What a reference says about a file.
struct Wanted<'a> {
    name: ModelName,
    hub: &'a HubFile,
    bytes: Option<u64>,
    sha256: Option<Digest>,
}

impl<'a> Wanted<'a> {
    fn of(reference: &'a ModelRef) -> Result<Self, DownloadError> {
        match reference {
            ModelRef::Known(entry) => Ok(Self {
                name: entry.model_name(),
                hub: &entry.source.hub,
                bytes: entry.source.bytes,
                sha256: entry.source.sha256,
            }),
            ModelRef::Hub(hub) => Ok(Self {
                name: hub.clone().into(),
                hub,
                bytes: None,
                sha256: None,
            }),
            ModelRef::Path(path) => Err(DownloadError::Path(path.clone())),
        }
    }

    /// Whether a file's manifest says that it is the wanted one, and nobody wrote to it since.
    fn is_met_by(&self, stored: &Stored) -> bool {
        let Some(manifest) = &stored.manifest else {
            return false;
        };
        let Origin::Hub(hub) = &manifest.source else {
            return false;
        };
        let untouched =
            manifest.verified_mtime.is_some() && manifest.verified_mtime == stored.modified;
        hub == self.hub
            && stored.state == State::Complete
            && untouched
            && self.bytes.is_none_or(|bytes| bytes == stored.bytes)
            && (self.sha256.is_none() || self.sha256 == manifest.sha256)
    }
}
