//! Reading with breaks.

use std::io::{self, Read, Seek, SeekFrom};
use std::thread;
use std::time::{Duration, Instant};

/// How long a reader works.
const BITE: Duration = Duration::from_millis(2);
/// How long it pauses then.
const BREAK: Duration = Duration::from_millis(6);

/// A file whose reader pauses after each bite of work.
pub(super) struct InBites<R> {
    file: R,
    since: Instant,
}

impl<R> InBites<R> {
    pub(super) fn new(file: R) -> Self {
        Self {
            file,
            since: Instant::now(),
        }
    }
}

impl<R: Read> Read for InBites<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since.elapsed() >= BITE {
            thread::sleep(BREAK);
            self.since = Instant::now();
        }
        self.file.read(buffer)
    }
}

impl<R: Seek> Seek for InBites<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}
