//! Bytes of a file, counted: nothing is read, skipped or allocated before it was compared with what is left.

use super::error::Fault;
use std::io::{ErrorKind, Read, Seek, SeekFrom};

/// Bytes that are read ahead, and the most that [`Source::next`] gives at once.
pub(super) const BUFFER: u64 = 32 << 10;

/// A file that is read from its start to the end of its header.
pub(super) struct Source<R> {
    reader: R,
    buffer: Box<[u8]>,
    /// What of the buffer was read and not yet given out.
    from: usize,
    to: usize,
    /// Bytes between here and the end of the file.
    left: u64,
    /// Bytes between the start of the file and here.
    at: u64,
}

impl<R: Read + Seek> Source<R> {
    /// `reader` is at byte `at` of a file of `bytes` bytes.
    pub(super) fn new(reader: R, at: u64, bytes: u64) -> Self {
        let left = bytes.saturating_sub(at);
        let buffer = usize::try_from(left.min(BUFFER)).unwrap_or(0);
        Self {
            reader,
            buffer: vec![0; buffer].into(),
            from: 0,
            to: 0,
            left,
            at,
        }
    }

    /// Goes back to the start of the file.
    pub(super) fn rewind(&mut self) -> Result<(), Fault> {
        self.reader.seek(SeekFrom::Start(0)).map_err(Fault::Read)?;
        self.left += self.at;
        (self.from, self.to, self.at) = (0, 0, 0);
        Ok(())
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

    /// The next `N` bytes, which are few.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let bytes = self.next(N)?;
        Ok(*bytes
            .first_chunk()
            .expect("as many bytes as were asked for"))
    }

    /// The next `count` bytes, at most [`BUFFER`].
    pub(super) fn next(&mut self, count: usize) -> Result<&[u8], Fault> {
        self.take(count as u64)?;
        if self.to - self.from < count {
            self.fill(count)?;
        }
        self.from += count;
        Ok(&self.buffer[self.from - count..self.from])
    }

    /// Passes over `count` bytes; those that are not in the buffer are not read.
    pub(super) fn skip(&mut self, count: u64) -> Result<(), Fault> {
        self.take(count)?;
        let here = (self.to - self.from) as u64;
        if let Some(beyond @ 1..) = count.checked_sub(here) {
            let beyond = i64::try_from(beyond).map_err(|_| Fault::Truncated)?;
            (self.from, self.to) = (0, 0);
            self.reader
                .seek(SeekFrom::Current(beyond))
                .map_err(Fault::Read)?;
        } else {
            self.from += usize::try_from(count).expect("not more than is in the buffer");
        }
        Ok(())
    }

    fn take(&mut self, count: u64) -> Result<(), Fault> {
        self.left = self.left.checked_sub(count).ok_or(Fault::Truncated)?;
        self.at += count;
        Ok(())
    }

    /// Reads until `count` bytes are in the buffer, which has room for as many as the file or [`BUFFER`] has.
    #[cold]
    fn fill(&mut self, count: usize) -> Result<(), Fault> {
        self.buffer.copy_within(self.from..self.to, 0);
        (self.from, self.to) = (0, self.to - self.from);
        while self.to < count {
            match self.reader.read(&mut self.buffer[self.to..]) {
                // It ends earlier than its length said: it was cut while we read it.
                Ok(0) => return Err(Fault::Truncated),
                Ok(read) => self.to += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Read(error)),
            }
        }
        Ok(())
    }
}
