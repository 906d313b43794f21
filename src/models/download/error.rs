//! What can go wrong with a download, each as one sentence that says what to do.
//!
//! No text here ever carries a token, a password or the query of a URL.

use crate::models::reference::HubFile;
use crate::models::store::StoreError;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The address can't be asked at all.
    #[error("{url:?} can't be fetched: {why}")]
    BadUrl {
        /// The address, without its query.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A name or a literal that leads into somebody's own network.
    #[error("{host} is at {address}, which is no public address, so nothing is fetched from there")]
    PrivateAddress {
        /// The name that was asked for.
        host: String,
        /// Where it leads.
        address: IpAddr,
    },
    /// A redirect that is not followed.
    #[error("{url} redirects to where we don't follow: {why}")]
    BadRedirect {
        /// Who redirects, without its query.
        url: String,
        /// Why it is not followed.
        why: &'static str,
    },
    /// The server wants to know who asks, or knows and doesn't like it.
    #[error("{url} is not open to {}: accept the licence on the repository's page if it has one, and put a token that may read it into \
             HF_TOKEN or the hub's token file", if *.with_token { "this token" } else { "everybody" })]
    Denied {
        /// What was asked for, without its query.
        url: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// There is no such file.
    #[error("there is nothing at {url}: check the repository, the file's name and the revision")]
    NotFound {
        /// What was asked for, without its query.
        url: String,
    },
    /// An answer that another try would not change.
    #[error("{url} answers with status {status}, and would again")]
    Status {
        /// What was asked for, without its query.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// Too many tries got nothing.
    #[error(
        "gave up after {attempts} tries without progress (the last: {last}); what came is kept, so run it again"
    )]
    GaveUp {
        /// Tries in a row that brought nothing new.
        attempts: u32,
        /// What ended the last one.
        last: String,
    },
    /// The file does not fit.
    #[error("{} is short of space: {needed_mib} MiB are needed and {free_mib} MiB are free, so free {} MiB", folder.display(),
            needed_mib - free_mib)]
    DiskFull {
        /// Where the file was to go.
        folder: PathBuf,
        /// Missing bytes and what always stays free, in MiB (rounded up).
        needed_mib: u64,
        /// What is free now, in MiB (rounded down).
        free_mib: u64,
    },
    /// The bytes are not those that were promised, twice.
    #[error(
        "{url} gave another file than was promised, twice: expected {expected}, got {found}; nothing was kept"
    )]
    WrongContent {
        /// What was asked for, without its query.
        url: String,
        /// A digest, a length, or "a GGUF file".
        expected: String,
        /// What came instead.
        found: String,
    },
    /// The promised file, which is no model.
    #[error("{url} is the file that was promised, but no model can be loaded from it: {why}")]
    Unusable {
        /// What was asked for, without its query.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The catalogue and the hub disagree before the first byte.
    #[error(
        "the hub has another file than the catalogue knows: {what} {hub} there, {catalogue} here; nothing was fetched"
    )]
    HubDiffers {
        /// "sha256" or "bytes".
        what: &'static str,
        /// The hub's.
        hub: String,
        /// The catalogue's.
        catalogue: String,
    },
    /// What the hub said about a repository can't be used.
    #[error("{url} is no description of a repository: {why}")]
    BadMetadata {
        /// What was asked for, without its query.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The repository is there, the file is not.
    #[error(
        "the repository has no such file: {0}; check the name, upper and lower case, and the revision"
    )]
    NoSuchFile(HubFile),
    /// A file of the same name that was not fetched from there.
    #[error("{} is there already and is another file ({found}): move it away, or pull with --force to replace it", path.display())]
    InTheWay {
        /// The file.
        path: PathBuf,
        /// What is known of it.
        found: String,
    },
    /// A path can't be pulled.
    #[error("{} is a path: pull takes names of the catalogue and hf:owner/name/file.gguf", .0.display())]
    Path(PathBuf),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A setting of the environment.
    #[error("{name} can't be used: {why}")]
    Setting {
        /// The variable's name.
        name: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Somebody wanted it to end.
    #[error("cancelled; what came is kept, so run it again")]
    Cancelled,
    /// The disk.
    #[error("{} can't be {doing}: {source}", path.display())]
    File {
        /// What was to be done, as a participle: "read", "written".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl DownloadError {
    /// For `map_err` on what is done with a file.
    pub(super) fn file(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File {
            doing,
            path: path.into(),
            source,
        }
    }
}
