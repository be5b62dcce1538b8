use cuda::{Buffer, Device, Element};
use half::bf16;

use crate::harness::{Failure, ensure};

/// ‖out − reference‖ / ‖reference‖; NaN if anything is.
pub fn relative_error(out: impl IntoIterator<Item = f64>, reference: &[f64]) -> f64 {
    let (mut error, mut norm, mut count) = (0.0, 0.0, 0);
    for (out, reference) in out.into_iter().zip(reference) {
        error += (out - reference).powi(2);
        norm += reference.powi(2);
        count += 1;
    }
    assert_eq!(count, reference.len(), "as many outputs as references");
    (error / norm).sqrt()
}

pub fn wide(values: &[bf16]) -> impl Iterator<Item = f64> {
    values.iter().map(|value| f64::from(value.to_f32()))
}

/// Bound of an operation with bf16 results: a rounding is 2^-9 at most, an operand's likewise.
pub const BF16_BOUND: f64 = 4e-3;
/// Bound of an operation with f32 results of bf16 operands, products exact.
pub const F32_BOUND: f64 = 1e-5;

/// Fails if the error is above the bound or NaN.
pub fn bound(what: &str, error: f64, bound: f64) -> Result<(), Failure> {
    ensure(error <= bound, || format!("{what}: relative error {error:.2e} > {bound:.0e}"))
}

/// Fails unless both hold the same bits.
pub fn same_bits<T: Element>(what: &str, a: &[T], b: &[T]) -> Result<(), Failure> {
    let (a, b): (&[u8], &[u8]) = (bytemuck::cast_slice(a), bytemuck::cast_slice(b));
    let different = a.iter().zip(b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len());
    ensure(different == 0, || format!("{what}: {different} of {} bytes differ", a.len()))
}

/// A buffer in which every byte is 0xff: NaN in every float type, so that an unwritten output shows.
pub fn poisoned<T: Element>(device: &Device, len: usize) -> Result<Buffer<T>, Failure> {
    let buffer = device.allocate(len)?;
    device.fill_bytes(buffer.view(), 0xff)?;
    Ok(buffer)
}
