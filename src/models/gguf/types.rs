//! Names and sizes of what tensors are made of, and names of whole files' quantisations.
//!
//! Source: `enum ggml_type` (ggml.h), `type_traits` (ggml.c), the block structures of ggml-common.h, and `enum llama_ftype`
//! (llama.h) of the pinned llama.cpp.

macro_rules! types {
    ($($variant:ident = $number:literal, $name:literal, $elements:literal, $bytes:literal;)*) => {
        /// How a tensor's numbers are stored: in blocks of so many elements, each so many bytes long.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(non_camel_case_types, missing_docs, reason = "the names that ggml gives them")]
        pub enum TensorType {
            $($variant),*
        }

        impl TensorType {
            /// All that llama.cpp can read.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The type with this number in a file's tensor table.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Its name, such as `Q4_K`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name),*
                }
            }

            /// Elements of a block.
            pub const fn block_elements(self) -> u64 {
                match self {
                    $(Self::$variant => $elements),*
                }
            }

            /// Bytes of a block.
            pub const fn block_bytes(self) -> u64 {
                match self {
                    $(Self::$variant => $bytes),*
                }
            }
        }
    };
}

types! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q8_1 = 9, "Q8_1", 32, 36;
    Q2_K = 10, "Q2_K", 256, 84;
    Q3_K = 11, "Q3_K", 256, 110;
    Q4_K = 12, "Q4_K", 256, 144;
    Q5_K = 13, "Q5_K", 256, 176;
    Q6_K = 14, "Q6_K", 256, 210;
    Q8_K = 15, "Q8_K", 256, 292;
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    IQ1_S = 19, "IQ1_S", 256, 50;
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    IQ3_S = 21, "IQ3_S", 256, 110;
    IQ2_S = 22, "IQ2_S", 256, 82;
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    I8 = 24, "I8", 1, 1;
    I16 = 25, "I16", 1, 2;
    I32 = 26, "I32", 1, 4;
    I64 = 27, "I64", 1, 8;
    F64 = 28, "F64", 1, 8;
    IQ1_M = 29, "IQ1_M", 256, 56;
    BF16 = 30, "BF16", 1, 2;
    TQ1_0 = 34, "TQ1_0", 256, 54;
    TQ2_0 = 35, "TQ2_0", 256, 66;
    MXFP4 = 39, "MXFP4", 32, 17;
    NVFP4 = 40, "NVFP4", 64, 36;
    Q1_0 = 41, "Q1_0", 128, 18;
    Q2_0 = 42, "Q2_0", 64, 18;
}

impl TensorType {
    /// Bytes of `elements` numbers, or `None` where they fill no whole number of blocks or the sum overflows.
    pub const fn bytes_of(self, elements: u64) -> Option<u64> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// Whether it stores fewer bits than a 16-bit float.
    pub const fn is_quantised(self) -> bool {
        self.block_elements() > 1
    }
}

/// The name of a `general.file_type`.
pub fn file_type(number: u64) -> String {
    let name = match number {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        39 => "NVFP4",
        40 => "Q1_0",
        41 => "Q2_0",
        other => return format!("file type {other}"),
    };
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_have_a_size() {
        assert_eq!(TensorType::Q4_0.bytes_of(64), Some(36));
        assert_eq!(TensorType::Q4_0.bytes_of(65), None);
        assert_eq!(TensorType::Q6_K.bytes_of(256), Some(210));
        assert_eq!(TensorType::F64.bytes_of(u64::MAX), None, "no overflow");
    }

    #[test]
    fn numbers_and_types_are_one_to_one() {
        let found: Vec<_> = (0..1000).filter_map(TensorType::from_number).collect();
        assert_eq!(found, TensorType::ALL);
    }
}
