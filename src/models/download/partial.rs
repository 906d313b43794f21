//! What has come of a file so far: `TARGET.partial`, and beside it `TARGET.partial.json`, which says what it is a part of.
//!
//! Bytes are only ever appended. The hash grows with the file; what an earlier process left is read again before it is
//! continued, because nobody knows who else wrote there. After a restart of the system only what was synced before it is
//! continued. Without its record a partial is worth nothing and is begun anew.

use super::location::shown;
use super::{DownloadError, Job, PIECE_BYTES, Phase, Progress};
use crate::models::digest::Digest;
use crate::models::store::{Moment, with_end};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// More is no record of ours.
const LONGEST_RECORD: u64 = 16 << 10;

/// What a partial is a part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Where it comes from, without the query.
    pub(super) url: String,
    /// The entity tag, as the server that gave the bytes sent it.
    pub(super) etag: Option<String>,
    /// The length of the whole file.
    pub(super) bytes: Option<u64>,
    /// The SHA-256 of the whole file.
    pub(super) sha256: Option<Digest>,
    /// When its first byte was asked for.
    pub(super) begun_at: Moment,
    /// Bytes that are on the disk for certain, whatever happens to the power.
    #[serde(default)]
    synced: u64,
    /// During which run of the system the others were written (Linux's boot id).
    #[serde(default)]
    boot: Option<String>,
}

impl Record {
    /// What a job knows before anybody was asked.
    pub(super) fn of(job: &Job) -> Self {
        Self {
            url: shown(&job.url),
            etag: None,
            bytes: job.bytes,
            sha256: job.sha256,
            begun_at: Moment::now(),
            synced: 0,
            boot: boot_id(),
        }
    }

    /// The entity tag, if byte ranges of different answers may be put together by it (RFC 9110, 8.8.1).
    pub(super) fn strong_etag(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| etag.starts_with('"'))
    }

    /// What a job can use of the record that an earlier run left; `None`: it is a part of something else.
    fn continued(self, job: &Job) -> Option<Self> {
        let differ = |a: Option<u64>, b: Option<u64>| a.zip(b).is_some_and(|(a, b)| a != b);
        let same_digest = self.sha256.is_some() && self.sha256 == job.sha256;
        let other_digest = !same_digest && self.sha256.is_some() && job.sha256.is_some();
        let same_url = self.url == shown(&job.url);
        if differ(self.bytes, job.bytes) || other_digest || !(same_url || same_digest) {
            return None;
        }
        Some(Self {
            // Another server's entity tag says nothing here; the digest will tell.
            etag: self.etag.filter(|_| same_url),
            url: shown(&job.url),
            bytes: job.bytes.or(self.bytes),
            sha256: job.sha256.or(self.sha256),
            begun_at: self.begun_at,
            synced: self.synced,
            boot: self.boot,
        })
    }
}

/// Bytes that a loss of power takes at most; they are fetched again.
const SYNC_EVERY: u64 = 32 << 20;

/// An unfinished file. Whoever holds it holds the target's lock.
pub(super) struct Partial {
    target: PathBuf,
    path: PathBuf,
    record_path: PathBuf,
    file: File,
    length: u64,
    /// Bytes that a loss of power may take.
    unsynced: u64,
    hasher: Sha256,
    record: Record,
}

impl Partial {
    /// Opens what an earlier run left, if it is a part of this job's file, or an empty one.
    pub(super) fn open(job: &Job, progress: &Progress) -> Result<Self, DownloadError> {
        let path = with_end(&job.target, ".partial");
        let record_path = with_end(&job.target, ".partial.json");
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(DownloadError::file("opened", &path))?;
        let mut partial = Self {
            target: job.target.clone(),
            path,
            record_path,
            file,
            length: 0,
            unsynced: 0,
            hasher: Sha256::new(),
            record: Record::of(job),
        };
        match read_record(&partial.record_path).and_then(|record| record.continued(job)) {
            Some(record) => {
                partial.record = record;
                partial.forget_unsynced()?;
                partial.reread(progress)?;
            }
            None => partial.clear()?,
        }
        Ok(partial)
    }

    /// Bytes that are here.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// What this is a part of.
    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// Where the bytes are.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Forgets all bytes, and begins the file that `record` describes.
    pub(super) fn begin(&mut self, record: Record) -> Result<(), DownloadError> {
        self.clear()?;
        self.note(record)
    }

    /// Since the system was started anew, what was not synced then may be anything, with the length that it had.
    fn forget_unsynced(&mut self) -> Result<(), DownloadError> {
        let boot = boot_id();
        if boot == self.record.boot {
            return Ok(());
        }
        // Where the system tells nothing, the digest has to find it.
        if boot.is_some() && self.record.boot.is_some() {
            let here = self.file.metadata().map(|found| found.len());
            here.map(|length| length.min(self.record.synced))
                .and_then(|kept| self.file.set_len(kept))
                .and_then(|()| self.file.sync_all())
                .map_err(DownloadError::file("cut", &self.path))?;
        }
        self.note(Record {
            boot,
            ..self.record.clone()
        })
    }

    /// Remembers more about the same file.
    pub(super) fn note(&mut self, record: Record) -> Result<(), DownloadError> {
        if record == self.record && self.record_path.exists() {
            return Ok(());
        }
        let new = with_end(&self.record_path, ".new");
        let bytes = serde_json::to_vec_pretty(&record).map_err(io::Error::from);
        // On the disk before it takes the old one's place: an empty record would cost the whole file.
        let written = bytes.and_then(|bytes| {
            let mut file = File::create(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written
            .and_then(|()| fs::rename(&new, &self.record_path))
            .map_err(DownloadError::file("written", &self.record_path))?;
        self.record = record;
        Ok(())
    }

    /// Adds bytes to the end.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), DownloadError> {
        self.file
            .write_all(bytes)
            .map_err(|error| self.unwritten(error))?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            self.file
                .sync_data()
                .map_err(|error| self.unwritten(error))?;
            self.note(Record {
                synced: self.length,
                ..self.record.clone()
            })?;
        }
        Ok(())
    }

    /// The digest of what is here.
    pub(super) fn digest(&self) -> Digest {
        <[u8; 32]>::from(self.hasher.clone().finalize()).into()
    }

    /// Forgets all bytes.
    pub(super) fn clear(&mut self) -> Result<(), DownloadError> {
        remove(&self.record_path)?;
        (self.length, self.unsynced, self.record.synced) = (0, 0, 0);
        self.hasher = Sha256::new();
        // Emptied on the disk before another record is written: after a loss of power old bytes must not be taken for new ones.
        self.file
            .set_len(0)
            .and_then(|()| self.file.sync_all())
            .map_err(DownloadError::file("emptied", &self.path))
    }

    /// Removes everything.
    pub(super) fn discard(&mut self) -> Result<(), DownloadError> {
        self.clear()?;
        remove(&self.path)
    }

    /// Gives the checked file its name, so that it is either there and whole, or not there, whenever the power goes.
    pub(super) fn finish(self) -> Result<PathBuf, DownloadError> {
        self.file
            .sync_all()
            .map_err(|error| self.unwritten(error))?;
        fs::rename(&self.path, &self.target)
            .and_then(|()| match self.target.parent() {
                Some(folder) => File::open(folder)?.sync_all(),
                None => Ok(()),
            })
            .map_err(DownloadError::file("put in its place", &self.target))?;
        remove(&self.record_path)?;
        Ok(self.target)
    }

    /// Checks that `missing` further bytes, and the reserve, fit on the disk.
    pub(super) fn check_space(&self, missing: u64, reserve: u64) -> Result<(), DownloadError> {
        let space = rustix::fs::fstatvfs(&self.file)
            .map_err(io::Error::from)
            .map_err(DownloadError::file("measured", &self.path))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let needed = missing.saturating_add(reserve);
        if needed <= free {
            return Ok(());
        }
        Err(self.disk_full(needed, free))
    }

    /// Hashes what is there.
    fn reread(&mut self, progress: &Progress) -> Result<(), DownloadError> {
        progress.set_phase(Phase::Rereading);
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            progress.check()?;
            let length = match self.file.read(&mut piece) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.map_err(DownloadError::file("read", &self.path))?,
            };
            if length == 0 {
                return Ok(());
            }
            self.hasher.update(&piece[..length]);
            self.length += length as u64;
        }
    }

    fn unwritten(&self, error: io::Error) -> DownloadError {
        if matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        ) {
            let missing = self.record.bytes.unwrap_or(0).saturating_sub(self.length);
            return self.disk_full(missing.max(1 << 20), 0);
        }
        DownloadError::file("written", &self.path)(error)
    }

    fn disk_full(&self, needed: u64, free: u64) -> DownloadError {
        DownloadError::DiskFull {
            folder: self.target.parent().unwrap_or(Path::new(".")).to_owned(),
            needed_mib: needed.div_ceil(1 << 20),
            free_mib: free >> 20,
        }
    }
}

/// Removes what a download left beside a file that is whole: a kill between its last two steps leaves the record.
pub(super) fn forget(target: &Path) -> Result<(), DownloadError> {
    remove(&with_end(target, ".partial"))?;
    remove(&with_end(target, ".partial.json"))
}

/// Which run of the system this is, where the system tells.
fn boot_id() -> Option<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned())
}

/// A record that can't be read is none.
fn read_record(path: &Path) -> Option<Record> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(LONGEST_RECORD)
        .read_to_end(&mut bytes)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn remove(path: &Path) -> Result<(), DownloadError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DownloadError::file("removed", path)(error))
        }
        _ => Ok(()),
    }
}
