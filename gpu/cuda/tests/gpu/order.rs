use cuda::{
    CudaError, Graph,
    ops::{Gemm, GemmMode, GemmOutput, RmsNorm, RowScale},
};
use half::bf16;

use crate::{
    compare::same_bits,
    harness::{Case, Context, Outcome},
    random::Random,
};

pub fn cases() -> Vec<Case> {
    vec![Case { name: "a graph of overlapping launches keeps their order", run: graph }]
}

/// A chain in which each launch reads what the one before wrote: overlapped, replayed, and one at a time.
fn graph(context: &Context, random: &mut Random) -> Outcome {
    let device = &context.device;
    let (hidden, inner, links) = if context.light { (128, 192, 2) } else { (1024, 2048, 12) };
    for m in [1, 8, 20, 64] {
        let start = random.floats(m * hidden, 1.0);
        let stream = device.upload(&start)?;
        let weight = device.upload(&vec![1.0f32; hidden])?;
        let up = device.upload(&random.halves(2 * inner * hidden, 0.05))?;
        let down = device.upload(&random.halves(hidden * inner, 0.05))?;
        let normed = device.allocate::<bf16>(m * hidden)?;
        let gated = device.allocate::<bf16>(m * inner)?;
        let chain = |wait: bool| -> Result<(), CudaError> {
            let pause = || if wait { device.synchronize() } else { Ok(()) };
            for _ in 0..links {
                device.rms_norm(RmsNorm {
                    out: normed.view(),
                    hidden: stream.view(),
                    weight: weight.view(),
                    rows: None,
                    scales: None,
                    count: m,
                    width: hidden,
                    eps: 1e-6,
                })?;
                pause()?;
                let mode = GemmMode::BatchInvariant;
                let gate = GemmOutput::Gate(gated.view());
                device.gemm(Gemm {
                    output: gate,
                    x: normed.view(),
                    w: up.view().into(),
                    scale: RowScale::One,
                    m,
                    n: 2 * inner,
                    k: hidden,
                    mode,
                    half: false,
                })?;
                pause()?;
                let add = GemmOutput::AddF32(stream.view());
                device.gemm(Gemm {
                    output: add,
                    x: gated.view(),
                    w: down.view().into(),
                    scale: RowScale::One,
                    m,
                    n: hidden,
                    k: inner,
                    mode,
                    half: false,
                })?;
                pause()?;
            }
            Ok(())
        };
        chain(true)?;
        let expected = device.read(stream.view())?;
        device.write(stream.view(), &start)?;
        chain(false)?;
        same_bits("overlapped", &device.read(stream.view())?, &expected)?;
        let graph = Graph::record(device, || chain(false))?;
        for _ in 0..5 {
            device.write(stream.view(), &start)?;
            graph.launch()?;
            same_bits("replayed", &device.read(stream.view())?, &expected)?;
        }
    }
    Ok("bit-equal".into())
}
