//! Which weights llama.cpp copies into the layout that its kernels like best.
//!
//! Source: `ggml_repack_get_optimal_repack_type` and `supports_op` of ggml-cpu/repack.cpp, and `LLM_TENSOR_INFOS` of
//! llama-arch.cpp for what a tensor is used for, both of the pinned llama.cpp.

use crate::models::gguf::{Gguf, Tensor, TensorType};

/// Tables of which single rows are looked up. They are no matrices to multiply with, and so are never copied.
pub(super) const LOOKED_UP: [&str; 4] = [
    "token_embd.weight",
    "position_embd.weight",
    "token_types.weight",
    "per_layer_token_embd.weight",
];

/// The vector extensions that decide which layouts exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "facts that come singly")]
pub struct Kernels {
    /// x86-64: AVX2.
    pub avx2: bool,
    /// x86-64: AVX-512 F.
    pub avx512: bool,
    /// ARM: dot products of 8-bit integers.
    pub dotprod: bool,
    /// ARM: products of matrices of 8-bit integers.
    pub i8mm: bool,
}

impl Kernels {
    /// Those of the CPU that this program runs on, as far as the build has kernels for them: every x86-64 build of llama.cpp has those
    /// for AVX2, and only a native one those for AVX-512.
    pub fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        let here = Self {
            avx2: std::arch::is_x86_feature_detected!("avx2"),
            avx512: cfg!(target_feature = "avx512f"),
            ..Self::default()
        };
        #[cfg(target_arch = "aarch64")]
        let here = Self {
            dotprod: std::arch::is_aarch64_feature_detected!("dotprod"),
            i8mm: std::arch::is_aarch64_feature_detected!("i8mm"),
            ..Self::default()
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let here = Self::default();
        here
    }

    /// Whether matrices of this type with so many rows have a layout of their own.
    fn repack(self, kind: TensorType, rows: u64) -> bool {
        let arm = self.dotprod || self.i8mm;
        let by = |n: u64| rows.is_multiple_of(n);
        match kind {
            TensorType::Q4_0 => self.avx2 && by(8) || arm && by(4),
            TensorType::Q4_K => (self.avx2 || arm) && by(8),
            TensorType::Q2_K => self.avx512 && by(8),
            TensorType::Q5_K | TensorType::Q6_K => arm && by(8),
            TensorType::IQ4_NL | TensorType::MXFP4 => self.avx2 && by(8) || self.dotprod && by(4),
            TensorType::Q8_0 | TensorType::Q1_0 => arm && by(4),
            _ => false,
        }
    }

    /// The share of the bytes that decoding reads that is in a layout of this CPU's own.
    pub fn laid_out(self, model: &Gguf) -> f64 {
        let (mut laid_out, mut all) = (0_u64, 0_u64);
        for tensor in model.tensors() {
            let bytes = model.bytes_read(tensor);
            all = all.saturating_add(bytes);
            laid_out = laid_out.saturating_add(if self.copies(tensor) { bytes } else { 0 });
        }
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let share = laid_out as f64 / all.max(1) as f64;
        share
    }

    /// Whether llama.cpp computes with a copy of the tensor instead of with the file's own bytes. The token embedding counts as
    /// the output matrix here; its rows are looked up in the file all the same.
    pub(super) fn copies(self, tensor: Tensor<'_>) -> bool {
        let directions = if is_expert(tensor) { 3 } else { 2 };
        tensor.name.ends_with(".weight")
            && tensor.directions() == directions
            && self.repack(tensor.kind, tensor.dims[1])
    }
}

/// Whether a tensor holds one matrix for each expert.
fn is_expert(tensor: Tensor<'_>) -> bool {
    tensor.name.contains("_exps.") || tensor.name.contains("_chexps.")
}

/// How the bytes of a file are used once it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weights {
    /// From the first to the last byte that llama.cpp keeps mapped.
    pub(super) mapped: u64,
    /// Of these, what computing reads.
    pub(super) read: u64,
    /// Copies in other layouts.
    pub(super) repacked: u64,
}

/// Copies lie at multiples of this.
const ALIGNMENT: u64 = 32;

impl Weights {
    pub(super) fn of(model: &Gguf, kernels: Kernels) -> Self {
        let tied = model.is_tied();
        let (mut first, mut last) = (u64::MAX, 0);
        let mut weights = Self::default();
        for tensor in model.tensors() {
            let looked_up = LOOKED_UP.contains(&tensor.name);
            let is_output = tied && tensor.name == "token_embd.weight";
            let copied = (!looked_up || is_output) && kernels.copies(tensor);
            if copied {
                weights.repacked += tensor.bytes.next_multiple_of(ALIGNMENT);
            }
            if !copied || looked_up {
                first = first.min(tensor.offset);
                last = last.max(tensor.offset + tensor.bytes);
            }
            if !copied && (!looked_up || is_output) {
                weights.read += tensor.bytes;
            }
        }
        weights.mapped = last.saturating_sub(first);
        weights
    }
}
