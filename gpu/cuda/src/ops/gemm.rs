mod cluster;
mod codes;
mod many;
mod plan;
mod stream;
mod wide;

use half::bf16;

use self::{
    codes::Codes,
    plan::{Kernel, Kind, Plan, choose},
};
use super::{NextNorm, QkvHead, Weights, check, check_len};
use crate::{
    CudaError, Device, View,
    blas::BlasOutput,
    sizes::{SPLIT_SEGMENTS, STREAM_ROWS},
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

/// Most rows of any product that does the halves of norms on the way.
pub const FUSED_ROWS: usize = cluster::ROWS;

/// Up to how many rows of x products with up to n columns do the halves of the norms before and behind them.
pub fn fused_rows(n: usize, fp8: bool) -> usize {
    if fp8 || segments(n) == 1 { STREAM_ROWS } else { FUSED_ROWS }
}

/// Into how many runs k is cut: part of the canonical order, so a function of n alone. Weights of few rows have too
/// few of them to keep the memory busy.
fn segments(n: usize) -> usize {
    if n <= 32_768 { SPLIT_SEGMENTS } else { 1 }
}

/// A place that a kernel stores to.
struct Target<'a> {
    address: u64,
    /// `Output` of gemm.cuh.
    output: i32,
    next: Option<NextNorm<'a>>,
}

impl<'a> GemmOutput<'a> {
    fn target(&self) -> Result<Target<'a>, CudaError> {
        let (address, output, next) = match *self {
            Self::Bf16(out) => (out.address(), 0, None),
            Self::F32(out) => (out.address(), 1, None),
            Self::AddF32(out) => (out.address(), 2, None),
            Self::AddNorm { sum, next } => (sum.address(), 2, Some(next)),
            Self::Gate(out) => (out.address(), 3, None),
            Self::Heads(_) => return Err(CudaError::Unsupported("heads of a plain product".into())),
        };
        Ok(Target { address, output, next })
    }
}

impl Gemm<'_> {
    fn check(&self) -> Result<(), CudaError> {
        let Gemm { m, n, k, .. } = *self;
        check(n.is_multiple_of(8) && k.is_multiple_of(8), || format!("a product of n {n} and k {k}"))?;
        check(m > 0 && n > 0 && k > 0, || "an empty product".into())?;
        check_len("x", self.x, m * k)?;
        match self.w {
            Weights::Bf16(w) => check_len("w", w, n * k)?,
            Weights::Fp8(w) => w.check(n, k)?,
        }
        match self.output {
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
        let few = m <= fused_rows(n, matches!(self.w, Weights::Fp8(_)));
        let fits = match self.scale {
            RowScale::One => true,
            RowScale::Rms { squares, .. } => few && squares.len() >= m * k / 8,
            RowScale::Given(scales) => m > STREAM_ROWS && scales.len() >= m,
        };
        check(fits, || format!("a scale of {m} rows"))?;
        check(few || !matches!(self.output, GemmOutput::AddNorm { .. }), || format!("a norm after {m} rows"))
    }
}

impl Device {
    pub fn gemm(&self, op: Gemm<'_>) -> Result<(), CudaError> {
        op.check()?;
        let codes = Codes::of(&op);
        let plan = choose([op.m, op.n, op.k], Kind::of(&op, codes.is_some(), self.blas().is_some()));
        let mut op = op;
        if plan.unpacks
            && let Weights::Fp8(w) = op.w
            && let Some(room) = w.room
        {
            w.unpack(self, room, [op.n, op.k])?;
            op.w = room.into();
        }
        match (plan.kernel, op.output) {
            (Kernel::Heads(cluster), GemmOutput::Heads(heads)) => self.gemm_heads(op, cluster, heads),
            (_, GemmOutput::Heads(heads)) => {
                check_len("qkv", heads.qkv, op.m * op.n)?;
                self.gemm_by(plan, Gemm { output: GemmOutput::Bf16(heads.qkv), ..op }, codes)?;
                self.qkv_head(heads)
            }
            _ => self.gemm_by(plan, op, codes),
        }
    }

    fn gemm_by(&self, plan: Plan, op: Gemm<'_>, codes: Option<Codes<'_>>) -> Result<(), CudaError> {
        // what the launch before writes
        let fresh = plan.unpacks;
        match plan.kernel {
            Kernel::Stream(stream) => self.gemm_stream(op, stream),
            Kernel::Cluster(cluster) | Kernel::Heads(cluster) => self.gemm_cluster(op, cluster),
            Kernel::Wide(wide) => self.gemm_wide(op, wide, fresh),
            Kernel::Many(many) => self.gemm_many(op, many, fresh),
            Kernel::Codes(many) => self.gemm_codes(op, many, codes),
            Kernel::Library => self.gemm_blas(op),
        }
    }

    fn gemm_blas(&self, op: Gemm<'_>) -> Result<(), CudaError> {
        let blas = self.blas().ok_or(CudaError::Missing(crate::Library::CublasLt))?;
        check(matches!(op.scale, RowScale::One), || "scaled rows for the library".into())?;
        let Weights::Bf16(w) = op.w else {
            return Err(CudaError::Unsupported("FP8 weights by the library".into()));
        };
        let output = match op.output {
            GemmOutput::Bf16(out) => BlasOutput::Bf16(out),
            GemmOutput::F32(out) => BlasOutput::F32(out),
            GemmOutput::AddF32(out) | GemmOutput::AddNorm { sum: out, .. } => BlasOutput::AddF32(out),
            GemmOutput::Gate(_) | GemmOutput::Heads(_) => {
                return Err(CudaError::Unsupported("a gate or heads by the library".into()));
            }
        };
        blas.product(self, output, op.x, w, [op.m, op.n, op.k])
    }
}
