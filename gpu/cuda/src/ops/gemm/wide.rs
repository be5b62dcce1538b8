//! More rows of x than clusters take, and weights in FP8: tiles of the wide kernel, and its launch.

use super::{Gemm, RowScale, Target, Weights, segments};
use crate::{
    CudaError, Device,
    launch::{Shape, arguments},
    sizes::{WIDE_COLUMNS, WIDE_WARPS},
    tensor_map::{SWIZZLE_ALIGNMENT, TensorMap},
};

/// Those that multiply, and one warp that copies.
const THREADS: u32 = 32 * (WIDE_WARPS as u32 + 1);

/// A wide kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wide {
    pub name: &'static str,
    /// Of x, of a tile.
    rows: usize,
    pub cut: Cut,
    /// Of its ring.
    stages: usize,
    fp8: bool,
}

/// What a block does with segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// There is only one.
    Whole,
    /// A cluster of blocks takes one each.
    Split,
    /// It takes them one after another.
    Folded,
}

const fn bf16(name: &'static str, rows: usize, cut: Cut, stages: usize) -> Wide {
    Wide { name, rows, cut, stages, fp8: false }
}

const fn fp8(name: &'static str, rows: usize, cut: Cut, stages: usize) -> Wide {
    Wide { fp8: true, ..bf16(name, rows, cut, stages) }
}

/// Up to 64 rows of bf16 that are cut are left to clusters.
const KERNELS: [Wide; 12] = [
    bf16("gemm_wide_32", 32, Cut::Whole, 5),
    bf16("gemm_wide_64", 64, Cut::Whole, 4),
    bf16("gemm_wide_64_fold", 64, Cut::Folded, 4),
    bf16("gemm_wide_128_fold", 128, Cut::Folded, 6),
    bf16("gemm_wide_128_split", 128, Cut::Split, 3),
    fp8("gemm_wide_32_fp8", 32, Cut::Whole, 8),
    fp8("gemm_wide_64_fp8", 64, Cut::Whole, 6),
    fp8("gemm_wide_64_fold_fp8", 64, Cut::Folded, 10),
    fp8("gemm_wide_128_fold_fp8", 128, Cut::Folded, 8),
    fp8("gemm_wide_32_split_fp8", 32, Cut::Split, 8),
    fp8("gemm_wide_64_split_fp8", 64, Cut::Split, 6),
    fp8("gemm_wide_128_split_fp8", 128, Cut::Split, 8),
];

impl Wide {
    /// # Panics
    /// If there is no such kernel.
    pub fn new(rows: usize, cut: Cut, fp8: bool) -> Self {
        let wanted = |kernel: &Self| (kernel.rows, kernel.cut, kernel.fp8) == (rows, cut, fp8);
        KERNELS.into_iter().find(wanted).expect("a kernel of these rows")
    }

    fn shape(&self, m: usize, n: usize) -> Shape {
        let tiles = m.div_ceil(self.rows) * n.div_ceil(WIDE_COLUMNS);
        let blocks = if self.cut == Cut::Split { tiles * segments(n) } else { tiles };
        let w_bytes = if self.fp8 { WIDE_COLUMNS * 64 } else { WIDE_COLUMNS * 128 };
        let ring = self.stages * (w_bytes + self.rows * 128);
        Shape::new([blocks as u32, 1, 1], THREADS).shared(ring + SWIZZLE_ALIGNMENT)
    }
}

impl Device {
    /// With `fresh` weights they are what the launch before writes.
    pub(super) fn gemm_wide(&self, op: Gemm<'_>, wide: Wide, fresh: bool) -> Result<(), CudaError> {
        let Gemm { m, n, k, .. } = op;
        let Target { address, output, .. } = op.output.target()?;
        let shape = wide.shape(m, n);
        // else it would read weights before the launch before has ended
        let shape = if fresh { shape.alone() } else { shape };
        let (w_map, w_scales) = match op.w {
            Weights::Bf16(w) => (TensorMap::new(w, [n, k], WIDE_COLUMNS)?, None),
            Weights::Fp8(w) => (TensorMap::new(w.codes, [n, k], WIDE_COLUMNS)?, Some(w.scales)),
        };
        let maps = [w_map, TensorMap::new(op.x, [m, k], wide.rows)?];
        let scales = match op.scale {
            RowScale::Given(scales) => Some(scales),
            RowScale::One | RowScale::Rms { .. } => None,
        };
        let arguments =
            arguments![w_scales, address, m as i32, n as i32, k as i32, segments(n) as i32, output, scales,];
        // SAFETY: signature of gemm_wide; lengths checked by `Gemm::check`.
        unsafe { self.launch_mapped(wide.name, shape, &maps, arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelFile;

    #[test]
    fn kernels_are_compiled_with_the_tiles_and_rings_of_their_launches() {
        let source = KernelFile::GemmWide.source();
        for Wide { name, rows, cut, stages, .. } in KERNELS {
            let how = match cut {
                Cut::Whole => "WHOLE",
                Cut::Split => "SPLIT",
                Cut::Folded => "FOLDED",
            };
            let line = format!("\nWIDE({}, {rows}, {stages}, {how}, ", name.trim_start_matches("gemm_wide_"));
            assert!(source.contains(&line), "no{line}");
        }
    }
}
