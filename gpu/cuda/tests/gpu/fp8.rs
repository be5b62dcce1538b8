//! FP8 weights: against f64, and against the bits of the bf16 that they stand for.

use cuda::{
    Buffer, Device,
    ops::{Fp8Matrix, Fp8Rows, Gemm, GemmMode, GemmOutput, NextNorm, RowScale, Weights},
};
use formats::fp8::{E4M3_MAX, e4m3_from_f32, e4m3_to_f32};
use half::bf16;

use crate::{
    compare::{BF16_BOUND, bound, poisoned, relative_error, same_bits, wide},
    harness::{Case, Context, Failure, Outcome, ensure},
    host,
    random::Random,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "fp8: products agree with f64 at odd sizes", run: agrees },
        Case { name: "fp8: products give the bits of bf16", run: same_as_bf16 },
        Case { name: "fp8: rows do not depend on the batch", run: invariant },
        Case { name: "fp8: products of quantised rows agree with f64", run: quantised_rows },
        Case { name: "fp8: parts interleave", run: interleaved },
        Case { name: "fp8: weights are quantised as on the host", run: quantised },
        Case { name: "fp8: codes that are no numbers are counted", run: faults },
    ]
}

/// Across every boundary of kernels; from 384 rows on the weights are unpacked first.
const ROWS: [usize; 15] = [1, 3, 8, 9, 16, 17, 32, 33, 64, 65, 130, 300, 383, 384, 600];

/// Codes and scales of rows as a checkpoint has them.
struct Stored {
    codes: Vec<u8>,
    scales: Vec<f32>,
    rows: usize,
    k: usize,
}

impl Stored {
    /// Any code that is a number; scales that bf16 holds, unless they are to be `uneven`.
    fn random(random: &mut Random, rows: usize, k: usize, uneven: bool) -> Self {
        let code = |_| match random.below(256) as u8 {
            code if code & 0x7f == 0x7f => code - 1,
            code => code,
        };
        let codes = (0..rows * k).map(code).collect();
        let scale = |_| match 1e-4 + random.float(1e-4).abs() {
            scale if uneven => scale,
            scale => bf16::from_f32(scale).to_f32(),
        };
        let scales = (0..rows.div_ceil(128) * k.div_ceil(128)).map(scale).collect();
        Self { codes, scales, rows, k }
    }

    fn value(&self, row: usize, column: usize) -> f64 {
        let scale = self.scales[row / 128 * self.k.div_ceil(128) + column / 128];
        f64::from(e4m3_to_f32(self.codes[row * self.k + column])) * f64::from(scale)
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        (0..self.rows * self.k).map(|i| self.value(i / self.k, i % self.k))
    }

    /// Rounded to bf16. Exact products of codes and even scales have few bits, so that rounding twice does no harm.
    fn halves(&self) -> Vec<bf16> {
        self.values().map(|value| bf16::from_f32(value as f32)).collect()
    }

    fn pack(
        &self,
        device: &Device,
        matrix: &mut Fp8Matrix,
        first: usize,
        step: usize,
    ) -> Result<u32, Failure> {
        let (codes, scales) = (device.upload(&self.codes)?, device.upload(&self.scales)?);
        let faults = device.upload(&[0u32])?;
        let (codes, scales) = (codes.view(), scales.view());
        matrix.pack(device, Fp8Rows { codes, scales, rows: self.rows, first, step }, faults.view())?;
        Ok(device.read(faults.view())?[0])
    }

    fn matrix(&self, device: &Device) -> Result<Fp8Matrix, Failure> {
        let mut matrix = Fp8Matrix::new(device, self.rows, self.k)?;
        let faults = self.pack(device, &mut matrix, 0, 1)?;
        ensure(faults == 0, || format!("{faults} faults"))?;
        Ok(matrix)
    }
}

fn product(
    device: &Device,
    x: &Buffer<bf16>,
    w: Weights<'_>,
    [m, n, k]: [usize; 3],
) -> Result<Vec<f32>, Failure> {
    let (out, room) = (poisoned::<f32>(device, m * n)?, poisoned::<bf16>(device, n * k)?);
    let w = match w {
        Weights::Fp8(w) => Weights::Fp8(w.with_room(Some(room.view()))),
        bf16 => bf16,
    };
    let (output, mode) = (GemmOutput::F32(out.view()), GemmMode::BatchInvariant);
    device.gemm(Gemm { output, x: x.view(), w, scale: RowScale::One, m, n, k, mode, half: false })?;
    Ok(device.read(out.view())?)
}

/// A product of few rows that takes a norm, adds to a residual and begins the next norm: the sums and what is left of it.
fn fused(
    device: &Device,
    w: Weights<'_>,
    n: usize,
    k: usize,
    random: &mut Random,
) -> Result<(Vec<f32>, Vec<bf16>), Failure> {
    const M: usize = 5;
    let x = device.upload(&random.halves(M * k, 1.0))?;
    let sum = device.upload(&random.floats(M * n, 1.0))?;
    let (weight, before) =
        (device.upload(&random.floats(n, 1.0))?, device.upload(&random.floats(M * k / 8, 1.0))?);
    let (weighed, squares) = (poisoned::<bf16>(device, M * n)?, poisoned::<f32>(device, M * n / 8)?);
    let next = NextNorm { weight: weight.view(), weighed: weighed.view(), squares: squares.view() };
    device.gemm(Gemm {
        output: GemmOutput::AddNorm { sum: sum.view(), next },
        x: x.view(),
        w,
        scale: RowScale::Rms { squares: before.view(), eps: 10.0 },
        m: M,
        n,
        k,
        mode: GemmMode::BatchInvariant,
        half: false,
    })?;
    Ok((device.read(sum.view())?, device.read(weighed.view())?))
}

fn shapes(context: &Context) -> &'static [(usize, usize)] {
    if context.light {
        &[(136, 80), (200, 576)]
    } else {
        &[(8, 16), (136, 80), (200, 576), (1536, 1024), (8200, 272), (1024, 3072), (32_776, 192)]
    }
}

fn agrees(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut worst: f64 = 0.0;
    for &(n, k) in shapes(context).iter().filter(|(n, k)| n * k < 2_000_000) {
        let stored = Stored::random(random, n, k, true);
        let matrix = stored.matrix(device)?;
        let weights: Vec<f64> = stored.values().collect();
        for m in ROWS {
            let x = random.halves(m * k, 1.0);
            let tokens: Vec<f64> = wide(&x).collect();
            let expected = host::product_f64(&tokens, &weights, m, n, k);
            let out = product(device, &device.upload(&x)?, Weights::Fp8(matrix.view()), [m, n, k])?;
            let error = relative_error(out.into_iter().map(f64::from), &expected);
            bound(&format!("m {m} n {n} k {k}"), error, BF16_BOUND)?;
            worst = worst.max(error);
        }
    }
    Ok(format!("error {worst:.1e}"))
}

fn same_as_bf16(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut compared = 0;
    for &(n, k) in shapes(context) {
        let stored = Stored::random(random, n, k, false);
        let matrix = stored.matrix(device)?;
        let halves = device.upload(&stored.halves())?;
        for m in ROWS {
            let x = device.upload(&random.halves(m * k, 1.0))?;
            let fp8 = product(device, &x, Weights::Fp8(matrix.view()), [m, n, k])?;
            let bf16 = product(device, &x, halves.view().into(), [m, n, k])?;
            same_bits(&format!("m {m} n {n} k {k}"), &fp8, &bf16)?;
            compared += 1;
        }
        let seed = random.word();
        let fp8 = fused(device, Weights::Fp8(matrix.view()), n, k, &mut Random::new(seed))?;
        let bf16 = fused(device, halves.view().into(), n, k, &mut Random::new(seed))?;
        same_bits(&format!("sums of n {n} k {k}"), &fp8.0, &bf16.0)?;
        same_bits(&format!("half norms of n {n} k {k}"), &fp8.1, &bf16.1)?;
    }
    Ok(format!("{compared} products bit-equal"))
}

fn invariant(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let shapes: &[(usize, usize, usize)] = if context.light {
        &[(200, 576, 640)]
    } else {
        &[(576, 576, 700), (4096, 1024, 1100), (1024, 3072, 600), (40_960, 256, 700)]
    };
    let mut compared = 0;
    for &(n, k, rows) in shapes {
        let matrix = Stored::random(random, n, k, true).matrix(device)?;
        let x = random.halves(rows * k, 1.0);
        let all = product(device, &device.upload(&x)?, Weights::Fp8(matrix.view()), [rows, n, k])?;
        for m in ROWS.into_iter().filter(|&m| m <= rows) {
            let first = random.below(rows - m + 1);
            let x = device.upload(&x[first * k..][..m * k])?;
            let part = product(device, &x, Weights::Fp8(matrix.view()), [m, n, k])?;
            same_bits(&format!("rows {first}+{m} of n {n} k {k}"), &part, &all[first * n..][..m * n])?;
            compared += 1;
        }
    }
    Ok(format!("{compared} batches bit-equal"))
}

/// Rows as the batch variant quantises them: of 128 elements the largest becomes the largest code.
fn host_quantised(x: &[bf16]) -> Vec<f64> {
    let blocks = x.chunks(128).flat_map(|block| {
        let largest = block.iter().map(|v| v.to_f32().abs()).fold(1e-10, f32::max);
        let code = move |v: &bf16| e4m3_to_f32(e4m3_from_f32(v.to_f32() * (E4M3_MAX / largest)));
        block.iter().map(move |v| f64::from(code(v)) * f64::from(largest / E4M3_MAX))
    });
    blocks.collect()
}

/// The batch variant's products of many rows by gate and up in turn, in every form of output; its tensor cores add with fewer bits than f32.
fn quantised_rows(context: &Context, random: &mut Random) -> Outcome {
    const CODES_BOUND: f64 = 1e-3;
    let device = &context.device;
    let shapes: &[[usize; 3]] = if context.light {
        &[[387, 208, 256]]
    } else {
        &[[384, 208, 128], [400, 64, 640], [700, 1536, 1024], [1100, 2064, 384], [520, 4096, 1152]]
    };
    let (mut worst, mut off): (f64, f64) = (0.0, 0.0);
    for &[m, n, k] in shapes {
        let parts = [(); 2].map(|()| Stored::random(random, n / 2, k, true));
        let mut matrix = Fp8Matrix::new(device, n, k)?;
        for (first, part) in parts.iter().enumerate() {
            part.pack(device, &mut matrix, first, 2)?;
        }
        let (x, before) = (random.halves(m * k, 1.0), random.floats(m * n, 1.0));
        let row = |row: usize| (0..k).map(move |column| (row, column));
        let weights: Vec<f64> =
            (0..n).flat_map(row).map(|(row, column)| parts[row % 2].value(row / 2, column)).collect();
        let expected = host::product_f64(&host_quantised(&x), &weights, m, n, k);
        let plain = host::product_f64(&wide(&x).collect::<Vec<_>>(), &weights, m, n, k);
        off = off.max(relative_error(expected.iter().copied(), &plain));
        let x = device.upload(&x)?;
        let room = poisoned::<bf16>(device, n * k + m * k)?;
        let sum = device.upload(&before)?;
        let (halves, gated) = (poisoned::<bf16>(device, m * n)?, poisoned::<bf16>(device, m * n / 2)?);
        let out = poisoned::<f32>(device, m * n)?;
        for output in [
            GemmOutput::F32(out.view()),
            GemmOutput::Bf16(halves.view()),
            GemmOutput::AddF32(sum.view()),
            GemmOutput::Gate(gated.view()),
        ] {
            let w = Weights::Fp8(matrix.view().with_room(Some(room.view())));
            let (x, scale, mode) = (x.view(), RowScale::One, GemmMode::BatchVariant);
            device.gemm(Gemm { output, x, w, scale, m, n, k, mode, half: false })?;
        }
        let out: Vec<f64> = device.read(out.view())?.into_iter().map(f64::from).collect();
        let error = relative_error(out.iter().copied(), &expected);
        bound(&format!("m {m} n {n} k {k}"), error, CODES_BOUND)?;
        worst = worst.max(error);
        let sums =
            device.read(sum.view())?.into_iter().zip(&before).map(|(v, b)| f64::from(v) - f64::from(*b));
        bound("sums", relative_error(sums, &out), 1e-5)?;
        let halves = device.read(halves.view())?;
        bound("halves", relative_error(wide(&halves), &out), BF16_BOUND)?;
        let gates: Vec<f64> = out.chunks_exact(2).map(|pair| host::silu(pair[0]) * pair[1]).collect();
        bound("gates", relative_error(wide(&device.read(gated.view())?), &gates), BF16_BOUND)?;
    }
    Ok(format!("error {worst:.1e}; quantised rows are {off:.1e} off plain ones"))
}

/// Gate and up, row by row in turn, have scales of their own.
fn interleaved(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let (rows, k) = (264, 320);
    let parts = [(); 2].map(|()| Stored::random(random, rows, k, false));
    let mut matrix = Fp8Matrix::new(device, 2 * rows, k)?;
    for (first, part) in parts.iter().enumerate() {
        part.pack(device, &mut matrix, first, 2)?;
    }
    let [gate, up] = parts.each_ref().map(Stored::halves);
    let rows_in_turn: Vec<bf16> =
        gate.chunks_exact(k).zip(up.chunks_exact(k)).flat_map(|(gate, up)| [gate, up].concat()).collect();
    let halves = device.upload(&rows_in_turn)?;
    for m in ROWS {
        let (n, mode) = (2 * rows, GemmMode::BatchInvariant);
        let x = device.upload(&random.halves(m * k, 1.0))?;
        let gated = |w: Weights<'_>| -> Result<Vec<bf16>, Failure> {
            let out = poisoned::<bf16>(device, m * rows)?;
            let output = GemmOutput::Gate(out.view());
            device.gemm(Gemm { output, x: x.view(), w, scale: RowScale::One, m, n, k, mode, half: false })?;
            Ok(device.read(out.view())?)
        };
        let (fp8, bf16) = (gated(Weights::Fp8(matrix.view()))?, gated(halves.view().into())?);
        same_bits(&format!("m {m}"), &fp8, &bf16)?;
    }
    Ok(format!("{} batches bit-equal", ROWS.len()))
}

fn quantised(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    for (n, k, scale) in [(8, 16, 1.0), (136, 80, 1e-3), (264, 640, 30.0)] {
        let mut weights = random.halves(n * k, scale);
        weights[..if n > 64 { 64 } else { 4 } * k].fill(bf16::ZERO);
        let matrix = Fp8Matrix::new(device, n, k)?;
        matrix.quantise(device, device.upload(&weights)?.view())?;

        // the product with the identity shows the weights themselves
        let identity: Vec<bf16> =
            (0..k * k).map(|i| bf16::from_f32(f32::from(u8::from(i / k == i % k)))).collect();
        let shown = product(device, &device.upload(&identity)?, Weights::Fp8(matrix.view()), [k, n, k])?;
        for row in 0..n {
            for column in 0..k {
                // of 64 rows the even ones share a scale, and the odd ones
                let columns = column / 128 * 128..k.min(column / 128 * 128 + 128);
                let rows = (0..32).map(|i| row / 64 * 64 + 2 * i + row % 2).filter(|&row| row < n);
                let block = rows.flat_map(|row| columns.clone().map(move |column| row * k + column));
                let largest = block.map(|at| weights[at].to_f32().abs()).fold(0.0, f32::max);
                let scale = bf16::from_f32(largest / E4M3_MAX).to_f32();
                let value = weights[row * k + column].to_f32();
                let code = e4m3_to_f32(e4m3_from_f32(if scale > 0.0 { value / scale } else { 0.0 }));
                let expected = bf16::from_f32(code * scale).to_f32();
                let found = shown[column * n + row];
                ensure(found == expected, || {
                    format!("({row}, {column}) of {n} x {k}: {value} became {found}, not {expected}")
                })?;
            }
        }
    }
    Ok("equal".into())
}

fn faults(context: &Context, random: &mut Random) -> Outcome {
    let mut stored = Stored::random(random, 16, 64, false);
    stored.codes[70] = 0x7f;
    stored.codes[700] = 0xff;
    let mut matrix = Fp8Matrix::new(&context.device, 16, 64)?;
    let found = stored.pack(&context.device, &mut matrix, 0, 1)?;
    ensure(found == 2, || format!("{found} of 2 found"))?;
    Ok("2 of 2 found".into())
}
