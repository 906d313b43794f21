//! The way through a header, in small steps: what may be there, in which order, and how much of it is kept.
//!
//! Layout (little-endian): `GGUF`, version u32, tensors u64, pairs u64; then per pair a string (u64 length, bytes), a type
//! u32, and the value; an array is a type u32, a count u64 and its elements; then the tensor table (see `tensors`). Source:
//! ggml's docs/gguf.md and gguf.cpp.
//!
//! A walk allocates nothing but a key's first letters. Each step depends only on the bytes that it reads, and on the file's length where a count can't be
//! true, so a file that was cut fails in the step in which it ends, if not before.

use super::error::Fault;
use super::kept::{Kept, shown};
use super::source::Source;
use super::tensors::{self, LEAST_ENTRY, MOST_TENSORS};
use super::values::{Long, kind, width};
use std::io::{Read, Seek};

/// More pairs are refused; models have 20 to 60.
const MOST_PAIRS: u64 = 16_384;
/// The longest key; the format allows 65,535 bytes, and those in use have at most 60.
const LONGEST_KEY: u64 = 4096;
/// The shortest pair: a key of one letter, a type and a byte.
const LEAST_PAIR: u64 = 8 + 1 + 4 + 1;
/// A longer text is not kept; templates, the longest, have 1 to 100 KiB.
const LONGEST_TEXT: u64 = 1 << 20;
/// The longest name of an architecture; llama.cpp's have up to 20 letters.
const LONGEST_ARCHITECTURE: usize = 64;
/// Arrays of numbers up to this length are kept: those that have one for each layer. Vocabularies are only walked through.
const LONGEST_ARRAY: u64 = 4096;
/// What is kept of all texts and arrays together, in bytes.
const MOST_KEPT: u64 = 16 << 20;
/// Texts of an array that one step passes.
const TEXTS_A_STEP: u64 = 256;

/// What comes next.
#[derive(Clone, Copy)]
enum Next {
    Pair(u64),
    /// The rest of an array of texts in this pair.
    Texts {
        pair: u64,
        left: u64,
        long: Long,
    },
    Tensor(u64),
    End,
}

/// A walk: where it is, and the few things that it has to remember.
#[derive(Clone, Copy)]
pub(super) struct Walk {
    next: Next,
    pairs: u64,
    tensors: u64,
    /// What may still be kept.
    room: u64,
    alignment: u64,
    has_architecture: bool,
    /// Bytes of data up to the end of the last tensor that was passed.
    data: u64,
}

impl Walk {
    /// Reads the first 24 bytes.
    pub(super) fn begin<R: Read + Seek>(source: &mut Source<R>) -> Result<Self, Fault> {
        let magic = source.array().map_err(|fault| match fault {
            Fault::Truncated => Fault::TooShort,
            other => other,
        })?;
        if &magic != b"GGUF" {
            return Err(Fault::NotGguf);
        }
        match source.u32()? {
            2 | 3 => {}
            version if version != 0 && version.trailing_zeros() >= 16 => {
                return Err(Fault::BigEndian);
            }
            version => return Err(Fault::Version(version)),
        }
        let tensors = source.u64()?;
        let count = source.u64()?;
        if count > MOST_PAIRS {
            return Err(Fault::TooMany {
                what: "entries",
                count,
                most: MOST_PAIRS,
            });
        }
        if !source.can_hold(count, LEAST_PAIR) {
            return Err(Fault::Truncated);
        }
        Ok(Self {
            next: Next::Pair(0),
            pairs: count,
            tensors,
            room: MOST_KEPT,
            alignment: 32,
            has_architecture: false,
            data: 0,
        })
    }

    /// Pairs and tensors.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.pairs, self.tensors)
    }

    /// Where the data begins behind a header of so many bytes, when the file reaches as far as the tensors do.
    pub(super) fn place(&self, header_bytes: u64, file_bytes: u64) -> Result<u64, Fault> {
        let start = header_bytes
            .checked_next_multiple_of(self.alignment)
            .ok_or(Fault::Truncated)?;
        let end = start.checked_add(self.data).ok_or(Fault::Truncated)?;
        match end.checked_sub(file_bytes) {
            Some(missing @ 1..) => Err(Fault::Short(missing)),
            _ => Ok(start),
        }
    }

    /// Goes on to the next pair, part of a long array, or tensor, and keeps it; `false` at the end.
    pub(super) fn step<R: Read + Seek>(
        &mut self,
        source: &mut Source<R>,
        kept: &mut Kept,
    ) -> Result<bool, Fault> {
        self.next = match self.next {
            Next::Pair(index) if index == self.pairs => {
                self.enter_table(source)?;
                Next::Tensor(0)
            }
            Next::Pair(index) => self.pair(index, source, kept)?,
            Next::Texts { pair, left, long } => texts(pair, left, long, source, kept)?,
            Next::Tensor(index) if index == self.tensors => Next::End,
            Next::Tensor(index) => {
                self.data = tensors::pass(index, self.data, self.alignment, source, kept)?;
                Next::Tensor(index + 1)
            }
            Next::End => return Ok(false),
        };
        Ok(true)
    }

    fn enter_table<R: Read + Seek>(&self, source: &Source<R>) -> Result<(), Fault> {
        match self.tensors {
            _ if !self.has_architecture => Err(Fault::NoArchitecture),
            0 => Err(Fault::NoTensors),
            count if count > MOST_TENSORS => Err(Fault::TooMany {
                what: "tensors",
                count,
                most: MOST_TENSORS,
            }),
            count if !source.can_hold(count, LEAST_ENTRY) => Err(Fault::Truncated),
            _ => Ok(()),
        }
    }

    fn pair<R: Read + Seek>(
        &mut self,
        index: u64,
        source: &mut Source<R>,
        kept: &mut Kept,
    ) -> Result<Next, Fault> {
        let key = key(index, source, kept)?;
        let number = source.u32()?;
        if key == "general.alignment" && number != kind::U32 {
            return Err(Fault::Alignment);
        }
        match number {
            kind::STRING => self.text(&key, source, kept)?,
            kind::ARRAY => return self.array(index, key, source, kept),
            kind::F32 | kind::F64 | kind::BOOL => {
                source.skip(width(number).unwrap_or(0) as u64)?;
                kept.other()?;
            }
            _ => {
                let Some(width) = width(number) else {
                    return Err(Fault::ValueType { key, kind: number });
                };
                let value = kept.integer(number, source.next(width)?)?;
                self.mind(&key, value)?;
            }
        }
        Ok(Next::Pair(index + 1))
    }

    /// Numbers that decide how the rest is read, or whether.
    fn mind(&mut self, key: &str, value: i64) -> Result<(), Fault> {
        let value = u64::try_from(value).unwrap_or(0);
        match key {
            "split.count" if value > 1 => return Err(Fault::Split(value)),
            "general.alignment" if value.is_power_of_two() && value >= 8 => self.alignment = value,
            "general.alignment" => return Err(Fault::Alignment),
            _ => {}
        }
        Ok(())
    }

    fn text<R: Read + Seek>(
        &mut self,
        key: &str,
        source: &mut Source<R>,
        kept: &mut Kept,
    ) -> Result<(), Fault> {
        let length = source.u64()?;
        if key == "general.architecture" {
            let nameless = || Fault::BadName("its architecture".into());
            let length = usize::try_from(length).map_err(|_| nameless())?;
            let name = match length {
                0 => return Err(Fault::NoArchitecture),
                1..=LONGEST_ARCHITECTURE => source.next(length)?,
                _ => return Err(nameless()),
            };
            str::from_utf8(name).map_err(|_| nameless())?;
            self.has_architecture = true;
            return kept.short_text(name);
        }
        if length > LONGEST_TEXT || length > self.room {
            source.skip(length)?;
            return kept.other();
        }
        self.room -= length;
        kept.text(length, source)
    }

    fn array<R: Read + Seek>(
        &mut self,
        pair: u64,
        key: String,
        source: &mut Source<R>,
        kept: &mut Kept,
    ) -> Result<Next, Fault> {
        let kind = source.u32()?;
        let count = source.u64()?;
        // An array of arrays is in no file and in no reader: llama.cpp refuses it too.
        let Some(width) = width(kind) else {
            return match kind {
                kind::STRING if source.can_hold(count, 8) => Ok(Next::Texts {
                    pair,
                    left: count,
                    long: Long { count, bytes: 0 },
                }),
                kind::STRING => Err(Fault::Truncated),
                _ => Err(Fault::ValueType { key, kind }),
            };
        };
        let bytes = count.checked_mul(width as u64).ok_or(Fault::Truncated)?;
        let floats = matches!(kind, kind::F32 | kind::F64);
        if floats || count > LONGEST_ARRAY || bytes > self.room {
            source.skip(bytes)?;
            kept.long_array(Long { count, bytes })?;
        } else {
            self.room -= bytes;
            kept.numbers(kind, bytes, source)?;
        }
        Ok(Next::Pair(pair + 1))
    }
}

/// Some more texts of an array; what it was is kept at its end.
fn texts<R: Read + Seek>(
    pair: u64,
    left: u64,
    mut long: Long,
    source: &mut Source<R>,
    kept: &mut Kept,
) -> Result<Next, Fault> {
    let now = left.min(TEXTS_A_STEP);
    for _ in 0..now {
        let length = source.u64()?;
        source.skip(length)?;
        long.bytes += length;
    }
    if now < left {
        let left = left - now;
        return Ok(Next::Texts { pair, left, long });
    }
    kept.long_array(long)?;
    Ok(Next::Pair(pair + 1))
}

/// Keeps the next pair's key; returns what of it may be in a sentence.
fn key<R: Read + Seek>(
    index: u64,
    source: &mut Source<R>,
    kept: &mut Kept,
) -> Result<String, Fault> {
    let nameless = || Fault::BadName(format!("entry {index}"));
    let length = source.u64()?;
    if length == 0 || length > LONGEST_KEY {
        return Err(nameless());
    }
    let key = source.next(usize::try_from(length).map_err(|_| nameless())?)?;
    let text = str::from_utf8(key).map_err(|_| nameless())?;
    kept.key(key)?;
    Ok(shown(text).into())
}
