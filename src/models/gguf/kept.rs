//! What is kept of a header: the parts that somebody asks for, in a form that is never longer than they are in the file.
//!
//! A header is walked through twice. The first time only counts what is worth keeping; so nothing is allocated for a header that
//! is not whole, and what is allocated then has its final size. Per pair: length of the key u16, key, tag u8, value; per tensor
//! see `tensors`. The positions of pairs and tensors, 4 bytes each, are sorted by name. Lengths of 8 and types of 4 bytes in the
//! file leave room for that.

use super::error::Fault;
use super::source::{BUFFER, Source};
use super::values::{Long, Numbers, Value, integer, width};
use std::io::{Read, Seek};

/// Tags of values that are kept; below these, types of single integers.
const TEXT: u8 = 20;
const NUMBERS: u8 = 21;
const LONG: u8 = 22;
const OTHER: u8 = 23;

/// What is kept, or for a start only how much that is.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    /// Bytes that were worth keeping so far.
    length: usize,
    /// Where pairs begin, sorted by key in the end.
    pairs: Vec<u32>,
    /// Where tensors begin, sorted by name in the end.
    tensors: Vec<u32>,
    /// Where the first one begins.
    tensors_at: u32,
    counts_only: bool,
}

impl Kept {
    /// Keeps nothing.
    pub(super) fn counting() -> Self {
        Self {
            counts_only: true,
            ..Self::default()
        }
    }

    /// Has room for what was counted.
    pub(super) fn with_room(counted: &Self, pairs: u64, tensors: u64) -> Self {
        let positions = |count| Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        Self {
            bytes: Vec::with_capacity(counted.length),
            pairs: positions(pairs),
            tensors: positions(tensors),
            ..Self::default()
        }
    }

    /// Bytes of memory.
    pub(super) fn heap_bytes(&self) -> usize {
        self.bytes.capacity() + 4 * (self.pairs.capacity() + self.tensors.capacity())
    }

    /// Adds bytes; a file that has more of them than it had a moment ago was changed.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        self.length += bytes.len();
        if self.counts_only {
            return Ok(());
        }
        if self.length > self.bytes.capacity() {
            return Err(Fault::Changed);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Adds the next `count` bytes of the file.
    fn copy<R: Read + Seek>(
        &mut self,
        mut count: u64,
        source: &mut Source<R>,
    ) -> Result<(), Fault> {
        if self.counts_only {
            // The walk's limit of a text is less than a `usize` can hold.
            self.length += usize::try_from(count).unwrap_or(0);
            return source.skip(count);
        }
        while count > 0 {
            let piece = count.min(BUFFER);
            self.put(source.next(usize::try_from(piece).unwrap_or(0))?)?;
            count -= piece;
        }
        Ok(())
    }

    /// A new pair.
    pub(super) fn key(&mut self, key: &[u8]) -> Result<(), Fault> {
        note(&mut self.pairs, self.length, self.counts_only)?;
        let length = u16::try_from(key.len()).unwrap_or(u16::MAX);
        self.put(&length.to_le_bytes())?;
        self.put(key)
    }

    /// A new tensor.
    pub(super) fn tensor(&mut self) -> Result<(), Fault> {
        note(&mut self.tensors, self.length, self.counts_only)
    }

    pub(super) fn other(&mut self) -> Result<(), Fault> {
        self.put(&[OTHER])
    }

    /// Returns the number.
    pub(super) fn integer(&mut self, kind: u32, bytes: &[u8]) -> Result<i64, Fault> {
        self.put(&[tag(kind)])?;
        self.put(bytes)?;
        Ok(integer(kind, bytes))
    }

    pub(super) fn short_text(&mut self, text: &[u8]) -> Result<(), Fault> {
        self.put(&[TEXT])?;
        self.put(&length_of(text.len() as u64))?;
        self.put(text)
    }

    pub(super) fn text<R: Read + Seek>(
        &mut self,
        length: u64,
        source: &mut Source<R>,
    ) -> Result<(), Fault> {
        self.put(&[TEXT])?;
        self.put(&length_of(length))?;
        self.copy(length, source)
    }

    pub(super) fn numbers<R: Read + Seek>(
        &mut self,
        kind: u32,
        bytes: u64,
        source: &mut Source<R>,
    ) -> Result<(), Fault> {
        self.put(&[NUMBERS, tag(kind)])?;
        self.put(&length_of(bytes))?;
        self.copy(bytes, source)
    }

    pub(super) fn long_array(&mut self, long: Long) -> Result<(), Fault> {
        self.put(&[LONG])?;
        self.put(&long.count.to_le_bytes())?;
        self.put(&long.bytes.to_le_bytes())
    }

    /// Sorts what is there by name. Names must be unique.
    pub(super) fn sort(&mut self) -> Result<(), Fault> {
        // Tensors follow the pairs.
        self.tensors_at = self.tensors.first().copied().unwrap_or(0);
        sort(&mut self.pairs, |at| Record::at(&self.bytes, at).key())?;
        sort(&mut self.tensors, |at| Record::at(&self.bytes, at).name())
    }

    /// The value of this key.
    pub(super) fn value(&self, key: &str) -> Option<Value<'_>> {
        let record = |at: &u32| Record::at(&self.bytes, *at);
        let found = self
            .pairs
            .binary_search_by(|at| record(at).key().cmp(key.as_bytes()));
        let mut record = record(&self.pairs[found.ok()?]);
        record.key();
        Some(record.value())
    }

    /// The records of all tensors, in the order of the file.
    pub(super) fn tensors(&self) -> impl ExactSizeIterator<Item = Entry<'_>> + Clone {
        let mut record = Record::at(&self.bytes, self.tensors_at);
        (0..self.tensors.len()).map(move |_| record.entry())
    }

    /// The record of this tensor.
    pub(super) fn find(&self, name: &str) -> Option<Entry<'_>> {
        let record = |at: &u32| Record::at(&self.bytes, *at);
        let found = self
            .tensors
            .binary_search_by(|at| record(at).name().cmp(name.as_bytes()));
        Some(record(&self.tensors[found.ok()?]).entry())
    }
}

/// Notes where a pair or tensor begins.
fn note(positions: &mut Vec<u32>, at: usize, counts_only: bool) -> Result<(), Fault> {
    if counts_only {
        return Ok(());
    }
    // The walk's limits are far below 4 GiB.
    let at = u32::try_from(at).map_err(|_| Fault::Changed)?;
    if positions.len() == positions.capacity() {
        return Err(Fault::Changed);
    }
    positions.push(at);
    Ok(())
}

fn sort<'a>(positions: &mut [u32], name: impl Fn(u32) -> &'a [u8]) -> Result<(), Fault> {
    positions.sort_unstable_by(|a, b| name(*a).cmp(name(*b)));
    match positions
        .windows(2)
        .find(|two| name(two[0]) == name(two[1]))
    {
        Some(twice) => Err(Fault::Duplicate(
            shown(text(name(twice[0])).unwrap_or_default()).into(),
        )),
        None => Ok(()),
    }
}

/// An entry of the tensor table: name, dimensions of 8 bytes each, type, offset into the data.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) dims: &'a [u8],
    pub(super) kind: u8,
    pub(super) offset: u64,
}

/// What was kept, from some position on. We wrote it ourselves, so nothing in it is missing.
#[derive(Clone)]
struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    fn at(bytes: &'a [u8], at: u32) -> Self {
        Self(bytes.get(at as usize..).unwrap_or_default())
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at_checked(count).unwrap_or_default();
        self.0 = rest;
        taken
    }

    /// The next integer of that many bytes.
    fn number(&mut self, bytes: usize) -> u64 {
        let mut wide = [0; 8];
        for (to, from) in wide.iter_mut().zip(self.take(bytes)) {
            *to = *from;
        }
        u64::from_le_bytes(wide)
    }

    /// Bytes behind a length of so many bytes.
    fn counted(&mut self, width: usize) -> &'a [u8] {
        let length = self.number(width);
        self.take(usize::try_from(length).unwrap_or(0))
    }

    fn key(&mut self) -> &'a [u8] {
        self.counted(2)
    }

    fn name(&mut self) -> &'a [u8] {
        self.counted(1)
    }

    fn value(&mut self) -> Value<'a> {
        match self.take(1) {
            [TEXT] => Value::Text(self.counted(4)),
            [NUMBERS] => Value::Numbers(Numbers {
                kind: u32::try_from(self.number(1)).unwrap_or(0),
                bytes: self.counted(4),
            }),
            [LONG] => Value::Long(Long {
                count: self.number(8),
                bytes: self.number(8),
            }),
            [tag] if let Some(width) = width((*tag).into()) => {
                Value::Integer(integer((*tag).into(), self.take(width)))
            }
            _ => Value::Other,
        }
    }

    fn entry(&mut self) -> Entry<'a> {
        Entry {
            name: text(self.name()).unwrap_or_default(),
            dims: {
                let dims = self.number(1);
                self.take(8 * usize::try_from(dims).unwrap_or(0))
            },
            kind: u8::try_from(self.number(1)).unwrap_or(u8::MAX),
            offset: self.number(8),
        }
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    str::from_utf8(bytes).ok()
}

/// Types have numbers up to 12.
fn tag(kind: u32) -> u8 {
    u8::try_from(kind).unwrap_or(OTHER)
}

/// A length below 4 GiB; what is kept has at most 1 MiB.
fn length_of(bytes: u64) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_le_bytes()
}

/// The part of a stranger's name that a sentence has room for.
pub(super) fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(64)]
}
