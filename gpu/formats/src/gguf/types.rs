//! Numbers of the format.

use crate::DType;

pub(super) const MAGIC: [u8; 4] = *b"GGUF";

/// Numbers of the metadata value types.
pub(super) mod value {
    pub const U8: u32 = 0;
    pub const I8: u32 = 1;
    pub const U16: u32 = 2;
    pub const I16: u32 = 3;
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
    pub const U64: u32 = 10;
    pub const I64: u32 = 11;
    pub const F64: u32 = 12;
}

const TENSOR_TYPES: [(DType, u32); 11] = [
    (DType::F32, 0),
    (DType::F16, 1),
    (DType::Q4_0, 2),
    (DType::Q4_1, 3),
    (DType::Q5_0, 6),
    (DType::Q5_1, 7),
    (DType::Q8_0, 8),
    (DType::Q4_K, 12),
    (DType::Q5_K, 13),
    (DType::Q6_K, 14),
    (DType::BF16, 30),
];

pub(super) fn dtype(number: u32) -> Option<DType> {
    TENSOR_TYPES.iter().find(|(_, n)| *n == number).map(|(dtype, _)| *dtype)
}

/// `None`: GGUF has no such type.
pub(super) fn number(dtype: DType) -> Option<u32> {
    TENSOR_TYPES.iter().find(|(d, _)| *d == dtype).map(|(_, number)| *number)
}
