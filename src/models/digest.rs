//! SHA-256 of files, in a stream: a model is larger than memory.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes read at once.
const PART: usize = 1 << 18;

/// A SHA-256 digest; its text is 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// A text that is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sha256 has 64 hexadecimal digits")]
pub struct NoDigest;

impl Digest {
    /// The digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let digits = text.as_bytes();
        let mut bytes = [0; 32];
        if digits.len() != 64 {
            return Err(NoDigest);
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |at: usize| char::from(pair[at]).to_digit(16);
            let value = digit(0).zip(digit(1)).map(|(high, low)| high * 16 + low);
            *byte = value
                .and_then(|value| u8::try_from(value).ok())
                .ok_or(NoDigest)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = NoDigest;

    fn try_from(text: String) -> Result<Self, NoDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What was read of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digested {
    /// Bytes read.
    pub bytes: u64,
    /// Their digest.
    pub sha256: Digest,
}

/// Reads a file to its end. `progress` hears the bytes read so far and their sum, after each quarter of a mebibyte; a set
/// `cancel` ends it with [`io::ErrorKind::Interrupted`], and a file whose size changes meanwhile with
/// [`io::ErrorKind::InvalidData`].
pub fn verify(
    path: &Path,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<Digested> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut hasher = Sha256::new();
    let mut part = vec![0; PART];
    let mut bytes = 0;
    loop {
        if cancel.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let length = match file.read(&mut part) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&part[..length]);
        bytes += length as u64;
        if bytes > size {
            // Somebody writes faster than we read: there is no end.
            break;
        }
        progress(bytes, size);
    }
    if bytes != size || file.metadata()?.len() != size {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its size changed while it was read",
        ));
    }
    Ok(Digested {
        bytes,
        sha256: Digest(hasher.finalize().into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4's example "abc".
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn texts_are_digests_or_refused() {
        assert_eq!(Digest::of(b"abc").to_string(), ABC);
        assert_eq!(ABC.to_uppercase().parse(), Ok(Digest::of(b"abc")));
        let long = format!("{ABC}0");
        let odd = ABC.replacen('b', "+", 1);
        let wide = format!("é{}", &ABC[2..]);
        for text in ["", "abc", &ABC[1..], &long, &odd, &wide] {
            assert_eq!(text.parse::<Digest>(), Err(NoDigest), "{text}");
        }
    }

    #[test]
    fn a_file_is_read_in_parts() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..=250).cycle().take(PART * 2 + 7).collect();
        std::fs::write(&path, &bytes)?;
        let mut heard = Vec::new();
        let digested = verify(&path, &AtomicBool::new(false), &mut |bytes, size| {
            heard.push((bytes, size));
        })?;
        assert_eq!(digested.bytes, bytes.len() as u64);
        assert_eq!(digested.sha256, Digest::of(&bytes));
        assert_eq!(heard.last(), Some(&(digested.bytes, digested.bytes)));
        assert!(heard.len() >= 3, "{heard:?}");
        Ok(())
    }

    #[test]
    fn reading_can_be_cancelled_and_notices_writers() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("file");
        std::fs::write(&path, vec![7; PART * 4])?;
        let cancel = AtomicBool::new(false);
        let mut parts = 0;
        let cancelled = verify(&path, &cancel, &mut |_, _| {
            parts += 1;
            cancel.store(true, Ordering::Relaxed);
        });
        assert_eq!(
            (cancelled.map_err(|e| e.kind()), parts),
            (Err(io::ErrorKind::Interrupted), 1)
        );
        for length in [PART * 5, PART * 2] {
            let file = File::options().write(true).open(&path)?;
            file.set_len(PART as u64 * 4)?;
            let mut resized = false;
            let changed = verify(&path, &AtomicBool::new(false), &mut |_, _| {
                if !resized {
                    resized = file.set_len(length as u64).is_ok();
                }
            });
            assert_eq!(
                changed.map_err(|e| e.kind()),
                Err(io::ErrorKind::InvalidData),
                "{length}"
            );
        }
        Ok(())
    }
}
