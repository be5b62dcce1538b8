//! Up to 16 rows of x: the rings of the streaming kernel, and its launch.

use super::{Gemm, RowScale, Target, Weights, segments};
use crate::{
    CudaError, Device,
    launch::{Shape, arguments},
    sizes::STREAM_WARPS,
};

/// Blocks that run at once if three share a multiprocessor, but not if two do; else long rings read faster.
const SHORT_RINGS: std::ops::RangeInclusive<usize> = 265..=396;

/// A streaming kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    pub name: &'static str,
    /// Times 8 rows of w, which a warp takes over one segment.
    blocks: usize,
    /// Times 8 rows of x.
    token_tiles: usize,
    /// Of a warp's ring.
    stages: usize,
    fp8: bool,
}

const fn bf16(name: &'static str, blocks: usize, token_tiles: usize, stages: usize) -> Stream {
    Stream { name, blocks, token_tiles, stages, fp8: false }
}

const fn fp8(name: &'static str, blocks: usize, token_tiles: usize) -> Stream {
    Stream { name, blocks, token_tiles, stages: 5, fp8: true }
}

const BF16: [Stream; 5] = [
    bf16("gemm_stream_1_1", 1, 1, 24),
    bf16("gemm_stream_2_1", 2, 1, 16),
    bf16("gemm_stream_1_2", 1, 2, 16),
    bf16("gemm_stream_2_2", 2, 2, 8),
    bf16("gemm_stream_4_2", 4, 2, 8),
];
const SHORT: Stream = bf16("gemm_stream_2_1_short", 2, 1, 12);
const FP8: [Stream; 5] = [
    fp8("gemm_stream_1_1_fp8", 1, 1),
    fp8("gemm_stream_2_1_fp8", 2, 1),
    fp8("gemm_stream_1_2_fp8", 1, 2),
    fp8("gemm_stream_2_2_fp8", 2, 2),
    fp8("gemm_stream_4_2_fp8", 4, 2),
];

impl Stream {
    /// For n rows of w, of which a warp takes `8 * blocks`.
    ///
    /// # Panics
    /// If there is no kernel of these sizes.
    pub fn new(blocks: usize, token_tiles: usize, n: usize, fp8: bool) -> Self {
        let kernels = if fp8 { FP8 } else { BF16 };
        let found = kernels.into_iter().find(|one| (one.blocks, one.token_tiles) == (blocks, token_tiles));
        let kernel = found.expect("a kernel for one or two tiles of x");
        let short = (SHORT.blocks, SHORT.token_tiles) == (blocks, token_tiles) && !fp8;
        if short && SHORT_RINGS.contains(&kernel.grid(n)) { SHORT } else { kernel }
    }

    fn grid(&self, n: usize) -> usize {
        n.div_ceil(8 * self.blocks * STREAM_WARPS / segments(n))
    }

    fn shape(&self, n: usize, k: usize) -> Shape {
        // a slot of codes meets two of x; the scales of 8 rows are 16 bytes
        let (parts, scales) =
            if self.fp8 { (2, scale_blocks(k, segments(n)) * self.blocks * 16) } else { (1, 0) };
        let ring = self.stages * (self.blocks + parts * self.token_tiles) * 512;
        let shape = Shape::new([self.grid(n) as u32, 1, 1], 32 * STREAM_WARPS as u32);
        shape.shared(STREAM_WARPS * (ring + scales))
    }
}

/// Blocks of 128 columns that a segment of k may touch.
fn scale_blocks(k: usize, segments: usize) -> usize {
    (k.div_ceil(64) / segments).div_ceil(2) + 2
}

impl Device {
    pub(super) fn gemm_stream(&self, op: Gemm<'_>, stream: Stream) -> Result<(), CudaError> {
        let Gemm { m, n, k, .. } = op;
        let Target { address, output, next } = op.output.target()?;
        let (w, w_scales) = match op.w {
            Weights::Bf16(w) => (w.address(), None),
            Weights::Fp8(w) => (w.codes.address(), Some(w.scales)),
        };
        let (squares, eps) = match op.scale {
            RowScale::Rms { squares, eps } => (Some(squares), eps),
            RowScale::One | RowScale::Given(_) => (None, 0.0),
        };
        let arguments = arguments![
            address,
            op.x,
            w,
            w_scales,
            m as i32,
            n as i32,
            k as i32,
            segments(n) as i32,
            output,
            next.map(|next| next.weight),
            next.map(|next| next.weighed),
            next.map(|next| next.squares),
            squares,
            eps,
        ];
        // SAFETY: signature of gemm_stream; lengths checked by `Gemm::check`.
        unsafe { self.launch(stream.name, stream.shape(n, k), arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KernelFile;

    #[test]
    fn kernels_are_compiled_with_the_tiles_and_rings_of_their_launches() {
        let source = KernelFile::Gemm.source();
        let line = |Stream { blocks, token_tiles, stages, .. }| format!("{blocks}, {token_tiles}, {stages}");
        for kernel in BF16 {
            assert!(source.contains(&format!("\nSTREAM({})", line(kernel))), "{kernel:?}");
        }
        assert!(source.contains(&format!("\nSTREAM_OF(2_1_short, {}, ", line(SHORT))));
        for Stream { stages, .. } in FP8 {
            assert!(source.contains(&format!("_fp8, R, TILES, {stages}, Fp8Weights)")));
        }
    }
}
