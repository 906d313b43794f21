//! `pocket-llm prepare-store`, hidden: makes a folder somebody's own. For the init container of a pod, whose hostPath folder the
//! kubelet makes for root; the image has no shell to do it with.

use anyhow::{Context, Result};
use clap::Args;
use rustix::fs::{Gid, Uid};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;

/// What `prepare-store` takes.
#[derive(Args, Clone, Debug)]
pub(super) struct PrepareArgs {
    /// User and group that the folder is to belong to, as numbers
    #[arg(long, value_name = "UID:GID", value_parser = owner)]
    owner: (u32, u32),

    /// The folder; it is made if it is not there. What is in it stays as it is
    folder: PathBuf,
}

pub(super) fn run(args: &PrepareArgs) -> Result<ExitCode> {
    let folder = &args.folder;
    let shown = folder.display();
    std::fs::create_dir_all(folder).with_context(|| format!("{shown} can't be made"))?;
    let about = std::fs::metadata(folder).with_context(|| format!("{shown} can't be read"))?;
    let (user, group) = args.owner;
    if (about.uid(), about.gid()) != args.owner {
        let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
        rustix::fs::chown(folder, Some(user), Some(group))
            .with_context(|| format!("{shown} can't be given to {user:?}: that needs CAP_CHOWN"))?;
    }
    eprintln!("{shown} belongs to {user}:{group}");
    Ok(ExitCode::SUCCESS)
}

fn owner(text: &str) -> Result<(u32, u32), String> {
    // The largest number is no id: chown takes it for "leave it as it is".
    let id = |text: &str| text.parse().ok().filter(|id| *id != u32::MAX);
    text.split_once(':')
        .and_then(|(user, group)| Some((id(user)?, id(group)?)))
        .ok_or_else(|| "give two numbers, such as 65532:65532".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_two_numbers() {
        assert_eq!(owner("65532:5"), Ok((65_532, 5)));
        for wrong in ["", "65532", "a:1", "1:-1", "1:4294967295", "1:2:3"] {
            assert!(owner(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_folder_of_ones_own_needs_no_rights() {
        let here = tempfile::tempdir().expect("a folder");
        let about = here.path().metadata().expect("a folder");
        let args = PrepareArgs {
            owner: (about.uid(), about.gid()),
            folder: here.path().join("models"),
        };
        for _ in 0..2 {
            run(&args).expect("it is ours");
        }
        assert!(args.folder.is_dir());
    }
}
