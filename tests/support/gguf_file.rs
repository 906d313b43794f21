//! Writes GGUF files: right ones, and ones that are wrong in a chosen way. Data is zeros, or only announced.

#![allow(dead_code, reason = "each program uses a part of it")]

/// Type numbers of values.
pub(crate) const U16: u32 = 2;
pub(crate) const U32: u32 = 4;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;

/// A file in the making.
#[derive(Clone)]
pub(crate) struct GgufFile {
    pub(crate) version: u32,
    pub(crate) alignment: u64,
    /// Overrides of the announced numbers.
    pub(crate) pairs_announced: Option<u64>,
    pub(crate) tensors_announced: Option<u64>,
    pairs: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
}

/// An entry of the tensor table.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dims: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: u64,
    /// Where it begins, if not where the one before it ends.
    pub(crate) offset: Option<u64>,
}

impl GgufFile {
    pub(crate) fn new(architecture: &str) -> Self {
        let file = Self {
            version: 3,
            alignment: 32,
            pairs_announced: None,
            tensors_announced: None,
            pairs: Vec::new(),
            tensors: Vec::new(),
        };
        file.text("general.architecture", architecture)
    }

    /// A pair of which the value is written as it is.
    pub(crate) fn raw(mut self, key: &[u8], kind: u32, value: &[u8]) -> Self {
        self.pairs.push(
            [
                &(key.len() as u64).to_le_bytes(),
                key,
                &kind.to_le_bytes(),
                value,
            ]
            .concat(),
        );
        self
    }

    pub(crate) fn text(self, key: &str, text: &str) -> Self {
        self.raw(key.as_bytes(), STRING, &string(text.as_bytes()))
    }

    pub(crate) fn u32(self, key: &str, number: u32) -> Self {
        self.raw(key.as_bytes(), U32, &number.to_le_bytes())
    }

    /// An array whose elements are written as they are.
    pub(crate) fn array(self, key: &str, kind: u32, count: u64, elements: &[u8]) -> Self {
        let value = [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements].concat();
        self.raw(key.as_bytes(), ARRAY, &value)
    }

    pub(crate) fn texts(self, key: &str, texts: &[&str]) -> Self {
        let elements: Vec<u8> = texts
            .iter()
            .flat_map(|text| string(text.as_bytes()))
            .collect();
        self.array(key, STRING, texts.len() as u64, &elements)
    }

    /// A tensor of F32, type 0, unless another type and its block are given.
    pub(crate) fn tensor(
        self,
        name: &str,
        dims: &[u64],
        (kind, elements, bytes): (u32, u64, u64),
    ) -> Self {
        let all: u64 = dims.iter().product();
        self.entry(Tensor {
            name: name.into(),
            dims: dims.to_vec(),
            kind,
            bytes: all / elements * bytes,
            offset: None,
        })
    }

    pub(crate) fn entry(mut self, tensor: Tensor) -> Self {
        self.tensors.push(tensor);
        self
    }

    /// The file up to the end of the tensor table, and the length that the whole file has.
    pub(crate) fn header(&self) -> (Vec<u8>, u64) {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        let announced = |number: Option<u64>, count: usize| number.unwrap_or(count as u64);
        bytes.extend(announced(self.tensors_announced, self.tensors.len()).to_le_bytes());
        bytes.extend(announced(self.pairs_announced, self.pairs.len()).to_le_bytes());
        bytes.extend(self.pairs.concat());
        let mut end = 0;
        for tensor in &self.tensors {
            let start = tensor
                .offset
                .unwrap_or(u64::next_multiple_of(end, self.alignment));
            bytes.extend(string(tensor.name.as_bytes()));
            bytes.extend(
                u32::try_from(tensor.dims.len())
                    .expect("few dimensions")
                    .to_le_bytes(),
            );
            bytes.extend(tensor.dims.iter().flat_map(|length| length.to_le_bytes()));
            bytes.extend(tensor.kind.to_le_bytes());
            bytes.extend(start.to_le_bytes());
            end = start.saturating_add(tensor.bytes);
        }
        let data = (bytes.len() as u64).next_multiple_of(self.alignment);
        (bytes, data.saturating_add(end))
    }

    /// The whole file.
    pub(crate) fn whole(&self) -> Vec<u8> {
        let (mut bytes, length) = self.header();
        bytes.resize(usize::try_from(length).expect("a small file"), 0);
        bytes
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// Writes a model file that has everything but a language.
pub(crate) fn write_model(path: &std::path::Path, name: &str) {
    let file = GgufFile::new("gemma3")
        .text("general.name", name)
        .text("general.license", "gemma")
        .u32("general.file_type", 2)
        .u32("gemma3.block_count", 1)
        .u32("gemma3.context_length", 32_768)
        .u32("gemma3.embedding_length", 32)
        .u32("gemma3.feed_forward_length", 32)
        .u32("gemma3.attention.head_count", 1)
        .u32("gemma3.attention.head_count_kv", 1)
        .texts("tokenizer.ggml.tokens", &["a", "b", "c", "d"])
        .tensor("token_embd.weight", &[32, 4], (0, 1, 4))
        .tensor("output_norm.weight", &[32], (0, 1, 4));
    std::fs::write(path, file.whole()).expect("a model file");
}
