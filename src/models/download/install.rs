//! A model from an address that a client named: public servers only, under a name of its own, never in place of another file.

use super::location::shown;
use super::{DownloadError, How, Job, Phase, Progress, Pulled, Puller, Reach, fetch};
use crate::models::reference::ModelName;
use crate::models::store::{Manifest, Moment, Origin, State, Stored};
use std::fs;
use ureq::http::Uri;

impl Puller {
    /// Brings the file at an address to the disk, as a model of this name.
    pub fn install(
        &self,
        name: &ModelName,
        url: &Uri,
        progress: &Progress,
    ) -> Result<Pulled, DownloadError> {
        let installed = self.run_install(name, url, progress);
        progress.set_phase(Phase::Ended);
        installed
    }

    /// The model, if it was installed from there before. Another file under its name is an error.
    pub fn installed(&self, name: &ModelName, url: &Uri) -> Result<Option<Pulled>, DownloadError> {
        let Some(stored) = self.store.find(name)? else {
            return Ok(None);
        };
        if is_from(&stored, url) {
            let sha256 = stored.manifest.and_then(|manifest| manifest.sha256);
            return Ok(Some(Pulled {
                path: stored.path,
                bytes: stored.bytes,
                sha256,
                how: How::AlreadyThere,
            }));
        }
        Err(DownloadError::InTheWay {
            found: format!("{} bytes", stored.bytes),
            path: stored.path,
        })
    }

    fn run_install(
        &self,
        name: &ModelName,
        url: &Uri,
        progress: &Progress,
    ) -> Result<Pulled, DownloadError> {
        let path = self.store.place(name);
        let _lock = self.lock(&path, progress)?;
        if let Some(there) = self.installed(name, url)? {
            return Ok(there);
        }
        let job = Job {
            url: url.clone(),
            token: None,
            bytes: None,
            sha256: None,
            target: path,
            reach: Reach::PublicOnly,
        };
        let fetched = fetch(&job, &self.settings, progress)?;
        let origin = Origin::Url { url: shown(url) };
        let mut manifest = Manifest::new(origin, fetched.bytes);
        manifest.etag.clone_from(&fetched.etag);
        manifest.sha256 = Some(fetched.sha256);
        manifest.fetched_at = Some(Moment::now());
        manifest.verified_at = manifest.fetched_at;
        let found = fs::metadata(&fetched.path).and_then(|found| found.modified());
        manifest.verified_mtime = found.ok().map(Moment::from);
        self.store.record(&fetched.path, &manifest)?;
        Ok(Pulled {
            path: fetched.path,
            bytes: fetched.bytes,
            sha256: Some(fetched.sha256),
            how: How::Fetched {
                received: fetched.received,
            },
        })
    }
}

fn is_from(stored: &Stored, url: &Uri) -> bool {
    let origin = stored.manifest.as_ref().map(|manifest| &manifest.source);
    let same = matches!(origin, Some(Origin::Url { url: from }) if *from == shown(url));
    same && stored.state == State::Complete
}
