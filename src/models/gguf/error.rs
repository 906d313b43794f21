//! What can be wrong with a model's file: one sentence each, for the person who gave us the file.

use std::io;
use std::path::PathBuf;

/// A file that can't be used as a model.
#[derive(Debug, thiserror::Error)]
#[error("{} {fault}", path.display())]
pub struct GgufError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a file; completes a sentence that begins with its name.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It is not there, or not for us.
    #[error("can't be opened: {0}")]
    Open(io::Error),
    /// The system fails to read it.
    #[error("can't be read: {0}")]
    Read(io::Error),
    /// A folder.
    #[error("is a directory, not a GGUF file")]
    Directory,
    /// A pipe, a device, a socket.
    #[error("is not a regular file")]
    NotRegular,
    /// Its first bytes are not `GGUF`.
    #[error("is not a GGUF file")]
    NotGguf,
    /// It has no room for those bytes.
    #[error("is too short for a GGUF file")]
    TooShort,
    /// Its numbers are the wrong way round.
    #[error("is a big-endian GGUF file: get the model in the usual, little-endian form")]
    BigEndian,
    /// Older or newer than version 2 and 3.
    #[error(
        "is a GGUF file of version {0}, and only 2 and 3 can be read: get another build of the model"
    )]
    Version(u32),
    /// One of several files.
    #[error(
        "is one of {0} parts of a split model: join them by llama.cpp's `llama-gguf-split --merge`, or get it in one file"
    )]
    Split(u64),
    /// The header stops in the middle.
    #[error(
        "can't be loaded: it ends in the middle of its header, so it is not whole: pull it again"
    )]
    Truncated,
    /// The data stops in the middle.
    #[error("can't be loaded: it is {0} bytes shorter than its tensor table says: pull it again")]
    Short(u64),
    /// More entries than any model has.
    #[error("can't be loaded: its header announces {count} {what}, and {most} are the most")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// The limit.
        most: u64,
    },
    /// A name that can't be one.
    #[error(
        "can't be loaded: the name of {0} is empty, too long or not text, so it is damaged: pull it again"
    )]
    BadName(String),
    /// A key or tensor that is there twice.
    #[error("can't be loaded: {0:?} is in its header twice")]
    Duplicate(String),
    /// A type of value that the format does not have, or an array of arrays.
    #[error(
        "can't be loaded: {key:?} has a value of unknown type {kind}, so it is damaged: pull it again"
    )]
    ValueType {
        /// The entry.
        key: String,
        /// The number of the type.
        kind: u32,
    },
    /// No power of two from 8 up, or not an unsigned 32-bit number.
    #[error("can't be loaded: general.alignment must be a power of two from 8 up")]
    Alignment,
    /// Longer than it was a moment ago.
    #[error("was changed while it was read: try again when nobody writes to it")]
    Changed,
    /// It does not say what model it is.
    #[error("can't be loaded: it does not name its architecture (general.architecture)")]
    NoArchitecture,
    /// A vocabulary, or an empty shell.
    #[error("can't be loaded: it holds no weights")]
    NoTensors,
    /// A tensor that can't be.
    #[error("can't be loaded: tensor {name:?} {problem}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: TensorFault,
    },
}

/// What is wrong with a tensor; completes a sentence that begins with its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorFault {
    /// None, or more than four.
    #[error("has {0} dimensions, and 1 to 4 are possible")]
    Dimensions(u32),
    /// A dimension of zero, or more elements than can be counted.
    #[error("has no elements, or more than can be counted")]
    Elements,
    /// A number that is no type (any more).
    #[error("is of type {0}, which this llama.cpp does not read")]
    Type(u32),
    /// A row that ends in the middle of a block.
    #[error("has rows of {row} elements, which is no multiple of {block}, the block of its type")]
    Block {
        /// Elements of a row.
        row: u64,
        /// Elements of a block.
        block: u64,
    },
    /// It does not begin where the one before it ends.
    #[error("begins at byte {found} of the data instead of {expected}")]
    Offset {
        /// What the table says.
        found: u64,
        /// Where the tensor before it ends.
        expected: u64,
    },
}
