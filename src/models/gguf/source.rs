//! Bytes of a file, counted: nothing is read, skipped or allocated before it was compared with what is left.

use super::error::Fault;
use std::io::{BufReader, ErrorKind, Read, Seek};

/// Bytes that are read ahead.
const BUFFER: u64 = 64 << 10;

/// A file that is read from its start to the end of its header.
pub(super) struct Source<R> {
    reader: BufReader<R>,
    /// Bytes between here and the end of the file.
    left: u64,
    /// Bytes between the start of the file and here.
    at: u64,
}

impl<R: Read + Seek> Source<R> {
    /// `bytes` is the length of the file.
    pub(super) fn new(reader: R, bytes: u64) -> Self {
        let buffer = usize::try_from(bytes.clamp(1, BUFFER)).unwrap_or(1);
        Self {
            reader: BufReader::with_capacity(buffer, reader),
            left: bytes,
            at: 0,
        }
    }

    /// Bytes between the start of the file and here.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Whether `count` things of at least `each` bytes can still come.
    pub(super) fn can_hold(&self, count: u64, each: u64) -> bool {
        count
            .checked_mul(each)
            .is_some_and(|bytes| bytes <= self.left)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.take(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(fault)?;
        Ok(bytes)
    }

    /// The next `count` bytes, which the caller keeps.
    pub(super) fn bytes(&mut self, count: u64) -> Result<Vec<u8>, Fault> {
        self.take(count)?;
        let mut bytes = vec![0; usize::try_from(count).map_err(|_| Fault::Truncated)?];
        self.reader.read_exact(&mut bytes).map_err(fault)?;
        Ok(bytes)
    }

    /// Passes over `count` bytes; those that are not in the buffer are not read.
    pub(super) fn skip(&mut self, count: u64) -> Result<(), Fault> {
        self.take(count)?;
        let count = i64::try_from(count).map_err(|_| Fault::Truncated)?;
        self.reader.seek_relative(count).map_err(fault)
    }

    fn take(&mut self, count: u64) -> Result<(), Fault> {
        self.left = self.left.checked_sub(count).ok_or(Fault::Truncated)?;
        self.at += count;
        Ok(())
    }
}

/// A file that ends earlier than its length said was cut while we read it.
fn fault(error: std::io::Error) -> Fault {
    match error.kind() {
        ErrorKind::UnexpectedEof => Fault::Truncated,
        _ => Fault::Read(error),
    }
}
