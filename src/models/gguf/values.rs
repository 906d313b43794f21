//! Types of values, and values as they are asked for.

/// Numbers of the value types.
pub(super) mod kind {
    pub(crate) const U8: u32 = 0;
    pub(crate) const I8: u32 = 1;
    pub(crate) const U16: u32 = 2;
    pub(crate) const I16: u32 = 3;
    pub(crate) const U32: u32 = 4;
    pub(crate) const I32: u32 = 5;
    pub(crate) const F32: u32 = 6;
    pub(crate) const BOOL: u32 = 7;
    pub(crate) const STRING: u32 = 8;
    pub(crate) const ARRAY: u32 = 9;
    pub(crate) const U64: u32 = 10;
    pub(crate) const I64: u32 = 11;
    pub(crate) const F64: u32 = 12;
}

/// Bytes of a value of this type, if it has a fixed width.
pub(super) const fn width(kind: u32) -> Option<usize> {
    match kind {
        kind::U8 | kind::I8 | kind::BOOL => Some(1),
        kind::U16 | kind::I16 => Some(2),
        kind::U32 | kind::I32 | kind::F32 => Some(4),
        kind::U64 | kind::I64 | kind::F64 => Some(8),
        _ => None,
    }
}

/// An array that is not kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct Long {
    pub(super) count: u64,
    /// Of all elements; of texts, their letters.
    pub(super) bytes: u64,
}

/// A value, as it is asked for.
#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    /// Any integer type; a number above 2^63 is taken for 2^63 - 1.
    Integer(i64),
    /// Letters that may not be UTF-8.
    Text(&'a [u8]),
    Numbers(Numbers<'a>),
    Long(Long),
    /// A float, a truth value, a text that is too long.
    Other,
}

/// An array of integers or truth values, at most 4,096.
#[derive(Clone, Copy, Debug)]
pub struct Numbers<'a> {
    pub(super) kind: u32,
    pub(super) bytes: &'a [u8],
}

impl<'a> Numbers<'a> {
    /// All of them, in order.
    pub fn iter(self) -> impl Iterator<Item = i64> + 'a {
        let width = width(self.kind).unwrap_or(1);
        let each = self.bytes.chunks_exact(width);
        each.map(move |bytes| integer(self.kind, bytes))
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.bytes.len() / width(self.kind).unwrap_or(1)
    }

    /// Whether there are none.
    pub fn is_empty(self) -> bool {
        self.bytes.is_empty()
    }

    /// The one at this place.
    pub fn get(self, index: usize) -> Option<i64> {
        self.iter().nth(index)
    }
}

/// A number of this type, which is as wide as `bytes` are long.
pub(super) fn integer(kind: u32, bytes: &[u8]) -> i64 {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let unsigned = u64::from_le_bytes(wide);
    let missing = 64 - 8 * bytes.len();
    match kind {
        kind::I8 | kind::I16 | kind::I32 | kind::I64 => {
            (unsigned << missing).cast_signed() >> missing
        }
        kind::BOOL => (unsigned != 0).into(),
        _ => i64::try_from(unsigned).unwrap_or(i64::MAX),
    }
}
