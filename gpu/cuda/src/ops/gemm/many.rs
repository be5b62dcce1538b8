//! Which tile the kernel of many rows takes.

use super::segments;

/// Rows of x that a pair of blocks has at a time.
const PAIR_ROWS: usize = 256;
/// Pairs of blocks that work at once.
const PAIRS: usize = 66;
/// What a tile costs beside its k.
const TILE_NS: usize = 3000;

/// A kernel of many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Many {
    pub name: &'static str,
    /// Columns of a tile.
    pub columns: usize,
    /// Of its ring.
    pub stages: usize,
    /// What 1,024 elements of k of a tile cost, measured on an H100.
    slope_ns: usize,
}

const FOLDED: [Many; 4] = [
    Many { name: "gemm_many_64_fold", columns: 64, stages: 8, slope_ns: 4400 },
    Many { name: "gemm_many_96_fold", columns: 96, stages: 7, slope_ns: 5200 },
    Many { name: "gemm_many_128_fold", columns: 128, stages: 6, slope_ns: 5700 },
    Many { name: "gemm_many_192_fold", columns: 192, stages: 5, slope_ns: 8200 },
];

impl Many {
    pub const THREADS: u32 = 384;
    /// Rows of x that a block has at a time.
    pub const ROWS: usize = PAIR_ROWS / 2;

    /// Takes k as one run.
    pub const WHOLE: Self = Self { name: "gemm_many_192", columns: 192, stages: 5, slope_ns: 7800 };

    /// The kernel that needs the least time, by rounds of tiles over all pairs of blocks.
    pub fn folded(m: usize, n: usize, k: usize) -> Self {
        let cost = |kernel: &Self| {
            kernel.tiles(m, n).div_ceil(PAIRS) * (kernel.slope_ns * k.div_ceil(64) / 16 + TILE_NS)
        };
        *FOLDED.iter().min_by_key(|kernel| cost(kernel)).expect("there are kernels")
    }

    fn tiles(&self, m: usize, n: usize) -> usize {
        m.div_ceil(PAIR_ROWS) * n.div_ceil(self.columns)
    }

    /// Blocks of a launch on a device of so many multiprocessors: pairs.
    pub fn blocks(&self, m: usize, n: usize, multiprocessors: usize) -> usize {
        2 * self.tiles(m, n).min(multiprocessors / 2)
    }

    /// Runs that this kernel cuts k into.
    pub fn segments(&self, n: usize) -> usize {
        if *self == Self::WHOLE { 1 } else { segments(n) }
    }

    pub fn ring_bytes(&self) -> usize {
        self.stages * (Self::ROWS + self.columns) * 128
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
        assert!(too_few(256, 1024) && !too_few(512, 1024) && !too_few(256, 4096));
    }

    #[test]
    fn a_launch_has_no_more_pairs_than_tiles() {
        let kernel = Many::folded(300, 72, 328);
        assert_eq!(kernel.blocks(300, 72, 132), 2 * 2 * 72usize.div_ceil(kernel.columns));
        assert_eq!(Many::folded(8192, 4096, 4096).blocks(8192, 4096, 132), 132);
    }
}
