//! Products by the weights of Qwen3-32B in FP8, hundreds of rows of x.

use cuda::{
    CudaError,
    ops::{Fp8Matrix, Gemm, GemmMode, GemmOutput, RowScale, Weights},
};
use half::bf16;

use super::Bench;

const LAUNCHES: usize = 6;
/// name, n, k
const PRODUCTS: [(&str, usize, usize); 4] = [
    ("qkv", 10_240, 5120),
    ("o, added", 5120, 8192),
    ("gate up, gated", 51_200, 5120),
    ("down, added", 5120, 25_600),
];
const ROWS: [usize; 6] = [128, 256, 384, 512, 1024, 2048];

impl Bench<'_> {
    pub(super) fn fp8(&self) -> Result<(), CudaError> {
        let most = ROWS[ROWS.len() - 1];
        for (name, n, k) in PRODUCTS {
            let matrix = Fp8Matrix::new(self.device, n, k)?;
            matrix.quantise(self.device, self.random(n * k, 0.05)?.view())?;
            let room = self.device.allocate::<bf16>(n * k + most * k)?;
            let w = Weights::Fp8(matrix.view().with_room(Some(room.view())));
            let x = self.random(most * k, 1.0)?;
            let out = self.device.allocate::<f32>(most * n)?;
            self.device.fill_bytes(out.view(), 0)?;
            let output = match name {
                "qkv" => GemmOutput::Bf16(out.view().cast()),
                "gate up, gated" => GemmOutput::Gate(out.view().cast()),
                _ => GemmOutput::AddF32(out.view()),
            };
            for m in ROWS {
                for (label, mode) in [("fp8", GemmMode::BatchInvariant), ("fp8 both", GemmMode::BatchVariant)]
                {
                    let (x, scale) = (x.view(), RowScale::One);
                    let op = Gemm { output, x, w, scale, m, n, k, mode, half: false };
                    let seconds = self.time(LAUNCHES, |_| self.device.gemm(op))?;
                    let operations = 2.0 * (m * n * k) as f64;
                    self.line(
                        "Qwen3-32B",
                        &format!("{name}, {label}"),
                        m,
                        seconds,
                        matrix.bytes() as f64,
                        operations,
                    );
                }
            }
        }
        Ok(())
    }
}
