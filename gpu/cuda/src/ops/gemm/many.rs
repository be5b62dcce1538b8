//! Which tile the kernel of many rows takes, and its launch.

use super::{Gemm, GemmOutput, RowScale, Target, Weights, segments};
use crate::{
    CudaError, Device,
    launch::{Shape, arguments},
    sizes::{MANY_BOX_BYTES, MANY_PART_ROWS, MANY_ROWS, MANY_SHARED_BYTES},
    tensor_map::{SWIZZLE_ALIGNMENT, TensorMap},
};

/// Pairs of blocks that work at once.
const PAIRS: usize = 66;
/// What a tile costs beside its k.
const TILE_NS: usize = 3000;

/// What the blocks of a pair share, as in gemm_many.cuh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pair {
    /// Rows of w.
    Stacked,
    /// Rows of x.
    Beside,
}

/// A kernel of many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Many {
    pub name: &'static str,
    pair: Pair,
    /// Columns of a block's tile.
    pub columns: usize,
    /// Takes k as one run.
    whole: bool,
    /// What 1,024 elements of k of a tile cost, measured on an H100.
    slope_ns: usize,
}

const fn folded(name: &'static str, pair: Pair, columns: usize, slope_ns: usize) -> Many {
    Many { name, pair, columns, whole: false, slope_ns }
}

const fn whole(name: &'static str, pair: Pair, columns: usize, slope_ns: usize) -> Many {
    Many { whole: true, ..folded(name, pair, columns, slope_ns) }
}

const FOLDED: [Many; 6] = [
    folded("gemm_many_64_fold", Pair::Stacked, 64, 4400),
    folded("gemm_many_96_fold", Pair::Stacked, 96, 5200),
    folded("gemm_many_128_fold", Pair::Stacked, 128, 5700),
    folded("gemm_many_192_fold", Pair::Stacked, 192, 8200),
    folded("gemm_many_128_fold_beside", Pair::Beside, 128, 5700),
    folded("gemm_many_192_fold_beside", Pair::Beside, 192, 8200),
];
const WHOLE: [Many; 3] = [
    whole("gemm_many_192", Pair::Stacked, 192, 7800),
    whole("gemm_many_256", Pair::Stacked, 256, 10_300),
    whole("gemm_many_192_beside", Pair::Beside, 192, 7800),
];
/// The slope of 192 columns is from gate and up of Qwen3-32B at 2,048 rows; the others are guesses from it.
const CODES: [Many; 5] = [
    whole("gemm_codes_64", Pair::Stacked, 64, 3300),
    whole("gemm_codes_128", Pair::Stacked, 128, 4800),
    whole("gemm_codes_192", Pair::Stacked, 192, 6600),
    whole("gemm_codes_128_beside", Pair::Beside, 128, 4800),
    whole("gemm_codes_192_beside", Pair::Beside, 192, 6600),
];

/// Of each of the two groups of warps that multiply.
const GROUP_ROWS: usize = MANY_ROWS / 2;

impl Many {
    const THREADS: u32 = 384;

    /// Of those that follow the canonical order.
    pub fn folded(m: usize, n: usize, k: usize) -> Self {
        Self::quickest(&FOLDED, m, n, k)
    }

    /// Of those that take k as one run.
    pub fn whole(m: usize, n: usize, k: usize) -> Self {
        Self::quickest(&WHOLE, m, n, k)
    }

    /// Of those over FP8 codes.
    pub fn codes(m: usize, n: usize, k: usize) -> Self {
        Self::quickest(&CODES, m, n, k)
    }

    /// The kernel that needs the least time, by rounds of tiles over all pairs of blocks.
    fn quickest(kernels: &[Self], m: usize, n: usize, k: usize) -> Self {
        let cost = |kernel: &Self| {
            kernel.tiles(m, n).div_ceil(PAIRS) * (kernel.slope_ns * k.div_ceil(64) / 16 + TILE_NS)
        };
        *kernels.iter().min_by_key(|kernel| cost(kernel)).expect("there are kernels")
    }

    /// Tiles of pairs.
    fn tiles(&self, m: usize, n: usize) -> usize {
        let (rows, columns) = match self.pair {
            Pair::Stacked => (2 * MANY_ROWS, self.columns),
            Pair::Beside => (MANY_ROWS, 2 * self.columns),
        };
        m.div_ceil(rows) * n.div_ceil(columns)
    }

    /// Blocks of a launch on a device of so many multiprocessors: pairs.
    fn blocks(&self, m: usize, n: usize, multiprocessors: usize) -> usize {
        2 * self.tiles(m, n).min(multiprocessors / 2)
    }

    /// Runs that this kernel cuts k into.
    fn segments(&self, n: usize) -> usize {
        if self.whole { 1 } else { segments(n) }
    }

    pub fn shape(&self, m: usize, n: usize, multiprocessors: usize) -> Shape {
        let blocks = self.blocks(m, n, multiprocessors);
        Shape::new([blocks as u32, 1, 1], Self::THREADS).shared(MANY_SHARED_BYTES + SWIZZLE_ALIGNMENT)
    }

    /// Rows of w and of x that a box holds: of what a pair shares each block copies one half.
    pub fn boxes(&self) -> (usize, usize) {
        match self.pair {
            Pair::Stacked => (self.columns / 2, MANY_ROWS),
            Pair::Beside => (self.columns, MANY_ROWS / 2),
        }
    }

    /// Of w, of x, and of x where it ends.
    fn maps(&self, op: &Gemm<'_>) -> Result<[TensorMap; 3], CudaError> {
        let Weights::Bf16(w) = op.w else {
            return Err(CudaError::Unsupported("pairs of blocks over FP8 weights".into()));
        };
        let (w_rows, x_rows) = self.boxes();
        let x = |rows| TensorMap::new(op.x, [op.m, op.k], rows);
        Ok([TensorMap::new(w, [op.n, op.k], w_rows)?, x(x_rows)?, x(MANY_PART_ROWS)?])
    }

    /// Where what becomes of a product is stored.
    pub fn stored(&self, op: &Gemm<'_>) -> Result<TensorMap, CudaError> {
        let Gemm { m, n, .. } = *op;
        let boxes = |column_bytes| [GROUP_ROWS, self.stored_columns(column_bytes)];
        match op.output {
            GemmOutput::Bf16(out) => TensorMap::of_boxes(out, [m, n], boxes(2)),
            GemmOutput::F32(out) | GemmOutput::AddF32(out) | GemmOutput::AddNorm { sum: out, .. } => {
                TensorMap::of_boxes(out, [m, n], boxes(4))
            }
            // a pair of columns becomes two bytes
            GemmOutput::Gate(out) => {
                let [rows, columns] = boxes(1);
                TensorMap::of_boxes(out, [m, n / 2], [rows, columns / 2])
            }
            GemmOutput::Heads(_) => Err(CudaError::Unsupported("heads in boxes".into())),
        }
    }

    /// Columns of the product that are stored at once, where they become so many bytes each: as many as divide a tile and
    /// fit into a row of a box.
    fn stored_columns(&self, column_bytes: usize) -> usize {
        let most = MANY_BOX_BYTES / GROUP_ROWS / column_bytes;
        (0..)
            .map(|halvings| most >> halvings)
            .find(|columns| self.columns.is_multiple_of(*columns))
            .unwrap_or(1)
    }
}

impl Device {
    /// With `fresh` weights they are what the launch before writes.
    pub(super) fn gemm_many(&self, op: Gemm<'_>, many: Many, fresh: bool) -> Result<(), CudaError> {
        let Gemm { m, n, k, .. } = op;
        let Target { output, .. } = op.output.target()?;
        let out = many.stored(&op)?;
        let [w, x, x_end] = many.maps(&op)?;
        let shape = many.shape(m, n, self.info().multiprocessors as usize);
        let shape = if fresh { shape.alone() } else { shape };
        let scales = match op.scale {
            RowScale::Given(scales) => Some(scales),
            _ => None,
        };
        let arguments = arguments![m as i32, n as i32, k as i32, many.segments(n) as i32, output, scales];
        // SAFETY: signature of gemm_many; lengths checked by `Gemm::check`.
        unsafe { self.launch_mapped(many.name, shape, &[w, x, x_end, out], arguments) }
    }
}

/// Whether so few rows are better off with a cluster of blocks for each tile: the narrowest tiles leave two thirds of the
/// GPU idle.
pub(super) fn too_few(m: usize, n: usize) -> bool {
    FOLDED[0].tiles(m, n) < PAIRS / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_as_wide_as_fills_the_gpu() {
        assert_eq!(Many::folded(256, 4096, 4096).columns, 64);
        assert_eq!(Many::folded(256, 6144, 4096).columns, 96);
        assert_eq!(Many::folded(1024, 4096, 12_288).columns, 128);
        assert_eq!(Many::folded(1024, 24_576, 4096).columns, 192);
        assert_eq!(Many::whole(256, 24_576, 4096).columns, 192);
        assert_eq!(Many::whole(8192, 24_576, 4096).columns, 256);
        assert_eq!(Many::folded(320, 24_576, 4096).pair, Pair::Beside);
        assert_eq!(Many::whole(320, 24_576, 4096).pair, Pair::Beside);
        assert_eq!(Many::folded(512, 24_576, 4096).pair, Pair::Stacked);
        assert!(too_few(256, 1024) && !too_few(512, 1024) && !too_few(256, 4096));
    }

    #[test]
    fn what_is_stored_at_once_divides_a_tile() {
        let columns = |kernel: &Many| [1, 2, 4].map(|bytes| kernel.stored_columns(bytes));
        assert_eq!(columns(&FOLDED[1]), [32, 32, 32]);
        assert_eq!(columns(&FOLDED[3]), [64, 64, 32]);
        assert_eq!(columns(&WHOLE[1]), [128, 64, 32]);
    }

    #[test]
    fn a_launch_has_no_more_pairs_than_tiles() {
        let kernel = Many::folded(300, 72, 328);
        assert_eq!(kernel.blocks(300, 72, 132), 2 * 2 * 72usize.div_ceil(kernel.columns));
        assert_eq!(Many::folded(8192, 4096, 4096).blocks(8192, 4096, 132), 132);
    }
}
