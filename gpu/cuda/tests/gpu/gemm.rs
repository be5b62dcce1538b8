use cuda::{
    Device, Library, View,
    ops::{FUSED_ROWS, Gemm, GemmMode, GemmOutput, KvPages, NextNorm, QkvHead, RmsNorm, RowScale},
};
use half::bf16;

use crate::{
    compare::{BF16_BOUND, F32_BOUND, bound, poisoned, relative_error, same_bits, wide},
    harness::{Case, Context, Failure, Outcome},
    host,
    random::Random,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "gemm agrees with f64 at odd sizes", run: agrees },
        Case { name: "gemm outputs: add, gate, f32", run: outputs },
        Case { name: "gemm rows do not depend on the batch", run: invariant },
        Case { name: "gemm rows of every kernel of many rows", run: many },
        Case { name: "gemm sums do not depend on the batch", run: sums },
        Case { name: "norms halved between products", run: norms },
        Case { name: "heads by their product or after it", run: heads },
        Case { name: "variant gemm agrees with f64", run: library },
    ]
}

fn run(
    device: &Device,
    x: View<'_, bf16>,
    w: View<'_, bf16>,
    [m, n, k]: [usize; 3],
    mode: GemmMode,
) -> Result<Vec<bf16>, Failure> {
    let out = poisoned::<bf16>(device, m * n)?;
    let output = GemmOutput::Bf16(out.view());
    device.gemm(Gemm { output, x, w: w.into(), scale: RowScale::One, m, n, k, mode, half: false })?;
    Ok(device.read(out.view())?)
}

fn agrees(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut worst: f64 = 0.0;
    let shapes: &[(usize, usize)] = if context.light {
        &[(136, 72), (200, 576)]
    } else {
        &[(8, 8), (136, 72), (200, 576), (576, 576), (1536, 1024), (8200, 264), (1024, 3072)]
    };
    for &(n, k) in shapes {
        for m in [1, 3, 8, 9, 16, 17, 33, 64, 65, 130] {
            let (x, w) = (random.halves(m * k, 1.0), random.halves(n * k, 1.0));
            let (dx, dw) = (device.upload(&x)?, device.upload(&w)?);
            let out = run(device, dx.view(), dw.view(), [m, n, k], GemmMode::BatchInvariant)?;
            let error = relative_error(wide(&out), &host::product(&x, &w, m, n, k));
            bound(&format!("m {m} n {n} k {k}"), error, BF16_BOUND)?;
            worst = worst.max(error);
        }
    }
    Ok(format!("error {worst:.1e}"))
}

/// Adds a product to what is there, and takes it through the gate.
fn sum_and_gate(
    device: &Device,
    random: &mut Random,
    x: View<'_, bf16>,
    w: View<'_, bf16>,
    [m, n, k]: [usize; 3],
    mode: GemmMode,
    product: &[f64],
) -> Result<(), Failure> {
    let gemm = |output| Gemm { output, x, w: w.into(), scale: RowScale::One, m, n, k, mode, half: false };
    let base = random.floats(m * n, 1.0);
    let sum = device.upload(&base)?;
    device.gemm(gemm(GemmOutput::AddF32(sum.view())))?;
    let expected: Vec<f64> = base.iter().zip(product).map(|(&b, p)| f64::from(b) + p).collect();
    bound("add", relative_error(device.read(sum.view())?.into_iter().map(f64::from), &expected), F32_BOUND)?;
    let gated = poisoned::<bf16>(device, m * n / 2)?;
    device.gemm(gemm(GemmOutput::Gate(gated.view())))?;
    let expected: Vec<f64> = product.chunks_exact(2).map(|pair| host::silu(pair[0]) * pair[1]).collect();
    bound("gate", relative_error(wide(&device.read(gated.view())?), &expected), BF16_BOUND)
}

fn outputs(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut worst: f64 = 0.0;
    let mut shapes = vec![(2, 264, 192), (12, 64, 320), (40, 264, 192), (100, 136, 320)];
    if !context.light {
        shapes.extend([(50, 24_576, 136), (300, 2200, 328), (300, 2192, 328)]);
    }
    for (m, n, k) in shapes {
        let (x, w) = (random.halves(m * k, 1.0), random.halves(n * k, 0.2));
        let (dx, dw) = (device.upload(&x)?, device.upload(&w)?);
        let product = host::product(&x, &w, m, n, k);
        let (x, w, mode) = (dx.view(), dw.view(), GemmMode::BatchInvariant);
        let out = poisoned::<f32>(device, m * n)?;
        let output = GemmOutput::F32(out.view());
        device.gemm(Gemm { output, x, w: w.into(), scale: RowScale::One, m, n, k, mode, half: false })?;
        let error = relative_error(device.read(out.view())?.into_iter().map(f64::from), &product);
        bound("f32", error, F32_BOUND)?;
        worst = worst.max(error);
        sum_and_gate(device, random, x, w, [m, n, k], mode, &product)?;
    }
    Ok(format!("f32 error {worst:.1e}"))
}

/// The bytes of a product, of each kind of output whose rows are told apart by the last bit of a sum.
fn outcomes(
    device: &Device,
    x: View<'_, bf16>,
    w: View<'_, bf16>,
    [m, n, k]: [usize; 3],
) -> Result<[Vec<u8>; 2], Failure> {
    let (floats, gated) = (poisoned::<f32>(device, m * n)?, poisoned::<bf16>(device, m * n / 2)?);
    for output in [GemmOutput::F32(floats.view()), GemmOutput::Gate(gated.view())] {
        let (w, scale, mode) = (w.into(), RowScale::One, GemmMode::BatchInvariant);
        device.gemm(Gemm { output, x, w, scale, m, n, k, mode, half: false })?;
    }
    Ok([device.read(floats.view().cast())?, device.read(gated.view().cast())?])
}

/// 300 rows of x by widths of w for which 64, 96, 128 and 192 columns a tile are quickest, the last two also with pairs of
/// blocks that share rows of x: their bits are those of few rows.
fn many(context: &Context, random: &mut Random) -> Outcome {
    const ROWS: usize = 300;
    const FEW: usize = 16;
    let device = &context.device;
    let mut worst: f64 = 0.0;
    let k = if context.light { 136 } else { 328 };
    for n in [704, 2208, 3200, 4240, 5648, 6400] {
        let (x, w) = (random.halves(ROWS * k, 1.0), random.halves(n * k, 0.2));
        let (dx, dw) = (device.upload(&x)?, device.upload(&w)?);
        let product = host::product(&x, &w, ROWS, n, k);
        let all = outcomes(device, dx.view(), dw.view(), [ROWS, n, k])?;
        let floats = bytemuck::cast_slice::<u8, [u8; 4]>(&all[0]);
        let error =
            relative_error(floats.iter().map(|&bytes| f64::from(f32::from_le_bytes(bytes))), &product);
        bound(&format!("f32 of n {n}"), error, F32_BOUND)?;
        worst = worst.max(error);
        sum_and_gate(device, random, dx.view(), dw.view(), [ROWS, n, k], GemmMode::BatchInvariant, &product)?;
        for first in [0, 120, ROWS - FEW] {
            let few = outcomes(device, dx.slice(first * k..), dw.view(), [FEW, n, k])?;
            for (few, all) in few.iter().zip(&all) {
                let row = all.len() / ROWS;
                same_bits(&format!("rows {first}+{FEW} of n {n}"), few, &all[first * row..][..FEW * row])?;
            }
        }
    }
    Ok(format!("f32 error {worst:.1e}, bit-equal to few rows"))
}

fn invariant(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let shapes: &[(usize, usize, usize)] = if context.light {
        &[(200, 576, 140)]
    } else {
        // the last number of rows is past every split: tiles of many rows
        &[
            (576, 576, 300),
            (4096, 1024, 1100),
            (40_000, 128, 300),
            (1024, 3072, 300),
            (6144, 4096, 500),
            (4096, 2048, 300),
            (24_576, 1024, 400),
        ]
    };
    let mut compared = 0;
    for &(n, k, rows) in shapes {
        let x = device.upload(&random.halves(rows * k, 1.0))?;
        let w = device.upload(&random.halves(n * k, 1.0))?;
        let all = run(device, x.view(), w.view(), [rows, n, k], GemmMode::BatchInvariant)?;
        let all_sums = outcomes(device, x.view(), w.view(), [rows, n, k])?;
        let more = [160, 200, 257, 300, 352, 384].into_iter().filter(|&m| m <= rows);
        for m in [1, 2, 5, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 128, 129].into_iter().chain(more) {
            let first = random.below(rows - m + 1);
            let part = run(device, x.slice(first * k..), w.view(), [m, n, k], GemmMode::BatchInvariant)?;
            same_bits(&format!("rows {first}+{m} of n {n} k {k}"), &part, &all[first * n..][..m * n])?;
            let sums = outcomes(device, x.slice(first * k..), w.view(), [m, n, k])?;
            for (part, all) in sums.iter().zip(&all_sums) {
                let row = all.len() / rows;
                let what = format!("rows {first}+{m} of n {n} k {k}, in f32 and gated");
                same_bits(&what, part, &all[first * row..][..m * row])?;
            }
            compared += 1;
        }
    }
    Ok(format!("{compared} batches bit-equal"))
}

/// The bits of a sum do not depend on the batch, nor on who adds: not even those of numbers too small to be normal.
fn sums(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let (n, k, rows) = if context.light { (200, 136, 140) } else { (4096, 200, 300) };
    let mut x = random.halves(rows * k, 1.0);
    let mut base = random.floats(rows * n, 1.0);
    for row in (0..rows).step_by(3) {
        x[row * k..][..k].fill(bf16::ZERO);
        base[row * n..][..n].iter_mut().for_each(|v| *v *= 1e-38);
    }
    let (x, w) = (device.upload(&x)?, device.upload(&random.halves(n * k, 1.0))?);
    let add = |first: usize, m: usize| -> Result<Vec<f32>, Failure> {
        let sum = device.upload(&base[first * n..][..m * n])?;
        device.gemm(Gemm {
            output: GemmOutput::AddF32(sum.view()),
            x: x.slice(first * k..),
            w: w.view().into(),
            scale: RowScale::One,
            m,
            n,
            k,
            mode: GemmMode::BatchInvariant,
            half: false,
        })?;
        Ok(device.read(sum.view())?)
    };
    let all = add(0, rows)?;
    for m in [1, 7, 16, 20, 64, 100, 130].into_iter().filter(|&m| m < rows) {
        let first = random.below(rows - m + 1);
        same_bits(&format!("rows {first}+{m}"), &add(first, m)?, &all[first * n..][..m * n])?;
    }
    Ok("bit-equal".into())
}

/// A product that adds to the residual stream and one that takes its norm: against f64, and against the bits that more
/// rows get by way of a norm of their own.
fn norms(context: &Context, random: &mut Random) -> Outcome {
    const EPS: f32 = 1e-6;
    let device = &context.device;
    let (mode, more) = (GemmMode::BatchInvariant, FUSED_ROWS + 5);
    let mut worst: f64 = 0.0;
    for (m, k, width, n) in [
        (1, 72, 1024, 136),
        (7, 320, 72, 264),
        (9, 200, 576, 64),
        (16, 64, 4096, 72),
        (17, 2048, 1024, 72),
        (33, 136, 576, 200),
        (40, 320, 4096, 72),
        (64, 264, 1024, 8200),
    ] {
        let (x, up) = (random.halves(m * k, 1.0), random.halves(width * k, 0.3));
        let (down, weight) = (random.halves(n * width, 0.3), random.floats(width, 2.0));
        let base = random.floats(m * width, 4.0);
        let (sum, norm_weight, down_weights) =
            (device.upload(&base)?, device.upload(&weight)?, device.upload(&down)?);
        let weighed = poisoned::<bf16>(device, m * width)?;
        let squares = poisoned::<f32>(device, m * width / 8)?;
        let next = NextNorm { weight: norm_weight.view(), weighed: weighed.view(), squares: squares.view() };
        let (dx, dup) = (device.upload(&x)?, device.upload(&up)?);
        device.gemm(Gemm {
            output: GemmOutput::AddNorm { sum: sum.view(), next },
            x: dx.view(),
            w: dup.view().into(),
            scale: RowScale::One,
            m,
            n: width,
            k,
            mode,
            half: false,
        })?;
        let product = |x: View<'_, bf16>, scale: RowScale<'_>, m: usize| -> Result<Vec<f32>, Failure> {
            let out = poisoned::<f32>(device, m * n)?;
            let (output, w) = (GemmOutput::F32(out.view()), down_weights.view().into());
            device.gemm(Gemm { output, x, w, scale, m, n, k: width, mode, half: false })?;
            Ok(device.read(out.view())?)
        };
        let few = product(weighed.view(), RowScale::Rms { squares: squares.view(), eps: EPS }, m)?;

        let sums = device.read(sum.view())?;
        let expected: Vec<f64> =
            base.iter().zip(host::product(&x, &up, m, width, k)).map(|(&b, p)| f64::from(b) + p).collect();
        bound("sum", relative_error(sums.iter().map(|&v| f64::from(v)), &expected), F32_BOUND)?;
        let mut normed = Vec::new();
        for row in expected.chunks_exact(width) {
            let scale = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / width as f64 + f64::from(EPS)).sqrt();
            normed.extend(row.iter().zip(&weight).map(|(v, &w)| v * scale * f64::from(w)));
        }
        let weights: Vec<f64> = wide(&down).collect();
        let expected: Vec<f64> = normed
            .chunks_exact(width)
            .flat_map(|row| {
                weights.chunks_exact(width).map(|w| row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>())
            })
            .collect();
        let error = relative_error(few.iter().map(|&v| f64::from(v)), &expected);
        bound(&format!("m {m} width {width}"), error, BF16_BOUND)?;
        worst = worst.max(error);

        let rows: Vec<f32> = [sums, random.floats((more - m) * width, 4.0)].concat();
        let (rows, all) = (device.upload(&rows)?, poisoned::<bf16>(device, more * width)?);
        let scales = poisoned::<f32>(device, more)?;
        device.rms_norm(RmsNorm {
            out: all.view(),
            hidden: rows.view(),
            weight: norm_weight.view(),
            rows: None,
            scales: Some(scales.view()),
            count: more,
            width,
            eps: EPS,
        })?;
        let many = product(all.view(), RowScale::Given(scales.view()), more)?;
        same_bits("few rows against many", &few, &many[..m * n])?;
    }
    Ok(format!("error {worst:.1e}, bit-equal to many rows"))
}

/// Queries, keys and values of every row count that one launch takes have the bits of two launches.
fn heads(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let mut compared = 0;
    for (head_dim, heads, kv_heads, hidden, bias, norm) in
        [(64, 9, 3, 576, false, false), (64, 4, 1, 136, true, true), (128, 16, 8, 1024, true, true)]
    {
        let (positions, pages, page_size) = (100, 9, 16);
        let n = (heads + 2 * kv_heads) * head_dim;
        let w = device.upload(&random.halves(n * hidden, 0.1))?;
        let bias = if bias { Some(device.upload(&random.halves(n, 1.0))?) } else { None };
        let norms = if norm {
            Some([
                device.upload(&random.floats(head_dim, 2.0))?,
                device.upload(&random.floats(head_dim, 2.0))?,
            ])
        } else {
            None
        };
        let angles = random.floats(positions * head_dim / 2, 3.0);
        let cosines = device.upload(&angles.iter().map(|a| a.cos()).collect::<Vec<_>>())?;
        let sines = device.upload(&angles.iter().map(|a| a.sin()).collect::<Vec<_>>())?;
        for m in [1, 16, 17, 32, 33, 64, 65] {
            let x = device.upload(&random.halves(m * hidden, 1.0))?;
            let position: Vec<u32> = (0..m).map(|_| random.below(positions) as u32).collect();
            let position = device.upload(&position)?;
            let mut places: Vec<u32> = random.shuffled(pages * page_size)[..m].to_vec();
            places[m / 2] = u32::MAX;
            let places = device.upload(&places)?;
            let qkv = device.allocate::<bf16>(m * n)?;
            let product = Gemm {
                output: GemmOutput::Bf16(qkv.view()),
                x: x.view(),
                w: w.view().into(),
                scale: RowScale::One,
                m,
                n,
                k: hidden,
                mode: GemmMode::BatchInvariant,
                half: false,
            };
            let outcome = |apart: bool| -> Result<_, Failure> {
                let queries = poisoned::<bf16>(device, m * heads * head_dim)?;
                let slab = poisoned::<bf16>(device, pages * 2 * kv_heads * page_size * head_dim)?;
                let op = QkvHead {
                    queries: queries.view(),
                    kv: KvPages { pages: slab.view().into(), kv_heads, head_dim, page_size },
                    qkv: qkv.view(),
                    bias: bias.as_ref().map(|bias| bias.view()),
                    norms: norms.as_ref().map(|[q, k]| [q.view(), k.view()]),
                    cosines: cosines.view(),
                    sines: sines.view(),
                    positions: position.view(),
                    places: places.view(),
                    tokens: m,
                    heads,
                    norm_width: head_dim,
                    eps: 1e-6,
                };
                if apart {
                    device.gemm(product)?;
                    device.qkv_head(op)?;
                } else {
                    device.gemm(Gemm { output: GemmOutput::Heads(op), ..product })?;
                }
                Ok((device.read(queries.view())?, device.read(slab.view())?))
            };
            let (one, two) = (outcome(false)?, outcome(true)?);
            same_bits(&format!("queries of {m} rows"), &one.0, &two.0)?;
            same_bits(&format!("pages of {m} rows"), &one.1, &two.1)?;
            compared += 1;
        }
    }
    Ok(format!("{compared} batches bit-equal"))
}

fn library(context: &Context, random: &mut Random) -> Outcome {
    if Library::CublasLt.require().is_err() {
        return Ok("not run: no libcublasLt".into());
    }
    let device = &context.device;
    let mut worst: f64 = 0.0;
    let shapes = [
        (65, 136, 72),
        (200, 576, 576),
        (129, 1024, 1024),
        (300, 2200, 328),
        (300, 8200, 72),
        (600, 4624, 200),
    ];
    for (m, n, k) in shapes {
        let (x, w) = (random.halves(m * k, 1.0), random.halves(n * k, 0.2));
        let (dx, dw) = (device.upload(&x)?, device.upload(&w)?);
        let product = host::product(&x, &w, m, n, k);
        let out = run(device, dx.view(), dw.view(), [m, n, k], GemmMode::BatchVariant)?;
        let error = relative_error(wide(&out), &product);
        bound("bf16", error, BF16_BOUND)?;
        worst = worst.max(error);
        sum_and_gate(device, random, dx.view(), dw.view(), [m, n, k], GemmMode::BatchVariant, &product)?;
    }
    Ok(format!("error {worst:.1e}"))
}
