//! Magic, version, and the metadata: pairs of a key and a typed value.
//!
//! Layout (little-endian): `GGUF`, version u32, tensors u64, pairs u64; then per pair a string (u64 length, bytes), a type
//! u32, and the value; an array is a type u32, a count u64 and its elements. Source: ggml's docs/gguf.md and gguf.cpp.

use super::error::Fault;
use super::source::Source;
use std::io::{Read, Seek};

/// More pairs are refused; models have 20 to 60.
pub(super) const MOST_PAIRS: u64 = 16_384;
/// The format's limit of a key's length.
const LONGEST_KEY: u64 = 65_535;
/// The shortest pair: a key of one letter, a type and a byte.
const LEAST_PAIR: u64 = 8 + 1 + 4 + 1;
/// A longer text is not kept; templates, the longest, have 1 to 100 KiB.
const LONGEST_TEXT: u64 = 1 << 20;
/// Arrays of numbers up to this length are kept: those that have one for each layer. Vocabularies are only walked through.
const LONGEST_ARRAY: u64 = 4096;
/// What is kept of all values together, in bytes.
const MOST_KEPT: u64 = 16 << 20;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Any integer type; a number above 2^63 is taken for 2^63 - 1.
    Integer(i64),
    Text(Box<str>),
    /// A short array of integers or truth values.
    Integers(Box<[i64]>),
    /// An array that is not kept.
    Array {
        count: u64,
        bytes: u64,
    },
    /// A float, a truth value, a text that is too long or not UTF-8.
    Other,
}

/// Number of tensors, and the pairs, sorted by key.
pub(super) struct Header {
    pub(super) tensors: u64,
    pub(super) pairs: Vec<(Box<str>, Value)>,
    pub(super) alignment: u64,
}

pub(super) fn read<R: Read + Seek>(source: &mut Source<R>) -> Result<Header, Fault> {
    let magic = source.array().map_err(|fault| match fault {
        Fault::Truncated => Fault::TooShort,
        other => other,
    })?;
    if &magic != b"GGUF" {
        return Err(Fault::NotGguf);
    }
    match source.u32()? {
        2 | 3 => {}
        version if version != 0 && version.trailing_zeros() >= 16 => return Err(Fault::BigEndian),
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
    let mut reader = Pairs {
        source,
        room: MOST_KEPT,
        alignment: None,
    };
    let mut pairs = Vec::new();
    for index in 0..count {
        pairs.push(reader.pair(index)?);
    }
    let alignment = reader.alignment.unwrap_or(32);
    pairs.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    if let Some(twice) = pairs.windows(2).find(|two| two[0].0 == two[1].0) {
        return Err(Fault::Duplicate(twice[0].0.to_string()));
    }
    Ok(Header {
        tensors,
        pairs,
        alignment,
    })
}

/// Reads pairs, and keeps no more of them than there is room for.
struct Pairs<'a, R> {
    source: &'a mut Source<R>,
    room: u64,
    alignment: Option<u64>,
}

/// Numbers of the value types.
mod kind {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

impl<R: Read + Seek> Pairs<'_, R> {
    fn pair(&mut self, index: u64) -> Result<(Box<str>, Value), Fault> {
        let nameless = || Fault::BadName(format!("entry {index}"));
        let length = self.source.u64()?;
        if length == 0 || length > LONGEST_KEY {
            return Err(nameless());
        }
        let key = String::from_utf8(self.source.bytes(length)?).map_err(|_| nameless())?;
        let kind = self.source.u32()?;
        let value = self.value(&key, kind)?;
        if key == "general.alignment" {
            self.alignment = Some(alignment(kind, &value)?);
        }
        Ok((key.into_boxed_str(), value))
    }

    fn value(&mut self, key: &str, kind: u32) -> Result<Value, Fault> {
        let unknown = |kind| Fault::ValueType {
            key: key.to_owned(),
            kind,
        };
        match kind {
            kind::STRING => self.text(),
            kind::ARRAY => {
                let kind = self.source.u32()?;
                let count = self.source.u64()?;
                // An array of arrays is in no file and in no reader: llama.cpp refuses it too.
                match kind {
                    kind::STRING => self.texts(count),
                    kind::ARRAY => Err(unknown(kind)),
                    _ => self.numbers(kind, count, width(kind).ok_or_else(|| unknown(kind))?),
                }
            }
            kind::F32 | kind::F64 | kind::BOOL => {
                self.source.skip(width(kind).unwrap_or(0))?;
                Ok(Value::Other)
            }
            _ if width(kind).is_some() => self.integer(kind).map(Value::Integer),
            _ => Err(unknown(kind)),
        }
    }

    fn text(&mut self) -> Result<Value, Fault> {
        let length = self.source.u64()?;
        if length > LONGEST_TEXT || length > self.room {
            self.source.skip(length)?;
            return Ok(Value::Other);
        }
        let bytes = self.source.bytes(length)?;
        let Ok(text) = String::from_utf8(bytes) else {
            return Ok(Value::Other);
        };
        self.room -= length;
        Ok(Value::Text(text.into_boxed_str()))
    }

    fn texts(&mut self, count: u64) -> Result<Value, Fault> {
        if !self.source.can_hold(count, 8) {
            return Err(Fault::Truncated);
        }
        let start = self.source.at();
        for _ in 0..count {
            let length = self.source.u64()?;
            self.source.skip(length)?;
        }
        let bytes = self.source.at() - start - 8 * count;
        Ok(Value::Array { count, bytes })
    }

    fn numbers(&mut self, kind: u32, count: u64, width: u64) -> Result<Value, Fault> {
        let bytes = count.checked_mul(width).ok_or(Fault::Truncated)?;
        let kept = count.saturating_mul(8);
        let floats = matches!(kind, kind::F32 | kind::F64);
        if floats
            || count > LONGEST_ARRAY
            || kept > self.room
            || !self.source.can_hold(count, width)
        {
            self.source.skip(bytes)?;
            return Ok(Value::Array { count, bytes });
        }
        self.room -= kept;
        let numbers: Result<_, _> = (0..count).map(|_| self.integer(kind)).collect();
        numbers.map(Value::Integers)
    }

    fn integer(&mut self, kind: u32) -> Result<i64, Fault> {
        Ok(match kind {
            kind::U8 => u8::from_le_bytes(self.source.array()?).into(),
            kind::I8 => i8::from_le_bytes(self.source.array()?).into(),
            kind::BOOL => (u8::from_le_bytes(self.source.array()?) != 0).into(),
            kind::U16 => u16::from_le_bytes(self.source.array()?).into(),
            kind::I16 => i16::from_le_bytes(self.source.array()?).into(),
            kind::U32 => u32::from_le_bytes(self.source.array()?).into(),
            kind::I32 => i32::from_le_bytes(self.source.array()?).into(),
            kind::U64 => {
                i64::try_from(u64::from_le_bytes(self.source.array()?)).unwrap_or(i64::MAX)
            }
            _ => i64::from_le_bytes(self.source.array()?),
        })
    }
}

/// Bytes of a value of this type, if it has a fixed width.
const fn width(kind: u32) -> Option<u64> {
    match kind {
        kind::U8 | kind::I8 | kind::BOOL => Some(1),
        kind::U16 | kind::I16 => Some(2),
        kind::U32 | kind::I32 | kind::F32 => Some(4),
        kind::U64 | kind::I64 | kind::F64 => Some(8),
        _ => None,
    }
}

fn alignment(kind: u32, value: &Value) -> Result<u64, Fault> {
    match value {
        Value::Integer(bytes) if kind == kind::U32 => u64::try_from(*bytes)
            .ok()
            .filter(|bytes| bytes.is_power_of_two() && *bytes >= 8)
            .ok_or(Fault::Alignment),
        _ => Err(Fault::Alignment),
    }
}
