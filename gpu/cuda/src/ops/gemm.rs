mod cluster;
mod many;

use half::bf16;

use self::{cluster::Cluster, many::Many};

use super::{KvView, NextNorm, QkvHead, Weights, check, check_len};
use crate::{
    CudaError, Device, View,
    blas::BlasOutput,
    launch::{Shape, arguments},
    tensor_map::{SWIZZLE_ALIGNMENT, TensorMap},
};

/// Whether a row's result may depend on the number of rows beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum GemmMode {
    /// One order of additions for each weight: every row count gives the same bits.
    #[default]
    BatchInvariant,
    /// The fastest kernel for the row count.
    BatchVariant,
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy)]
pub enum GemmOutput<'a> {
    /// [m, n]
    Bf16(View<'a, bf16>),
    /// [m, n]
    F32(View<'a, f32>),
    /// [m, n], added to what is there.
    AddF32(View<'a, f32>),
    /// The same, and the first half of the norm that follows; at most as many rows as [`fused_rows`].
    AddNorm { sum: View<'a, f32>, next: NextNorm<'a> },
    /// [m, n / 2]: silu(column 2i) * column 2i + 1.
    Gate(View<'a, bf16>),
    /// Queries, keys and values, and what follows them; `qkv` takes the product where that is a launch of its own.
    Heads(QkvHead<'a>),
}

/// What rows of a product are multiplied by: the second half of the norm of `x`.
#[derive(Debug, Clone, Copy)]
pub enum RowScale<'a> {
    /// Nothing.
    One,
    /// 1 / rms of rows whose sums of squares are given, [m, k / 8]; at most as many rows as [`fused_rows`].
    Rms { squares: View<'a, f32>, eps: f32 },
    /// [m]; in the mode [`GemmMode::BatchInvariant`] alone, and for more rows than the streaming kernel takes.
    Given(View<'a, f32>),
}

/// `x[m, k] w[n, k]^T`, accumulated in f32.
#[derive(Debug, Clone, Copy)]
pub struct Gemm<'a> {
    pub output: GemmOutput<'a>,
    pub x: View<'a, bf16>,
    pub w: Weights<'a>,
    pub scale: RowScale<'a>,
    pub m: usize,
    /// A multiple of 8.
    pub n: usize,
    /// A multiple of 8.
    pub k: usize,
    pub mode: GemmMode,
    /// Of one of two halves of the rows of a step, beside the attention of the other.
    pub half: bool,
}

/// Most rows of x that the streaming kernel takes.
const STREAM_ROWS: usize = 16;
/// Most rows of any product that does the halves of norms on the way.
pub const FUSED_ROWS: usize = cluster::ROWS;
/// Warps that the streaming kernel wants in flight, about four a multiprocessor.
const STREAM_WARPS: usize = 528;
const WARPS_PER_BLOCK: usize = 4;
/// Blocks that run at once if three share a multiprocessor, but not if two do; else long rings read faster.
const SHORT_RINGS: std::ops::RangeInclusive<usize> = 265..=396;
/// Columns of a block of the wide kernel.
const WIDE_COLUMNS: usize = 128;
/// From so many rows on FP8 weights are unpacked once, in place of by every block.
const UNPACKED_ROWS: usize = 384;
const WIDE_THREADS: u32 = 288;
/// Blocks of 128 rows from which on they fill the GPU without being split.
const ENOUGH_BLOCKS: usize = 132;
/// Up to this k, blocks of 64 rows that are not split are faster, if they nearly fill the GPU, and once.
const SHORT_K: usize = 3072;
const NARROW_BLOCKS: std::ops::RangeInclusive<usize> = 96..=ENOUGH_BLOCKS;
/// Rows of x from which on pairs of blocks take tiles.
const MANY_ROWS: usize = 129;

/// Up to how many rows of x products with up to n columns do the halves of the norms before and behind them.
pub fn fused_rows(n: usize, fp8: bool) -> usize {
    if fp8 || segments(n) == 1 { STREAM_ROWS } else { FUSED_ROWS }
}

/// Into how many runs k is cut: part of the canonical order, so a function of n alone. Weights of few rows have too
/// few of them to keep the memory busy.
fn segments(n: usize) -> usize {
    if n <= 32_768 { 4 } else { 1 }
}

/// A kernel and its launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// A warp takes `8 * blocks` rows of w over one segment, `token_tiles` times 8 rows of x.
    Stream { blocks: usize, token_tiles: usize },
    /// A cluster of blocks makes a tile, one segment each.
    Cluster(Cluster),
    /// `rows` of x a block.
    Wide { rows: usize, cut: Cut },
    /// Pairs of blocks take tile after tile.
    Many(Many),
}

/// What a block of the wide kernel does with segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// There is only one.
    Whole,
    /// A cluster of blocks takes one each.
    Split,
    /// It takes them one after another.
    Folded,
}

impl Plan {
    /// `half`: as in [`Gemm`].
    fn new(m: usize, n: usize, k: usize, fp8: bool, half: bool) -> Self {
        let segments = segments(n);
        if m <= STREAM_ROWS {
            let enough = |blocks: usize| n / (8 * blocks) * segments >= STREAM_WARPS;
            let token_tiles = m.div_ceil(8);
            // one tile of x leaves room for deep rings, which read faster than wide ones
            let blocks = if token_tiles > 1 && enough(if fp8 { 4 } else { 8 }) {
                4
            } else if enough(2) {
                2
            } else {
                1
            };
            return Self::Stream { blocks, token_tiles };
        }
        if m <= fused_rows(n, fp8) {
            return Self::Cluster(if half { Cluster::of_half(m, n) } else { Cluster::new(m, n) });
        }
        let blocks = |rows: usize| m.div_ceil(rows) * n.div_ceil(WIDE_COLUMNS);
        let (rows, cut) = match m {
            ..=32 => (32, if segments == 1 { Cut::Whole } else { Cut::Split }),
            33..=64 => (64, if segments == 1 { Cut::Whole } else { Cut::Split }),
            MANY_ROWS.. if !fp8 && (segments == 1 || !many::too_few(m, n)) => {
                return Self::Many(Many::folded(m, n, k));
            }
            _ if segments > 1 && k <= SHORT_K && NARROW_BLOCKS.contains(&blocks(64)) => (64, Cut::Folded),
            _ if segments == 1 || blocks(128) > ENOUGH_BLOCKS => (128, Cut::Folded),
            _ => (128, Cut::Split),
        };
        Self::Wide { rows, cut }
    }
}

/// A kernel for bf16 and its like for FP8.
macro_rules! kernels {
    ($name:literal) => {
        [$name, concat!($name, "_fp8")]
    };
}

/// A streaming kernel for a grid of so many blocks, and the bytes of its rings.
fn stream_kernel(
    blocks: usize,
    token_tiles: usize,
    fp8: bool,
    scale_blocks: usize,
    grid: usize,
) -> (&'static str, usize) {
    let (kernels, stages) = match (blocks, token_tiles) {
        (1, 1) => (kernels!("gemm_stream_1_1"), 24),
        (2, 1) if SHORT_RINGS.contains(&grid) && !fp8 => (["gemm_stream_2_1_short"; 2], 12),
        (2, 1) => (kernels!("gemm_stream_2_1"), 16),
        (1, _) => (kernels!("gemm_stream_1_2"), 16),
        (2, _) => (kernels!("gemm_stream_2_2"), 8),
        _ => (kernels!("gemm_stream_4_2"), 8),
    };
    // a slot of codes meets two of x; the scales of 8 rows are 16 bytes
    let warp_bytes = match fp8 {
        false => stages * (blocks + token_tiles) * 512,
        true => 5 * (blocks + 2 * token_tiles) * 512 + scale_blocks * blocks * 16,
    };
    (kernels[usize::from(fp8)], WARPS_PER_BLOCK * warp_bytes)
}

/// Blocks of 128 columns that a segment of k may touch.
fn scale_blocks(k: usize, segments: usize) -> usize {
    (k.div_ceil(64) / segments).div_ceil(2) + 2
}

/// A wide kernel and the stages of its ring.
fn wide_kernel(rows: usize, cut: Cut, fp8: bool) -> (&'static str, usize) {
    let (kernels, stages) = match (rows, cut) {
        (32, Cut::Split) => (["gemm_wide_32_split_fp8"; 2], [8; 2]),
        (32, _) => (kernels!("gemm_wide_32"), [5, 8]),
        (64, Cut::Split) => (["gemm_wide_64_split_fp8"; 2], [6; 2]),
        (64, Cut::Folded) => (kernels!("gemm_wide_64_fold"), [4, 10]),
        (64, Cut::Whole) => (kernels!("gemm_wide_64"), [4, 6]),
        (_, Cut::Split) => (kernels!("gemm_wide_128_split"), [3, 8]),
        (_, _) => (kernels!("gemm_wide_128_fold"), [6, 8]),
    };
    (kernels[usize::from(fp8)], stages[usize::from(fp8)])
}

impl Device {
    pub fn gemm(&self, op: Gemm<'_>) -> Result<(), CudaError> {
        let Gemm { m, n, k, .. } = op;
        check(n.is_multiple_of(8) && k.is_multiple_of(8), || format!("a product of n {n} and k {k}"))?;
        check(m > 0 && n > 0 && k > 0, || "an empty product".into())?;
        check_len("x", op.x, m * k)?;
        match op.w {
            Weights::Bf16(w) => check_len("w", w, n * k)?,
            Weights::Fp8(w) => w.check(n, k)?,
        }
        match op.output {
            GemmOutput::Bf16(out) => check_len("out", out, m * n)?,
            GemmOutput::F32(out) | GemmOutput::AddF32(out) => check_len("out", out, m * n)?,
            GemmOutput::AddNorm { sum, next } => {
                check_len("sum", sum, m * n)?;
                next.check(m, n)?;
            }
            GemmOutput::Gate(out) => check_len("out", out, m * n / 2)?,
            GemmOutput::Heads(heads) => {
                check(heads.width() == n && heads.tokens == m, || format!("heads of {m} rows of {n}"))?;
            }
        }
        let few = m <= fused_rows(n, matches!(op.w, Weights::Fp8(_)));
        let fits = match op.scale {
            RowScale::One => true,
            RowScale::Rms { squares, .. } => few && squares.len() >= m * k / 8,
            RowScale::Given(scales) => m > STREAM_ROWS && scales.len() >= m,
        };
        check(fits, || format!("a scale of {m} rows"))?;
        check(few || !matches!(op.output, GemmOutput::AddNorm { .. }), || format!("a norm after {m} rows"))?;
        if let GemmOutput::Heads(heads) = op.output {
            return self.heads(op, heads);
        }
        if let Weights::Fp8(w) = op.w
            && let Some(room) = w.room.filter(|_| m >= UNPACKED_ROWS)
        {
            w.unpack(self, room, [n, k])?;
            return self.gemm_checked(Gemm { w: room.into(), ..op }, true);
        }
        self.gemm_checked(op, false)
    }

    /// With `fresh` weights they are what the launch before writes.
    fn gemm_checked(&self, op: Gemm<'_>, fresh: bool) -> Result<(), CudaError> {
        let Gemm { m, n, k, .. } = op;
        let plan = match Plan::new(m, n, k, matches!(op.w, Weights::Fp8(_)), op.half) {
            // the copy engine stores rows of multiples of 16 bytes
            Plan::Many(_) if matches!(op.output, GemmOutput::Gate(_)) && !n.is_multiple_of(16) => {
                Plan::Wide { rows: 128, cut: Cut::Folded }
            }
            plan => plan,
        };
        if op.mode == GemmMode::BatchInvariant {
            return self.gemm_plan(op, plan, fresh);
        }
        match (plan, op.output, op.w) {
            // the library would leave the gate to a kernel of its own
            (Plan::Many(_), GemmOutput::Gate(_), _) => {
                self.gemm_plan(op, Plan::Many(Many::whole(m, n, k)), fresh)
            }
            (Plan::Wide { cut: Cut::Split | Cut::Folded, .. } | Plan::Many(_), _, Weights::Bf16(w))
                if !matches!(op.output, GemmOutput::Gate(_)) && self.blas().is_some() =>
            {
                self.gemm_blas(op, w)
            }
            // of the wide kernels those that cut nothing read as fast as the library
            _ => self.gemm_plan(op, plan, fresh),
        }
    }

    /// A product of queries, keys and values: by one launch where the kernel for its rows can do what follows.
    fn heads(&self, op: Gemm<'_>, heads: QkvHead<'_>) -> Result<(), CudaError> {
        let plan = Plan::new(op.m, op.n, op.k, matches!(op.w, Weights::Fp8(_)), op.half);
        if let (Plan::Cluster(_), KvView::Bf16(_)) = (plan, heads.kv.pages) {
            return self.gemm_heads(op, heads);
        }
        self.gemm(Gemm { output: GemmOutput::Bf16(heads.qkv), ..op })?;
        self.qkv_head(heads)
    }

    fn gemm_plan(&self, op: Gemm<'_>, plan: Plan, fresh: bool) -> Result<(), CudaError> {
        let Gemm { m, n, k, .. } = op;
        let (address, output) = match op.output {
            GemmOutput::Bf16(out) => (out.address(), 0),
            GemmOutput::F32(out) => (out.address(), 1),
            GemmOutput::AddF32(out) | GemmOutput::AddNorm { sum: out, .. } => (out.address(), 2),
            GemmOutput::Gate(out) => (out.address(), 3),
            GemmOutput::Heads(_) => return Err(CudaError::Unsupported("heads of a plain product".into())),
        };
        let segments = segments(n);
        let sizes = [m, n, k, segments].map(|size| size as i32);
        let (w, w_scales) = match op.w {
            Weights::Bf16(w) => (w.address(), None),
            Weights::Fp8(w) => (w.codes.address(), Some(w.scales)),
        };
        let fp8 = w_scales.is_some();
        match plan {
            Plan::Stream { blocks, token_tiles } => {
                let rows_per_block = 8 * blocks * WARPS_PER_BLOCK / segments;
                let grid = n.div_ceil(rows_per_block);
                let (kernel, ring) = stream_kernel(blocks, token_tiles, fp8, scale_blocks(k, segments), grid);
                let shape = Shape::new([grid as u32, 1, 1], 32 * WARPS_PER_BLOCK as u32);
                let next = match op.output {
                    GemmOutput::AddNorm { next, .. } => Some(next),
                    _ => None,
                };
                let (squares, eps) = match op.scale {
                    RowScale::Rms { squares, eps } => (Some(squares), eps),
                    _ => (None, 0.0),
                };
                let arguments = arguments![
                    address,
                    op.x,
                    w,
                    w_scales,
                    sizes[0],
                    sizes[1],
                    sizes[2],
                    sizes[3],
                    output,
                    next.map(|next| next.weight),
                    next.map(|next| next.weighed),
                    next.map(|next| next.squares),
                    squares,
                    eps,
                ];
                // SAFETY: signature of gemm_stream; lengths checked in `gemm`.
                unsafe { self.launch(kernel, shape.shared(ring), arguments) }
            }
            Plan::Cluster(cluster) => self.gemm_cluster(op, cluster),
            Plan::Wide { rows, cut } => {
                let (kernel, stages) = wide_kernel(rows, cut, fp8);
                let blocks = m.div_ceil(rows) * n.div_ceil(WIDE_COLUMNS);
                let blocks = if cut == Cut::Split { blocks * segments } else { blocks };
                let columns = if fp8 { WIDE_COLUMNS / 2 } else { WIDE_COLUMNS };
                let ring = stages * (columns + rows) * 128 + SWIZZLE_ALIGNMENT;
                let shape = Shape::new([blocks as u32, 1, 1], WIDE_THREADS).shared(ring);
                // else it would read weights before the launch before has ended
                let shape = if fresh { shape.alone() } else { shape };
                let w_map = match op.w {
                    Weights::Bf16(w) => TensorMap::new(w, [n, k], WIDE_COLUMNS)?,
                    Weights::Fp8(w) => TensorMap::new(w.codes, [n, k], WIDE_COLUMNS)?,
                };
                let maps = [w_map, TensorMap::new(op.x, [m, k], rows)?];
                let scales = match op.scale {
                    RowScale::Given(scales) => Some(scales),
                    _ => None,
                };
                let arguments =
                    arguments![w_scales, address, sizes[0], sizes[1], sizes[2], sizes[3], output, scales];
                // SAFETY: signature of gemm_wide; lengths checked in `gemm`.
                unsafe { self.launch_mapped(kernel, shape, &maps, arguments) }
            }
            Plan::Many(many) => self.gemm_many(op, many, fresh),
        }
    }

    fn gemm_blas(&self, op: Gemm<'_>, w: View<'_, bf16>) -> Result<(), CudaError> {
        let blas = self.blas().ok_or(CudaError::Missing(crate::Library::CublasLt))?;
        check(matches!(op.scale, RowScale::One), || "scaled rows for the library".into())?;
        let sizes = [op.m, op.n, op.k];
        let output = match op.output {
            GemmOutput::Bf16(out) => BlasOutput::Bf16(out),
            GemmOutput::F32(out) => BlasOutput::F32(out),
            GemmOutput::AddF32(out) | GemmOutput::AddNorm { sum: out, .. } => BlasOutput::AddF32(out),
            GemmOutput::Gate(_) | GemmOutput::Heads(_) => {
                return Err(CudaError::Unsupported("a gate or heads by the library".into()));
            }
        };
        blas.product(self, output, op.x, w, sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(m: usize, n: usize, k: usize, fp8: bool) -> Plan {
        Plan::new(m, n, k, fp8, false)
    }

    #[test]
    fn few_rows_stream_and_many_rows_multiply_tiles() {
        assert_eq!(plan(1, 4096, 4096, false), Plan::Stream { blocks: 2, token_tiles: 1 });
        assert_eq!(plan(1, 1024, 4096, false), Plan::Stream { blocks: 1, token_tiles: 1 });
        assert_eq!(plan(8, 24_576, 4096, false), Plan::Stream { blocks: 2, token_tiles: 1 });
        assert_eq!(plan(16, 24_576, 4096, false), Plan::Stream { blocks: 4, token_tiles: 2 });
        assert_eq!(plan(8, 51_200, 5120, true), Plan::Stream { blocks: 2, token_tiles: 1 });
        assert_eq!(plan(16, 5120, 8192, true), Plan::Stream { blocks: 4, token_tiles: 2 });
        assert_eq!(plan(256, 51_200, 5120, true), Plan::Wide { rows: 128, cut: Cut::Folded });
        assert!(matches!(plan(17, 4096, 4096, false), Plan::Cluster(_)));
        assert!(matches!(plan(64, 24_576, 4096, false), Plan::Cluster(_)));
        assert_eq!(plan(17, 4096, 4096, true), Plan::Wide { rows: 32, cut: Cut::Split });
        assert_eq!(plan(64, 151_936, 4096, false), Plan::Wide { rows: 64, cut: Cut::Whole });
        assert_eq!(plan(128, 4096, 4096, false), Plan::Wide { rows: 128, cut: Cut::Split });
        assert_eq!(plan(128, 24_576, 4096, false), Plan::Wide { rows: 128, cut: Cut::Folded });
        assert_eq!(plan(256, 1024, 3072, false), Plan::Wide { rows: 128, cut: Cut::Split });
        assert_eq!(plan(128, 6144, 1024, false), Plan::Wide { rows: 64, cut: Cut::Folded });
        assert!(matches!(plan(256, 4096, 1024, false), Plan::Many(_)));
        assert!(matches!(plan(512, 1024, 3072, false), Plan::Many(_)));
        assert!(matches!(plan(256, 4096, 4096, false), Plan::Many(_)));
        assert!(matches!(plan(256, 151_936, 4096, false), Plan::Many(_)));
    }
}
