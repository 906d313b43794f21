//! What a GGUF file says about itself: the header, read without llama.cpp and without trust.
//!
//! The file may be cut, damaged or made to hurt. No number in it is believed before it was compared with the file's own
//! length, every loop stays within the bytes that are there, and a file that passes is whole as far as lengths can tell. The weights
//! themselves are not looked at; a digest is for that. Vocabularies are walked through and not kept.
//!
//! Memory: never more than the file is long and 40 KiB: 32 of them are read ahead, the rest is for the path and for what a sentence about a
//! damaged file quotes of it. What is kept lies packed in one piece that is shorter than the header.

mod bites;
#[cfg(test)]
mod cuts;
mod error;
mod kept;
mod source;
mod tensors;
mod types;
mod values;
mod walk;

use crate::engine::ModelInfo;
use bites::InBites;
use kept::Kept;
use source::Source;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use values::Value;
use walk::Walk;

pub use error::{Fault, GgufError, TensorFault};
pub use tensors::Tensor;
pub use types::{TensorType, file_type};
pub use values::Numbers;

/// A file's header.
#[derive(Clone, Debug)]
pub struct Gguf {
    path: PathBuf,
    file_bytes: u64,
    kept: Kept,
    /// Where the data begins.
    data: u64,
}

impl Gguf {
    /// Reads the header of a file and compares it with the file's length.
    pub fn read(path: &Path) -> Result<Self, GgufError> {
        let (file, bytes) = Self::open(path)?;
        Self::parse(file, bytes, path)
    }

    /// The same with breaks in it: for a server whose models answer meanwhile, with threads that need every core they have.
    pub fn read_in_bites(path: &Path) -> Result<Self, GgufError> {
        let (file, bytes) = Self::open(path)?;
        Self::parse(InBites::new(file), bytes, path)
    }

    fn open(path: &Path) -> Result<(File, u64), GgufError> {
        let fail = |fault| GgufError {
            path: path.to_owned(),
            fault,
        };
        let about = fs::metadata(path).map_err(|error| fail(Fault::Open(error)))?;
        if about.is_dir() {
            return Err(fail(Fault::Directory));
        }
        // Opening a pipe would wait for somebody to write into it.
        if !about.is_file() {
            return Err(fail(Fault::NotRegular));
        }
        let file = File::open(path).map_err(|error| fail(Fault::Open(error)))?;
        Ok((file, about.len()))
    }

    /// Reads a header from `reader`, which has `file_bytes` bytes and is called `path` in errors.
    pub fn parse(
        reader: impl Read + Seek,
        file_bytes: u64,
        path: &Path,
    ) -> Result<Self, GgufError> {
        Self::try_parse(reader, file_bytes, path).map_err(|fault| GgufError {
            path: path.to_owned(),
            fault,
        })
    }

    fn try_parse(reader: impl Read + Seek, file_bytes: u64, path: &Path) -> Result<Self, Fault> {
        let mut source = Source::new(reader, 0, file_bytes);
        let mut counted = Kept::counting();
        let walk = Self::walk(&mut source, &mut counted)?;
        walk.place(source.at(), file_bytes)?;
        let (pairs, tensors) = walk.counts();
        let mut kept = Kept::with_room(&counted, pairs, tensors);
        source.rewind()?;
        // Checked again, because somebody may write to the file.
        let walk = Self::walk(&mut source, &mut kept)?;
        let data = walk.place(source.at(), file_bytes)?;
        kept.sort()?;
        Ok(Self {
            path: path.to_owned(),
            file_bytes,
            kept,
            data,
        })
    }

    fn walk<R: Read + Seek>(source: &mut Source<R>, kept: &mut Kept) -> Result<Walk, Fault> {
        let mut walk = Walk::begin(source)?;
        while walk.step(source, kept)? {}
        Ok(walk)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes of memory that are kept: less than the header has.
    pub fn kept_bytes(&self) -> u64 {
        self.kept.heap_bytes() as u64
    }

    /// `general.architecture`, such as `gemma3`; of at most 64 bytes.
    pub fn architecture(&self) -> &str {
        self.text("general.architecture").unwrap_or_default()
    }

    /// All tensors, in the order of the file.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> + Clone {
        let entries = self.kept.tensors();
        entries.map(|entry| Tensor::kept(entry, self.data))
    }

    /// The tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let entry = self.kept.find(name)?;
        Some(Tensor::kept(entry, self.data))
    }

    /// A text, if it is one of at most 1 MiB.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.kept.value(key)? {
            Value::Text(text) => str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// A number of any integer type, if it is not negative.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.kept.value(key)? {
            Value::Integer(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// Integers or truth values (0 and 1), if there are at most 4,096.
    pub fn numbers(&self, key: &str) -> Option<Numbers<'_>> {
        match self.kept.value(key)? {
            Value::Numbers(numbers) => Some(numbers),
            _ => None,
        }
    }

    /// Number of elements of an array of any type.
    pub fn array_len(&self, key: &str) -> Option<u64> {
        match self.kept.value(key)? {
            Value::Numbers(numbers) => Some(numbers.len() as u64),
            Value::Long(long) => Some(long.count),
            _ => None,
        }
    }

    /// Bytes of all elements of an array that is not kept; for texts, their letters.
    pub fn array_bytes(&self, key: &str) -> Option<u64> {
        match self.kept.value(key)? {
            Value::Long(long) => Some(long.bytes),
            _ => None,
        }
    }

    /// A number that belongs to the architecture: `block_count` → `gemma3.block_count`.
    pub fn setting(&self, key: &str) -> Option<u64> {
        self.number(&format!("{}.{key}", self.architecture()))
    }

    /// A number of the architecture that may be given for each layer or once for all.
    pub fn layer_setting(&self, key: &str, layer: u32) -> Option<u64> {
        let key = format!("{}.{key}", self.architecture());
        match self.kept.value(&key)? {
            Value::Integer(number) => u64::try_from(number).ok(),
            Value::Numbers(numbers) => u64::try_from(numbers.get(layer as usize)?).ok(),
            _ => None,
        }
    }

    /// Tokens of the vocabulary.
    pub fn vocab_size(&self) -> u64 {
        let listed = self.array_len("tokenizer.ggml.tokens");
        listed.or_else(|| self.setting("vocab_size")).unwrap_or(0)
    }

    /// The model's own chat template.
    pub fn chat_template(&self) -> Option<&str> {
        self.text("tokenizer.chat_template")
            .filter(|text| !text.is_empty())
    }

    /// What can be told of the model before it is loaded; the rest is left at its default.
    pub fn model_info(&self) -> ModelInfo {
        let text = |key| self.text(key).filter(|text| !text.is_empty());
        let narrow = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        ModelInfo {
            name: text("general.name").map(Into::into),
            architecture: self.architecture().into(),
            licence: text("general.license").map(Into::into),
            quantisation: Some(self.quantisation()),
            size_bytes: self.tensors().map(|tensor| tensor.bytes).sum(),
            parameters: self.parameters(),
            vocab_size: narrow(self.vocab_size()),
            trained_context: narrow(self.setting("context_length").unwrap_or(0)),
            ..ModelInfo::default()
        }
    }

    /// Number of weights.
    pub fn parameters(&self) -> u64 {
        let elements = self.tensors().map(Tensor::elements);
        elements.fold(0, u64::saturating_add)
    }

    /// The name of the file's mix, or of the type that most bytes are of.
    pub fn quantisation(&self) -> String {
        if let Some(number) = self.number("general.file_type") {
            return file_type(number);
        }
        let bytes = |kind: TensorType| -> u64 {
            let same = self.tensors().filter(|tensor| tensor.kind == kind);
            same.map(|tensor| tensor.bytes).sum()
        };
        let most = TensorType::ALL.iter().max_by_key(|kind| bytes(**kind));
        most.map_or("unknown", |kind| kind.name()).into()
    }

    /// Whether the token embedding is the output matrix too, so that it is read whole for every token.
    pub fn is_tied(&self) -> bool {
        self.tensor("output.weight").is_none()
    }

    /// Bytes of weights that decoding one token reads: all of them, but of tables that are only looked up one row, of experts
    /// those in use, and nothing of layers that predict further tokens.
    pub fn bytes_per_decoded_token(&self) -> u64 {
        self.tensors()
            .map(|tensor| self.bytes_read(tensor))
            .fold(0, u64::saturating_add)
    }

    /// Bytes of this tensor that decoding one token reads.
    pub fn bytes_read(&self, tensor: Tensor<'_>) -> u64 {
        match tensor.name {
            "token_embd.weight" if self.is_tied() => return tensor.bytes,
            "token_embd.weight"
            | "position_embd.weight"
            | "token_types.weight"
            | "per_layer_token_embd.weight" => return tensor.row_bytes(),
            _ => {}
        }
        let Some((layer, rest)) = tensor.layer() else {
            return tensor.bytes;
        };
        let layers = self.setting("block_count").unwrap_or(u64::MAX);
        let further = self.setting("nextn_predict_layers").unwrap_or(0);
        if u64::from(layer) >= layers.saturating_sub(further) {
            return 0;
        }
        if !rest.contains("_exps.") {
            return tensor.bytes;
        }
        let all = self.setting("expert_count").unwrap_or(0);
        let used = self
            .layer_setting("expert_used_count", layer)
            .unwrap_or(all);
        match all {
            0 => tensor.bytes,
            all => tensor.bytes / all * used.min(all),
        }
    }
}
