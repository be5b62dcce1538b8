//! Reference dequantisation: what each stored value means, one row at a time. Plain and exact, not fast; the
//! executors' kernels are tested against it.

mod blocks256;
mod blocks32;

use half::{bf16, f16};

use crate::{DType, fp8::e4m3_to_f32};

/// Reads a row of `out.len()` elements from its stored bytes.
///
/// # Panics
/// If `row` is not exactly [`DType::row_bytes`]`(out.len())` long.
pub fn dequantise_row(dtype: DType, row: &[u8], out: &mut [f32]) {
    assert_eq!(Some(row.len()), dtype.row_bytes(out.len()), "{dtype} row of {} elements", out.len());
    let blocks = row.chunks_exact(dtype.block_bytes()).zip(out.chunks_exact_mut(dtype.block_len()));
    match dtype {
        DType::F32 => blocks.for_each(|(b, o)| o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        DType::F16 => blocks.for_each(|(b, o)| o[0] = half_at(b, 0)),
        DType::BF16 => blocks.for_each(|(b, o)| o[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        DType::F8E4M3 => blocks.for_each(|(b, o)| o[0] = e4m3_to_f32(b[0])),
        DType::Q8_0 => blocks.for_each(|(b, o)| blocks32::q8_0(b, o)),
        DType::Q4_0 => blocks.for_each(|(b, o)| blocks32::q4_0(b, o)),
        DType::Q4_1 => blocks.for_each(|(b, o)| blocks32::q4_1(b, o)),
        DType::Q5_0 => blocks.for_each(|(b, o)| blocks32::q5_0(b, o)),
        DType::Q5_1 => blocks.for_each(|(b, o)| blocks32::q5_1(b, o)),
        DType::Q4_K => blocks.for_each(|(b, o)| blocks256::q4_k(b, o)),
        DType::Q5_K => blocks.for_each(|(b, o)| blocks256::q5_k(b, o)),
        DType::Q6_K => blocks.for_each(|(b, o)| blocks256::q6_k(b, o)),
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests;
