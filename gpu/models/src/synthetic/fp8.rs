use formats::{
    DType,
    fp8::{E4M3_MAX, SCALE_BLOCK, e4m3_from_f32},
};
use half::bf16;

use super::Numbers;

/// Type of the scales, as Qwen3's FP8 checkpoints have it.
pub(super) const SCALES: DType = DType::BF16;

/// Bytes of the scales of a matrix.
pub(super) fn scale_bytes(rows: usize, cols: usize) -> usize {
    rows.div_ceil(SCALE_BLOCK) * cols.div_ceil(SCALE_BLOCK) * SCALES.block_bytes()
}

/// A matrix of these numbers, row after row, as FP8, and behind it the scales of its blocks.
pub(super) fn encode(rows: usize, cols: usize, mut numbers: Numbers) -> Vec<u8> {
    let (mut bytes, mut scales) = (Vec::with_capacity(rows * cols), Vec::new());
    for first in (0..rows).step_by(SCALE_BLOCK) {
        let count = SCALE_BLOCK.min(rows - first) * cols;
        let values: Vec<f32> = (0..count).map(|_| numbers.next()).collect();
        let mut largest = vec![0.0f32; cols.div_ceil(SCALE_BLOCK)];
        for (i, value) in values.iter().enumerate() {
            let block = &mut largest[i % cols / SCALE_BLOCK];
            *block = block.max(value.abs());
        }
        let of_blocks: Vec<bf16> = largest.iter().map(|largest| bf16::from_f32(largest / E4M3_MAX)).collect();
        let code =
            |(i, value): (usize, &f32)| e4m3_from_f32(value / of_blocks[i % cols / SCALE_BLOCK].to_f32());
        bytes.extend(values.iter().enumerate().map(code));
        scales.extend(of_blocks.iter().flat_map(|scale| scale.to_le_bytes()));
    }
    bytes.extend(scales);
    bytes
}
