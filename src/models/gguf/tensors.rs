//! The tensor table: per tensor a name, up to four dimensions, a type and an offset into the data.
//!
//! Layout: a string, dimensions u32, each a u64 (the first is a row's length), type u32, offset u64. The data begins at the
//! next multiple of the alignment. llama.cpp wants each tensor to begin where the one before it ends, rounded up, so that is
//! checked here: tensors can neither overlap nor leave gaps.

use super::error::{Fault, TensorFault};
use super::source::Source;
use super::types::TensorType;
use std::io::{Read, Seek};

/// More tensors are refused; models have 100 to 2,000.
pub(super) const MOST_TENSORS: u64 = 65_536;
/// `GGML_MAX_NAME`, of which one byte is for the end.
const LONGEST_NAME: u64 = 63;
/// The shortest entry: a name of one letter, one dimension.
const LEAST_ENTRY: u64 = 8 + 1 + 4 + 8 + 4 + 8;

/// One tensor of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Such as `blk.0.attn_q.weight`.
    pub name: Box<str>,
    /// Elements in each direction, the length of a row first; 1 where it has fewer than four.
    pub dims: [u64; 4],
    /// How its numbers are stored.
    pub kind: TensorType,
    /// Its first byte in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Tensor {
    /// Number of its elements.
    pub fn elements(&self) -> u64 {
        // Was checked when it was read.
        self.dims.iter().product()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        self.kind.bytes_of(self.dims[0]).unwrap_or(self.bytes)
    }

    /// Its layer, and the rest of its name: `blk.7.attn_q.weight` → 7, `attn_q.weight`.
    pub fn layer(&self) -> Option<(u32, &str)> {
        let (layer, rest) = self.name.strip_prefix("blk.")?.split_once('.')?;
        Some((layer.parse().ok()?, rest))
    }

    /// Directions in which it has more than one element, at least 1 (`ggml_n_dims`).
    pub fn directions(&self) -> usize {
        self.dims
            .iter()
            .rposition(|length| *length > 1)
            .map_or(1, |last| last + 1)
    }
}

/// Reads `count` entries and compares them with a file of `file_bytes`.
pub(super) fn read<R: Read + Seek>(
    source: &mut Source<R>,
    count: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<Vec<Tensor>, Fault> {
    if count == 0 {
        return Err(Fault::NoTensors);
    }
    if count > MOST_TENSORS {
        return Err(Fault::TooMany {
            what: "tensors",
            count,
            most: MOST_TENSORS,
        });
    }
    if !source.can_hold(count, LEAST_ENTRY) {
        return Err(Fault::Truncated);
    }
    let mut tensors = Vec::new();
    let mut next = 0;
    for index in 0..count {
        let tensor = entry(source, index, next)?;
        next = tensor
            .offset
            .checked_add(tensor.bytes)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or_else(|| about(&tensor.name, TensorFault::Elements))?;
        tensors.push(tensor);
    }
    refuse_duplicates(&tensors)?;
    place(&mut tensors, source.at(), alignment, file_bytes)?;
    Ok(tensors)
}

/// The next entry, which has to begin at byte `expected` of the data.
fn entry<R: Read + Seek>(
    source: &mut Source<R>,
    index: u64,
    expected: u64,
) -> Result<Tensor, Fault> {
    let nameless = || Fault::BadName(format!("tensor {index}"));
    let length = source.u64()?;
    if length == 0 || length > LONGEST_NAME {
        return Err(nameless());
    }
    let name = String::from_utf8(source.bytes(length)?).map_err(|_| nameless())?;
    let directions = source.u32()?;
    if !(1..=4).contains(&directions) {
        return Err(about(&name, TensorFault::Dimensions(directions)));
    }
    let mut dims = [1; 4];
    for length in dims.iter_mut().take(directions as usize) {
        *length = source.u64()?;
    }
    let number = source.u32()?;
    let offset = source.u64()?;
    let kind =
        TensorType::from_number(number).ok_or_else(|| about(&name, TensorFault::Type(number)))?;
    let bytes = bytes(dims, kind).map_err(|fault| about(&name, fault))?;
    if offset != expected {
        let found = offset;
        return Err(about(&name, TensorFault::Offset { found, expected }));
    }
    Ok(Tensor {
        name: name.into_boxed_str(),
        dims,
        kind,
        offset,
        bytes,
    })
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

fn refuse_duplicates(tensors: &[Tensor]) -> Result<(), Fault> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| &*tensor.name).collect();
    names.sort_unstable();
    match names.windows(2).find(|two| two[0] == two[1]) {
        Some(twice) => Err(Fault::Duplicate(twice[0].to_owned())),
        None => Ok(()),
    }
}

/// Turns offsets into the data to offsets into the file, when the file reaches so far.
fn place(
    tensors: &mut [Tensor],
    header_bytes: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<(), Fault> {
    let start = header_bytes
        .checked_next_multiple_of(alignment)
        .ok_or(Fault::Truncated)?;
    let length = tensors
        .last()
        .map_or(0, |tensor| tensor.offset + tensor.bytes);
    let end = start.checked_add(length).ok_or(Fault::Truncated)?;
    if let Some(missing @ 1..) = end.checked_sub(file_bytes) {
        return Err(Fault::Short(missing));
    }
    for tensor in tensors {
        tensor.offset += start;
    }
    Ok(())
}
