//! Products of many rows by FP8 weights on the tensor cores for FP8: rows of x are quantised.

use formats::fp8::SCALE_BLOCK;

use super::{Gemm, RowScale, Target, Weights, many::Many};
use crate::{
    CudaError, Device, View,
    launch::{Shape, arguments},
    ops::{check, fp8::GROUP},
    sizes::MANY_PART_ROWS,
    tensor_map::TensorMap,
};

/// Parts of the room of an [`Fp8View`](crate::ops::fp8::Fp8View).
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    /// [n, k]
    w: View<'a, u8>,
    /// [k / 128, n / 64, even and odd rows]
    w_scales: View<'a, f32>,
    /// [m, k]
    x: View<'a, u8>,
    /// [k / 128, m]
    x_scales: View<'a, f32>,
}

impl<'a> Codes<'a> {
    /// If the weights are FP8, sizes are such as the kernels take, and all of it fits.
    pub fn of(op: &Gemm<'a>) -> Option<Self> {
        let (Weights::Fp8(w), Gemm { m, n, k, .. }) = (op.w, *op) else { return None };
        if !w.grouped || !n.is_multiple_of(16) || !k.is_multiple_of(SCALE_BLOCK) {
            return None;
        }
        let blocks = k / SCALE_BLOCK;
        let sizes = [n * k, 8 * n.div_ceil(GROUP) * blocks, m * k, 4 * m * blocks];
        // where the copy engine reads from
        let sizes = sizes.map(|size| size.next_multiple_of(16));
        let mut rest: View<'a, u8> = w.room?.cast();
        if rest.len() < sizes.into_iter().sum() {
            return None;
        }
        let [w, w_scales, x, x_scales] = sizes.map(|size| {
            let part = rest.slice(..size);
            rest = rest.slice(size..);
            part
        });
        Some(Self { w, w_scales: w_scales.cast(), x, x_scales: x_scales.cast() })
    }
}

impl Device {
    pub(super) fn gemm_codes(
        &self,
        op: Gemm<'_>,
        many: Many,
        codes: Option<Codes<'_>>,
    ) -> Result<(), CudaError> {
        let Gemm { m, n, k, .. } = op;
        check(matches!(op.scale, RowScale::One), || "scaled rows as codes".into())?;
        let (Weights::Fp8(w), Some(codes)) = (op.w, codes) else {
            return Err(CudaError::Unsupported(format!("codes of {m} rows and weights {n} x {k}")));
        };
        let runs = |rows: usize| rows * k / 16;
        let shape = |rows: usize| Shape::new([runs(rows).div_ceil(256) as u32, 1, 1], 256);
        let arguments =
            arguments![codes.w, codes.w_scales, w.codes, w.scales, runs(n) as u64, n as i32, k as i32];
        // SAFETY: signature of codes_of_weights; lengths checked by `Fp8View::check` and `Codes::of`.
        unsafe { self.launch("codes_of_weights", shape(n), arguments)? };
        let arguments = arguments![codes.x, codes.x_scales, op.x, runs(m) as u64, m as i32, k as i32];
        // SAFETY: signature of codes_of_rows; lengths checked in `gemm` and by `Codes::of`.
        unsafe { self.launch("codes_of_rows", shape(m), arguments)? };

        let Target { output, .. } = op.output.target()?;
        let out = many.stored(&op)?;
        let (w_rows, x_rows) = many.boxes();
        let map = |view, rows, boxes| TensorMap::of_boxes(view, [rows, k], [boxes, SCALE_BLOCK]);
        let maps =
            [map(codes.w, n, w_rows)?, map(codes.x, m, x_rows)?, map(codes.x, m, MANY_PART_ROWS)?, out];
        let shape = many.shape(m, n, self.info().multiprocessors as usize);
        let arguments = arguments![m as i32, n as i32, k as i32, output, codes.x_scales, codes.w_scales];
        // SAFETY: signature of gemm_codes; lengths as above.
        unsafe { self.launch_mapped(many.name, shape, &maps, arguments) }
    }
}
