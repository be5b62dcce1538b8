//! Times of the operations at the shapes of two models, beside the read rate of the same run.
//!
//! Each time is the median of replays of a graph that holds many launches. Weights and pages rotate over copies
//! that together outgrow the L2 cache, as they do in a step.

mod fp8;

use cuda::{
    Buffer, CudaError, Device, Graph, Timer,
    ops::{
        DecodeAttention, Drawn, FillBf16, Gemm, GemmMode, GemmOutput, KvPages, PREFILL_ROWS,
        PrefillAttention, QkvHead, RmsNorm, RowScale, Sample, SampleParams, decode_tickets, part_stats,
    },
};
use half::bf16;
use models::SamplingParams;

use crate::{harness::Context, random::Random};

const REPLAYS: usize = 7;
/// Several times the L2 cache.
const ROTATED_BYTES: usize = 256 << 20;
const LAUNCHES: usize = 24;

struct Shape {
    name: &'static str,
    hidden: usize,
    heads: usize,
    intermediate: usize,
}

const KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const PAGE_SIZE: usize = 16;
const VOCAB: usize = 151_936;
const SHAPES: [Shape; 2] = [
    Shape { name: "Qwen3-0.6B", hidden: 1024, heads: 16, intermediate: 3072 },
    Shape { name: "Qwen3-8B", hidden: 4096, heads: 32, intermediate: 12_288 },
];

struct Bench<'a> {
    device: &'a Device,
    /// Bytes a second.
    read_rate: f64,
}

pub fn run(context: &Context) -> Result<(), CudaError> {
    let device = &context.device;
    let read_rate = device.read_rate()?;
    println!("read rate {:.3} TB/s (4 GiB)", read_rate * 1e-12);
    let bench = Bench { device, read_rate };
    println!("\n{:<12}{:<32}{:>7}{:>11}{:>9}{:>9}", "model", "operation", "rows", "us", "% read", "TFLOP/s");
    for shape in &SHAPES {
        bench.gemms(shape)?;
        bench.decode_attention(shape)?;
        bench.prefill_attention(shape)?;
        bench.row_kernels(shape)?;
    }
    bench.fp8()?;
    bench.sampling()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Bench<'_> {
    /// Median seconds of one call of `work`, which is given the number of the call.
    fn time(&self, launches: usize, work: impl Fn(usize) -> Result<(), CudaError>) -> Result<f64, CudaError> {
        for i in 0..2 {
            work(i)?;
        }
        let graph = Graph::record(self.device, || (0..launches).try_for_each(&work))?;
        let timer = Timer::new(self.device)?;
        let mut seconds = Vec::new();
        for _ in 0..REPLAYS + 1 {
            timer.start(self.device)?;
            graph.launch()?;
            timer.stop(self.device)?;
            seconds.push(timer.seconds()? / launches as f64);
        }
        Ok(median(&mut seconds[1..]))
    }

    fn line(&self, model: &str, operation: &str, rows: usize, seconds: f64, bytes: f64, operations: f64) {
        let share = bytes / seconds / self.read_rate * 100.0;
        let rate = operations / seconds * 1e-12;
        println!("{model:<12}{operation:<32}{rows:>7}{:>11.2}{share:>9.1}{rate:>9.1}", seconds * 1e6);
    }

    fn random(&self, len: usize, scale: f32) -> Result<Buffer<bf16>, CudaError> {
        let buffer = self.device.allocate(len)?;
        self.device.fill_bf16(FillBf16 { out: buffer.view(), seed: len as u32, scale })?;
        Ok(buffer)
    }

    fn gemms(&self, shape: &Shape) -> Result<(), CudaError> {
        let width = shape.heads * HEAD_DIM;
        let qkv = width + 2 * KV_HEADS * HEAD_DIM;
        let products = [
            ("qkv", qkv, shape.hidden),
            ("o, added", shape.hidden, width),
            ("gate up, gated", 2 * shape.intermediate, shape.hidden),
            ("down, added", shape.hidden, shape.intermediate),
            ("head, f32", VOCAB, shape.hidden),
        ];
        for (name, n, k) in products {
            let copies = (ROTATED_BYTES / (2 * n * k)).clamp(1, LAUNCHES);
            let w = self.random(copies * n * k, 0.05)?;
            let most = if n == VOCAB { 256 } else { 1024 };
            let x = self.random(most * k, 1.0)?;
            let out = self.device.allocate::<f32>(most * n)?;
            self.device.fill_bytes(out.view(), 0)?;
            for m in [1, 8, 16, 64, 256, 1024].into_iter().filter(|&m| m <= most) {
                for mode in [GemmMode::BatchInvariant, GemmMode::BatchVariant] {
                    if mode == GemmMode::BatchVariant && (m <= 16 || self.blas_missing()) {
                        continue;
                    }
                    let output = match name {
                        "o, added" | "down, added" => GemmOutput::AddF32(out.view()),
                        "gate up, gated" => GemmOutput::Gate(out.view().cast()),
                        "head, f32" => GemmOutput::F32(out.view()),
                        _ => GemmOutput::Bf16(out.view().cast()),
                    };
                    let launches = if n == VOCAB || m == 1024 { 6 } else { LAUNCHES };
                    let seconds = self.time(launches, |i| {
                        let w = w.slice(i % copies * n * k..).into();
                        self.device.gemm(Gemm {
                            output,
                            x: x.view(),
                            w,
                            scale: RowScale::One,
                            m,
                            n,
                            k,
                            mode,
                            half: false,
                        })
                    })?;
                    let label = if mode == GemmMode::BatchVariant {
                        format!("{name} (library)")
                    } else {
                        name.into()
                    };
                    let (bytes, work) = ((2 * n * k) as f64, 2.0 * (m * n * k) as f64);
                    self.line(shape.name, &label, m, seconds, bytes, work);
                }
            }
        }
        Ok(())
    }

    fn blas_missing(&self) -> bool {
        !cuda::Library::CublasLt.is_present()
    }

    fn decode_attention(&self, shape: &Shape) -> Result<(), CudaError> {
        let mut random = Random::new(1);
        for (nominal, sequences) in [(1024, 1), (1024, 8), (1024, 64), (1024, 256), (8192, 1), (8192, 8)] {
            let contexts: Vec<usize> =
                (0..sequences).map(|_| random.between(nominal * 9 / 10, nominal * 11 / 10)).collect();
            let page_elements = 2 * KV_HEADS * PAGE_SIZE * HEAD_DIM;
            let pages: Vec<usize> = contexts.iter().map(|context| context.div_ceil(PAGE_SIZE)).collect();
            let total: usize = pages.iter().sum();
            let copies = (ROTATED_BYTES / (total * page_elements * 2)).clamp(1, LAUNCHES);
            let kv = self.random(copies * total * page_elements, 1.0)?;
            let tables = self.device.upload(&random.shuffled(total))?;
            let share = self.device.decode_share(shape.heads, KV_HEADS, None);
            let max_tiles = contexts.iter().map(|&context| share.tiles(context)).sum();
            let (mut table_starts, mut tile_starts, mut run_starts) = (vec![0u32], vec![0u32], vec![0u32]);
            for (i, &context) in contexts.iter().enumerate() {
                table_starts.push(table_starts[i] + pages[i] as u32);
                tile_starts.push(tile_starts[i] + share.tiles(context) as u32);
                run_starts.push(run_starts[i] + share.runs(share.tiles(context), max_tiles) as u32);
            }
            let table_starts = self.device.upload(&table_starts)?;
            let tile_starts = self.device.upload(&tile_starts)?;
            let run_starts = self.device.upload(&run_starts)?;
            let lengths = self.device.upload(&contexts.iter().map(|&c| c as u32).collect::<Vec<_>>())?;
            let queries = self.random(sequences * shape.heads * HEAD_DIM, 1.0)?;
            let out = self.device.allocate(queries.len())?;
            let part_values = self.device.allocate(max_tiles * shape.heads * HEAD_DIM)?;
            let part_stats = self.device.allocate(part_stats(max_tiles, shape.heads))?;
            let queue = self.device.upload(&[0u32; 2])?;
            let tickets =
                self.device.upload(&vec![0u32; decode_tickets(sequences, shape.heads, KV_HEADS)])?;
            let run = |i: usize, mode: GemmMode| {
                let pages = kv.slice(i % copies * total * page_elements..);
                self.device.decode_attention(DecodeAttention {
                    out: out.view(),
                    queries: queries.view(),
                    kv: KvPages {
                        pages: pages.into(),
                        kv_heads: KV_HEADS,
                        head_dim: HEAD_DIM,
                        page_size: PAGE_SIZE,
                    },
                    tables: tables.view(),
                    table_starts: table_starts.view(),
                    contexts: lengths.view(),
                    tile_starts: tile_starts.view(),
                    run_starts: run_starts.view(),
                    part_values: part_values.view(),
                    part_stats: part_stats.view(),
                    tickets: tickets.view(),
                    queue: queue.view(),
                    sequences,
                    max_tiles,
                    heads: shape.heads,
                    window: None,
                    scale: 0.088,
                    mode,
                    half: false,
                })
            };
            let positions: usize = contexts.iter().sum();
            let bytes = (positions * 2 * KV_HEADS * HEAD_DIM * 2) as f64;
            for (mode, note) in [(GemmMode::BatchInvariant, ""), (GemmMode::BatchVariant, " (variant)")] {
                let seconds = self.time(LAUNCHES, |i| run(i, mode))?;
                let label = format!("decode attention, {nominal}{note}");
                self.line(shape.name, &label, sequences, seconds, bytes, 0.0);
            }
        }
        Ok(())
    }

    fn prefill_attention(&self, shape: &Shape) -> Result<(), CudaError> {
        for tokens in [1024, 8192] {
            let pages = tokens / PAGE_SIZE;
            let kv = self.random(pages * 2 * KV_HEADS * PAGE_SIZE * HEAD_DIM, 1.0)?;
            let queries = self.random(tokens * shape.heads * HEAD_DIM, 1.0)?;
            let out = self.device.allocate(queries.len())?;
            let tables = self.device.upload(&Random::new(2).shuffled(pages))?;
            let works: Vec<u32> =
                (0..tokens).step_by(PREFILL_ROWS).rev().flat_map(|first| [0, first as u32]).collect();
            let (zero, count) = (self.device.upload(&[0u32])?, self.device.upload(&[tokens as u32])?);
            let work_list = self.device.upload(&works)?;
            let run = |mode: GemmMode| {
                self.device.prefill_attention(PrefillAttention {
                    out: out.view(),
                    queries: queries.view(),
                    kv: KvPages {
                        pages: kv.view().into(),
                        kv_heads: KV_HEADS,
                        head_dim: HEAD_DIM,
                        page_size: PAGE_SIZE,
                    },
                    tables: tables.view(),
                    table_starts: zero.view(),
                    contexts: count.view(),
                    query_starts: zero.view(),
                    query_counts: count.view(),
                    works: work_list.view(),
                    work_count: works.len() / 2,
                    heads: shape.heads,
                    window: None,
                    scale: 0.088,
                    mode,
                })
            };
            let work = 4.0 * (tokens * tokens / 2) as f64 * (shape.heads * HEAD_DIM) as f64;
            for (mode, note) in [(GemmMode::BatchInvariant, ""), (GemmMode::BatchVariant, " (variant)")] {
                let seconds = self.time(4, |_| run(mode))?;
                self.line(shape.name, &format!("prefill attention{note}"), tokens, seconds, 0.0, work);
            }
        }
        Ok(())
    }

    fn row_kernels(&self, shape: &Shape) -> Result<(), CudaError> {
        let width = shape.heads * HEAD_DIM;
        let all = width + 2 * KV_HEADS * HEAD_DIM;
        for rows in [1, 64, 1024] {
            let hidden = self.device.allocate::<f32>(rows * shape.hidden)?;
            self.device.fill_bytes(hidden.view(), 0x3f)?;
            let weight = self.device.upload(&vec![1.0f32; shape.hidden])?;
            let out = self.device.allocate::<bf16>(rows * shape.hidden)?;
            let seconds = self.time(LAUNCHES, |_| {
                self.device.rms_norm(RmsNorm {
                    out: out.view(),
                    hidden: hidden.view(),
                    weight: weight.view(),
                    rows: None,
                    scales: None,
                    count: rows,
                    width: shape.hidden,
                    eps: 1e-6,
                })
            })?;
            self.line(shape.name, "rms_norm", rows, seconds, (rows * shape.hidden * 6) as f64, 0.0);

            let qkv = self.random(rows * all, 1.0)?;
            let queries = self.device.allocate(rows * width)?;
            let pages =
                self.device.allocate(rows.div_ceil(PAGE_SIZE) * 2 * KV_HEADS * PAGE_SIZE * HEAD_DIM)?;
            let norm = self.device.upload(&[1.0f32; HEAD_DIM])?;
            let table = self.device.upload(&vec![0.7f32; rows * HEAD_DIM / 2])?;
            let places = self.device.upload(&(0..rows as u32).collect::<Vec<_>>())?;
            let seconds = self.time(LAUNCHES, |_| {
                self.device.qkv_head(QkvHead {
                    queries: queries.view(),
                    kv: KvPages {
                        pages: pages.view().into(),
                        kv_heads: KV_HEADS,
                        head_dim: HEAD_DIM,
                        page_size: PAGE_SIZE,
                    },
                    qkv: qkv.view(),
                    bias: None,
                    norms: Some([norm.view(), norm.view()]),
                    cosines: table.view(),
                    sines: table.view(),
                    positions: places.view(),
                    places: places.view(),
                    tokens: rows,
                    heads: shape.heads,
                    norm_width: HEAD_DIM,
                    eps: 1e-6,
                })
            })?;
            self.line(shape.name, "qkv_head", rows, seconds, (rows * all * 4) as f64, 0.0);
        }
        Ok(())
    }

    fn sampling(&self) -> Result<(), CudaError> {
        let device = self.device;
        for rows in [1, 64, 256] {
            let logits = device.upload(&Random::new(3).floats(rows * VOCAB, 10.0))?;
            let drawn = device.allocate::<Drawn>(rows)?;
            let words = device.upload(&(0..rows as u32).collect::<Vec<_>>())?;
            let last = device.allocate::<u32>(rows)?;
            let counts = device.allocate::<u16>(rows * VOCAB)?;
            let prompts = device.allocate::<u32>(rows * VOCAB.div_ceil(32))?;
            let (bias, stops) = (device.allocate(rows)?, device.allocate::<u32>(rows)?);
            let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
            let plain = SamplingParams::default();
            let nucleus = SamplingParams { top_k: 50, top_p: 0.9, ..SamplingParams::default() };
            for (name, params) in [("greedy", greedy), ("temperature", plain), ("top-k, top-p", nucleus)] {
                let params = device.upload(&vec![SampleParams::new(&params, 0, 0, 0); rows])?;
                let seconds = self.time(LAUNCHES, |_| {
                    device.sample(Sample {
                        drawn: drawn.view(),
                        last_tokens: last.view(),
                        logits: logits.view(),
                        slots: words.view(),
                        positions: words.view(),
                        params: params.view(),
                        bias: bias.view(),
                        stops: stops.view(),
                        counts: counts.view(),
                        prompts: prompts.view(),
                        rows,
                        vocab: VOCAB,
                        columns: VOCAB,
                        max_bias: 1,
                        max_stops: 1,
                    })
                })?;
                self.line(
                    "vocab 151936",
                    &format!(" sample, {name}"),
                    rows,
                    seconds,
                    (4 * rows * VOCAB) as f64,
                    0.0,
                );
            }
        }
        Ok(())
    }
}
