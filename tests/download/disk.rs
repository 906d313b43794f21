//! `pocket-llm pull` where the disk, the directory or the name service fails.

use super::hub::Hub;
use super::model::{NAME, Place, gguf};
use super::program::{output, pull};
use std::path::Path;
use std::process::Command;

const LENGTH: usize = 3_000_003;

/// The same command under a limit on the size of files, which fails a write in the middle as a full disk does.
fn with_a_small_disk(command: &Command) -> Command {
    let mut limited = Command::new("sh");
    // Without the trap the limit would end the process by a signal. The unit is 512 or 1,024 bytes.
    limited.args(["-c", r#"trap "" XFSZ; ulimit -f 1000; exec "$0" "$@""#]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

#[test]
fn a_disk_that_is_full_in_the_middle_is_told_and_what_came_is_kept() {
    let hub = Hub::start(gguf(4, LENGTH));
    let place = Place::new(&hub);
    let command = pull(&hub, place.folder.path(), &[NAME]);
    let (status, out, err) = output(with_a_small_disk(&command));
    assert_eq!(status, Some(1), "{err}");
    assert!(err.contains(".partial can't be written: "), "{err}");
    assert_eq!(out, "");
    assert_eq!(place.bytes(), None, "no file that is not whole");
    let kept = place.partial_length();
    assert!(kept > 100_000 && kept < LENGTH, "{kept}");
    // With room again it goes on where it was.
    let (status, _, err) = output(command);
    assert_eq!(status, Some(0), "{err}");
    assert_eq!(place.bytes(), Some(hub.blob().bytes.to_vec()));
    place.assert_tidy();
}

/// A directory that can't be written, also not by root.
#[test]
fn a_store_that_can_not_be_written_is_told_before_anything_is_asked() {
    let hub = Hub::start(gguf(4, LENGTH));
    let (status, _, err) = output(pull(&hub, Path::new("/proc/self"), &[NAME]));
    assert_eq!(status, Some(1), "{err}");
    assert!(err.contains("can't be written: "), "{err}");
    assert_eq!(hub.seen().len(), 0, "no byte for nothing");
}

#[test]
fn an_unknown_host_is_told_by_its_name() {
    let hub = Hub::start(gguf(4, LENGTH));
    let place = Place::new(&hub);
    let mut command = pull(&hub, place.folder.path(), &[NAME]);
    // A name that never exists (RFC 2606).
    command.env("HF_ENDPOINT", "http://hub.invalid");
    let (status, _, err) = output(command);
    assert_eq!(status, Some(1), "{err}");
    assert!(
        err.contains("the name of the host hub.invalid is unknown"),
        "{err}"
    );
    assert_eq!(place.bytes(), None);
}
