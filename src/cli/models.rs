//! What the subcommands about models share: where they are, which are known, how they are shown.

use crate::models::store::{Moment, default_root};
use crate::models::{Catalogue, Store};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Where models are, and which are known.
#[derive(Args, Clone, Debug)]
pub(super) struct ModelArgs {
    /// The directory that models are in [default: pocket-llm/models in the user's data directory, such as
    /// ~/.local/share/pocket-llm/models]
    #[arg(long, env = "POCKET_LLM_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,

    /// A directory of further catalogue files (*.toml); one with the name of a built-in model replaces it
    #[arg(long, env = "POCKET_LLM_CATALOGUE", value_name = "DIR")]
    catalogue: Option<PathBuf>,
}

impl ModelArgs {
    /// The catalogue; what is wrong with it is told before anything is done.
    pub(super) fn catalogue(&self) -> Result<Catalogue> {
        let folder = self.catalogue.as_deref();
        Ok(Catalogue::load(
            folder.filter(|folder| !folder.as_os_str().is_empty()),
        )?)
    }

    /// The store, which is created if it is not there.
    pub(super) fn store(&self) -> Result<Store> {
        // An empty variable is one that nobody set.
        let given = self.models.as_ref();
        let root = match given.filter(|root| !root.as_os_str().is_empty()) {
            Some(root) => std::path::absolute(root)?,
            None => default_root()?,
        };
        Ok(Store::open(&root)?)
    }
}

/// Bytes for people: `806 MB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    for (unit, scale) in UNITS {
        if bytes >= scale {
            let tenths = bytes / (scale / 10);
            return if tenths < 100 {
                format!("{}.{} {unit}", tenths / 10, tenths % 10)
            } else {
                format!("{} {unit}", tenths / 10)
            };
        }
    }
    format!("{bytes} B")
}

/// How long ago it was, for people: `3 days ago`.
pub(super) fn ago(moment: Moment) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("year", 365 * 24 * 3600),
        ("day", 24 * 3600),
        ("hour", 3600),
        ("minute", 60),
    ];
    let seconds = moment.age().as_secs();
    for (unit, scale) in UNITS {
        let count = seconds / scale;
        if count > 0 {
            let plural = if count == 1 { "" } else { "s" };
            return format!("{count} {unit}{plural} ago");
        }
    }
    "just now".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_for_people() {
        let sizes = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (9_999_999, "9.9 MB"),
            (10_000_000, "10 MB"),
            (806_058_272, "806 MB"),
            (1_117_320_736, "1.1 GB"),
            (u64::MAX, "18446744073 GB"),
        ];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        let before = |seconds: u64| ago(Moment(Moment::now().0 - seconds * 1000));
        assert_eq!(before(0), "just now");
        assert_eq!(before(61), "1 minute ago");
        assert_eq!(before(3 * 24 * 3600 + 5), "3 days ago");
        assert_eq!(ago(Moment(u64::MAX)), "just now");
    }
}
