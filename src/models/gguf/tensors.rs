//! The tensor table: per tensor a name, up to four dimensions, a type and an offset into the data.
//!
//! Layout: a string, dimensions u32, each a u64 (the first is a row's length), type u32, offset u64. The data begins at the
//! next multiple of the alignment. llama.cpp wants each tensor to begin where the one before it ends, rounded up, so that is
//! checked here: tensors can neither overlap nor leave gaps.
//!
//! Kept of each are: length of the name u8, name, dimensions u8, each a u64, type u8, offset u64.

use super::error::{Fault, TensorFault};
use super::kept::{Entry, Kept};
use super::source::Source;
use super::types::TensorType;
use std::io::{Read, Seek};

/// More tensors are refused; models have 100 to 2,000.
pub(super) const MOST_TENSORS: u64 = 65_536;
/// `GGML_MAX_NAME`, of which one byte is for the end.
const LONGEST_NAME: usize = 63;
/// The shortest entry: a name of one letter, one dimension.
pub(super) const LEAST_ENTRY: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// One tensor of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// Such as `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Elements in each direction, the length of a row first; 1 where it has fewer than four.
    pub dims: [u64; 4],
    /// How its numbers are stored.
    pub kind: TensorType,
    /// Its first byte in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl<'a> Tensor<'a> {
    /// As it was kept, in a file whose data begins at byte `data`.
    pub(super) fn kept(entry: Entry<'a>, data: u64) -> Self {
        let mut dims = [1; 4];
        for (to, from) in dims.iter_mut().zip(entry.dims.as_chunks().0) {
            *to = u64::from_le_bytes(*from);
        }
        let kind = TensorType::from_number(entry.kind.into());
        let kind = kind.expect("a type that was known when it was kept");
        Self {
            name: entry.name,
            dims,
            kind,
            offset: data + entry.offset,
            bytes: bytes(dims, kind).unwrap_or(0),
        }
    }

    /// Number of its elements.
    pub fn elements(self) -> u64 {
        // Was checked when it was read.
        self.dims.iter().product()
    }

    /// Bytes of one row.
    pub fn row_bytes(self) -> u64 {
        self.kind.bytes_of(self.dims[0]).unwrap_or(self.bytes)
    }

    /// Its layer, and the rest of its name: `blk.7.attn_q.weight` → 7, `attn_q.weight`.
    pub fn layer(self) -> Option<(u32, &'a str)> {
        let (layer, rest) = self.name.strip_prefix("blk.")?.split_once('.')?;
        Some((layer.parse().ok()?, rest))
    }

    /// Directions in which it has more than one element, at least 1 (`ggml_n_dims`).
    pub fn directions(self) -> usize {
        self.dims
            .iter()
            .rposition(|length| *length > 1)
            .map_or(1, |last| last + 1)
    }
}

/// Passes and keeps the next entry, which has to begin at the next multiple of `alignment` behind the `data` bytes of those before it;
/// returns the bytes of data up to its end.
pub(super) fn pass<R: Read + Seek>(
    index: u64,
    data: u64,
    alignment: u64,
    source: &mut Source<R>,
    kept: &mut Kept,
) -> Result<u64, Fault> {
    let nameless = || Fault::BadName(format!("tensor {index}"));
    let length = usize::try_from(source.u64()?).map_err(|_| nameless())?;
    let mut buffer = [0; LONGEST_NAME];
    if length == 0 || length > LONGEST_NAME {
        return Err(nameless());
    }
    let name = source.next(length)?;
    let buffer = &mut buffer[..length];
    buffer.copy_from_slice(name);
    let name = str::from_utf8(buffer).map_err(|_| nameless())?;
    let shape = Shape::read(name, source)?;
    let bytes = shape.bytes().map_err(|fault| about(name, fault))?;
    let expected = data.checked_next_multiple_of(alignment);
    if expected != Some(shape.offset) {
        let (found, expected) = (shape.offset, expected.unwrap_or(u64::MAX));
        return Err(about(name, TensorFault::Offset { found, expected }));
    }
    kept.tensor()?;
    kept.put(&[u8::try_from(name.len()).unwrap_or(0)])?;
    kept.put(name.as_bytes())?;
    shape.keep(kept)?;
    let end = shape.offset.checked_add(bytes);
    end.ok_or_else(|| about(name, TensorFault::Elements))
}

/// What an entry says behind its name.
struct Shape {
    directions: u32,
    dims: [u64; 4],
    kind: u32,
    offset: u64,
}

impl Shape {
    fn read<R: Read + Seek>(name: &str, source: &mut Source<R>) -> Result<Self, Fault> {
        let directions = source.u32()?;
        if !(1..=4).contains(&directions) {
            return Err(about(name, TensorFault::Dimensions(directions)));
        }
        let mut dims = [1; 4];
        for length in dims.iter_mut().take(directions as usize) {
            *length = source.u64()?;
        }
        Ok(Self {
            directions,
            dims,
            kind: source.u32()?,
            offset: source.u64()?,
        })
    }

    fn bytes(&self) -> Result<u64, TensorFault> {
        let kind = TensorType::from_number(self.kind).ok_or(TensorFault::Type(self.kind))?;
        bytes(self.dims, kind)
    }

    fn keep(&self, kept: &mut Kept) -> Result<(), Fault> {
        // Both have been checked: four directions, and a type that is known, which has a small number.
        kept.put(&[u8::try_from(self.directions).unwrap_or(0)])?;
        for length in &self.dims[..self.directions as usize] {
            kept.put(&length.to_le_bytes())?;
        }
        kept.put(&[u8::try_from(self.kind).unwrap_or(u8::MAX)])?;
        kept.put(&self.offset.to_le_bytes())
    }
}

fn about(name: &str, problem: TensorFault) -> Fault {
    Fault::Tensor {
        name: name.to_owned(),
        problem,
    }
}

fn bytes(dims: [u64; 4], kind: TensorType) -> Result<u64, TensorFault> {
    let elements = dims
        .iter()
        .try_fold(1u64, |product, length| product.checked_mul(*length))
        .filter(|elements| *elements > 0 && i64::try_from(*elements).is_ok())
        .ok_or(TensorFault::Elements)?;
    if !dims[0].is_multiple_of(kind.block_elements()) {
        return Err(TensorFault::Block {
            row: dims[0],
            block: kind.block_elements(),
        });
    }
    kind.bytes_of(elements).ok_or(TensorFault::Elements)
}
