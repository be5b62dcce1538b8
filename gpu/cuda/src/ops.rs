//! One operation each: checks that shapes and views agree, chooses the kernel, starts it.
//!
//! Matrices are row-major. `bf16` weights and activations, `f32` residual stream. Ids, lengths and tables on the
//! device are trusted: whoever writes them keeps them in range.

mod attention;
mod elementwise;
mod float32;
mod fp8;
mod gemm;
mod persistent;
mod probe;
mod qkv;
mod sample;

pub use attention::{
    DecodeAttention, DecodeShare, KvPages, KvView, LayerKv, PrefillAttention, decode_tickets, part_stats,
};
pub use elementwise::{CopyPages, Embed, GatherRows, NextNorm, RmsNorm};
pub use float32::{AttentionF32, GateF32, GemmF32, Several};
pub use fp8::{Fp8Matrix, Fp8Rows, Fp8View, Weights};
pub use gemm::{FUSED_ROWS, Gemm, GemmMode, GemmOutput, RowScale, fused_rows};
pub use persistent::{PersistentLayer, PersistentShape, PersistentState, PersistentStep};
pub use probe::FillBf16;
pub use qkv::QkvHead;
pub use sample::{BiasEntry, Drawn, Sample, SampleParams, Score};

use crate::CudaError;
pub use crate::sizes::{MAX_TOP, PERSISTENT_ROWS, PREFILL_ROWS, TILE_KEYS};

/// Fails with a text unless `condition` holds.
fn check(condition: bool, what: impl FnOnce() -> String) -> Result<(), CudaError> {
    if condition { Ok(()) } else { Err(CudaError::Shape(what())) }
}

/// Fails unless a view holds at least `least` elements.
fn check_len<T: crate::Element>(name: &str, view: crate::View<'_, T>, least: usize) -> Result<(), CudaError> {
    check(view.len() >= least, || format!("{name} holds {} elements, {least} are needed", view.len()))
}
