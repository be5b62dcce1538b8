use super::{Gemm, QkvHead, RowScale, Target, Weights};
use crate::{
    CudaError, Device,
    launch::{Shape, arguments},
    sizes::{SCALE_WARPS, SPLIT_SEGMENTS},
    tensor_map::{SWIZZLE_ALIGNMENT, TensorMap},
};

/// Most rows of x.
pub(super) const ROWS: usize = 64;
/// Clusters that run at once if their blocks have a multiprocessor each, on an H100: the groups that its multiprocessors
/// form do not divide evenly. One more, and some work twice as long.
const CLUSTERS: usize = 31;
/// Columns of k that a block takes at once.
const BLOCK_K: usize = 64;

/// A tile of the product, and the ring of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cluster {
    columns: usize,
    rows: usize,
    stages: usize,
    /// Of a tile.
    blocks: usize,
    pub name: &'static str,
}

const fn tile(columns: usize, rows: usize, stages: usize, name: &'static str) -> Cluster {
    Cluster { columns, rows, stages, blocks: SPLIT_SEGMENTS, name }
}

/// Those of up to 128 columns leave room for two blocks on a multiprocessor.
const LOW: [Cluster; 4] = [
    tile(64, 32, 8, "gemm_cluster_64_32"),
    tile(128, 32, 5, "gemm_cluster_128_32"),
    tile(192, 32, 7, "gemm_cluster_192_32"),
    tile(256, 32, 5, "gemm_cluster_256_32"),
];
const HIGH: [Cluster; 4] = [
    tile(64, 64, 6, "gemm_cluster_64_64"),
    tile(128, 64, 4, "gemm_cluster_128_64"),
    tile(192, 64, 6, "gemm_cluster_192_64"),
    tile(256, 64, 5, "gemm_cluster_256_64"),
];
/// For a half of the rows, beside the attention of the other: tiles of wide products by one block.
const ONE: Cluster = Cluster { blocks: 1, ..tile(128, 32, 5, "gemm_cluster_128_32_one") };
/// Pairs of blocks that make a tile, of few columns.
const PAIRED: [Cluster; 2] = [
    Cluster { blocks: 2, ..tile(64, 32, 16, "gemm_cluster_64_32_two") },
    Cluster { blocks: 2, ..tile(64, 64, 12, "gemm_cluster_64_64_two") },
];
/// Blocks that make a tile alone.
const ALONE: [Cluster; 2] = [
    Cluster { blocks: 1, ..tile(192, 32, 7, "gemm_cluster_192_32_one") },
    Cluster { blocks: 1, ..tile(192, 64, 6, "gemm_cluster_192_64_one") },
];
/// Blocks that nearly fill the GPU, once.
const FULL: std::ops::RangeInclusive<usize> = 100..=132;
/// Columns from which on a product is wide.
const WIDE: usize = 4096;

impl Cluster {
    /// Tiles of as few blocks as fill the GPU at once, else the tile with which a multiprocessor reads least. Many clusters
    /// follow each other where there is room, two blocks at a time.
    pub fn new(m: usize, n: usize) -> Self {
        for kernels in [PAIRED, ALONE] {
            let kernel = kernels[usize::from(m > 32)];
            if FULL.contains(&(kernel.clusters(m, n) * kernel.blocks)) {
                return kernel;
            }
        }
        let tiles = if m <= 32 { LOW } else { HIGH };
        let read = |tile: &Self| tile.clusters(m, n).div_ceil(CLUSTERS) * (tile.columns + tile.rows);
        if tiles[1].clusters(m, n) > 2 * CLUSTERS {
            return tiles[1];
        }
        tiles.into_iter().min_by_key(read).unwrap_or(tiles[1])
    }

    /// The tile of one of two halves of the rows of a step.
    pub fn of_half(m: usize, n: usize) -> Self {
        if m > 32 {
            return Self::new(m, n);
        }
        if n >= WIDE { ONE } else { LOW[1] }
    }

    /// For columns that are heads of so many elements.
    pub fn of_heads(m: usize, head_dim: usize, half: bool) -> Self {
        if half && m <= 32 {
            let kernels = ["gemm_heads_64_32_half", "gemm_heads_128_32_half"];
            return tile(128, 32, 4, kernels[usize::from(head_dim == 128)]);
        }
        let (tile, kernels) = if m <= 32 {
            (LOW[3], ["gemm_heads_64_32", "gemm_heads_128_32"])
        } else {
            (HIGH[3], ["gemm_heads_64_64", "gemm_heads_128_64"])
        };
        Self { name: kernels[usize::from(head_dim == 128)], ..tile }
    }

    fn clusters(&self, m: usize, n: usize) -> usize {
        m.div_ceil(self.rows) * n.div_ceil(self.columns)
    }

    fn shape(&self, m: usize, n: usize) -> Shape {
        // four warps for 64 columns, at least eight; one that copies; some for scales
        let warps = (4 * self.columns / 64).max(8) + 1 + SCALE_WARPS;
        let ring = self.stages * (self.columns + self.rows) * 2 * BLOCK_K;
        let blocks = self.clusters(m, n) * self.blocks;
        Shape::new([blocks as u32, 1, 1], 32 * warps as u32).shared(ring + SWIZZLE_ALIGNMENT)
    }

    fn maps(&self, op: &Gemm<'_>) -> Result<[TensorMap; 2], CudaError> {
        let Weights::Bf16(w) = op.w else {
            return Err(CudaError::Unsupported("clusters over FP8 weights".into()));
        };
        Ok([TensorMap::new(w, [op.n, op.k], self.columns)?, TensorMap::new(op.x, [op.m, op.k], self.rows)?])
    }
}

/// `HeadProduct` of gemm_cluster.cu.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
struct HeadProduct {
    maps: [TensorMap; 2],
    to: crate::ops::qkv::HeadOutput,
}

impl Device {
    pub(super) fn gemm_cluster(&self, op: Gemm<'_>, cluster: Cluster) -> Result<(), CudaError> {
        let Target { address, output, next } = op.output.target()?;
        let [squares, given, eps] = scale_words(op.scale);
        let arguments = arguments![
            address,
            op.m as i32,
            op.n as i32,
            op.k as i32,
            output,
            next.map(|next| next.weight),
            next.map(|next| next.weighed),
            next.map(|next| next.squares),
            squares,
            given,
            eps,
        ];
        // SAFETY: signature of gemm_cluster; lengths checked by `Gemm::check`.
        unsafe { self.launch_mapped(cluster.name, cluster.shape(op.m, op.n), &cluster.maps(&op)?, arguments) }
    }

    pub(super) fn gemm_heads(
        &self,
        op: Gemm<'_>,
        cluster: Cluster,
        heads: QkvHead<'_>,
    ) -> Result<(), CudaError> {
        let product = HeadProduct { maps: cluster.maps(&op)?, to: heads.output()? };
        let [squares, given, eps] = scale_words(op.scale);
        let arguments = arguments![op.m as i32, op.n as i32, op.k as i32, squares, given, eps];
        // SAFETY: signature of gemm_heads; lengths checked by `Gemm::check` and `QkvHead::output`, positions and places are
        // trusted.
        unsafe { self.launch_mapped(cluster.name, cluster.shape(op.m, op.n), &[product], arguments) }
    }
}

/// Addresses of sums of squares and of scales, and eps.
fn scale_words(scale: RowScale<'_>) -> [u64; 3] {
    match scale {
        RowScale::One => [0; 3],
        RowScale::Rms { squares, eps } => [squares.address(), 0, u64::from(eps.to_bits())],
        RowScale::Given(scales) => [0, scales.address(), 0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelFile;

    fn columns(m: usize, n: usize) -> usize {
        Cluster::new(m, n).columns
    }

    #[test]
    fn kernels_are_compiled_with_the_tiles_and_rings_of_their_launches() {
        let source = KernelFile::GemmCluster.source();
        let tiles = [&LOW[..], &HIGH, &[ONE], &PAIRED, &ALONE].concat();
        for Cluster { columns, rows, stages, blocks, name } in tiles {
            let name = name.trim_start_matches("gemm_cluster_");
            let line = format!("\nCLUSTER({name}, {columns}, {rows}, {stages}, {blocks})");
            assert!(source.contains(&line), "no{line}");
        }
        for head_dim in [64, 128] {
            for (rows, half) in [(32, false), (64, false), (32, true)] {
                let Cluster { columns, rows, stages, name, .. } = Cluster::of_heads(rows, head_dim, half);
                let name = name.trim_start_matches("gemm_heads_");
                let line = format!("\nCLUSTER_HEADS({name}, {head_dim}, {columns}, {rows}, {stages})");
                assert!(source.contains(&line), "no{line}");
            }
        }
    }

    #[test]
    fn tiles_are_dealt_to_clusters_that_run_at_once() {
        assert_eq!(columns(64, 1024), 64);
        assert_eq!(columns(64, 3072), 128);
        assert_eq!(columns(64, 6144), 256);
        assert_eq!(columns(64, 30_720), 128);
    }

    #[test]
    fn fewer_blocks_make_a_tile_where_they_fill_the_gpu_at_once() {
        for (m, n, blocks) in [(17, 4096, 2), (64, 4096, 2), (32, 24_576, 1), (64, 24_576, 1), (64, 6144, 4)]
        {
            assert_eq!(Cluster::new(m, n).blocks, blocks, "{m} rows, {n} columns");
        }
    }

    #[test]
    fn wide_products_of_a_half_are_not_split() {
        let blocks = |m: usize, n: usize| Cluster::of_half(m, n).shape(m, n).grid[0];
        assert_eq!(blocks(32, 6144), 48);
        assert_eq!(blocks(20, 1024), 32);
        assert_eq!(Cluster::of_half(40, 1024), Cluster::new(40, 1024));
    }
}
