//! Matrix products: weight bytes (GB/s) and operations (Gitem/s), per thread, beside what the machine can do.
//!
//! `cargo bench -p cpu --bench linear -- q4_1` runs those whose name matches. A product walks over copies of
//! its matrix that together exceed the caches, as the layers of a model do. With two threads both run at
//! once, each on its own product.

use std::{
    borrow::Cow,
    cell::RefCell,
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
};

use cpu::{Acts, ActsFormat, Isa, Linear, OutPtr, Precision};
use divan::{
    Bencher,
    counter::{BytesCount, ItemsCount},
};
use formats::DType;
use models::Matrix;

mod machine;

/// Bytes of weights that a product walks over.
const WORKING_SET: usize = 96 << 20;
const THREADS: [usize; 2] = [1, 2];
/// Seconds a case may take.
const SECONDS: f64 = 0.4;

fn main() {
    println!("kernels: {}", Isa::detect().name());
    divan::main();
}

/// A product of `m` rows with a `rows × cols` matrix.
#[derive(Clone, Copy)]
struct Case {
    dtype: DType,
    rows: usize,
    cols: usize,
    m: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}x{} m={}", self.dtype.name().to_lowercase(), self.rows, self.cols, self.m)
    }
}

fn cases(dtype: DType, sizes: &[usize], shapes: &[(usize, usize)]) -> Vec<Case> {
    let case = |&(rows, cols)| sizes.iter().map(move |&m| Case { dtype, rows, cols, m });
    shapes.iter().flat_map(case).collect()
}

/// The products of SmolLM2-135M: fused query, key and value; gate and up; down.
#[divan::bench(
    threads = THREADS,
    max_time = SECONDS,
    args = cases(DType::Q4_1, &[1, 8, 32, 128, 512], &[(960, 576), (3072, 576), (576, 1536)]),
)]
fn smollm2(bencher: Bencher<'_, '_>, case: Case) {
    product(bencher, case);
}

#[divan::bench(
    threads = THREADS,
    max_time = SECONDS,
    args = cases(DType::Q8_0, &[1, 8, 32], &[(49152, 576)]),
)]
fn smollm2_head(bencher: Bencher<'_, '_>, case: Case) {
    product(bencher, case);
}

#[divan::bench(
    threads = THREADS,
    max_time = SECONDS,
    args = DType::ALL.into_iter().flat_map(|dtype| cases(dtype, &[1, 8, 128], &[(2048, 2048)])),
)]
fn every_dtype(bencher: Bencher<'_, '_>, case: Case) {
    product(bencher, case);
}

/// Rounding a row of activations to bytes.
#[divan::bench(threads = THREADS, max_time = SECONDS)]
fn prepare(bencher: Bencher<'_, '_>) {
    const ROWS: usize = 512;
    const COLS: usize = 1536;
    let acts = Acts::new(ROWS, COLS, ActsFormat { quantised: true, float: false }, Isa::detect());
    let x = vec![0.7; COLS];
    let next = AtomicUsize::new(0);
    bencher.counter(BytesCount::new(COLS * 4)).bench(|| {
        let row = next.fetch_add(1, Ordering::Relaxed) % ROWS;
        // SAFETY: the threads take different rows.
        unsafe { acts.prepare(&x, row..row + 1) };
    });
}

thread_local! {
    static OUT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

fn product(bencher: Bencher<'_, '_>, case: Case) {
    let Case { dtype, rows, cols, m } = case;
    let isa = Isa::detect();
    let bytes = rows * dtype.row_bytes(cols).expect("a whole number of blocks");
    let data: Vec<u8> = (0..bytes).map(|i| (i * 151 % 59) as u8).collect();
    let matrix = Matrix { dtype, rows, cols, data: Cow::Owned(data), scales: None };
    let pack = || Linear::pack(std::slice::from_ref(&matrix), isa, Precision::Packed).expect("a good matrix");
    let layers: Vec<Linear> = (0..(WORKING_SET / bytes).max(1)).map(|_| pack()).collect();
    let acts = Acts::new(m, cols, layers[0].acts_format(), isa);
    let x: Vec<f32> = (0..m * cols).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    // SAFETY: one thread.
    unsafe { acts.prepare(&x, 0..m) };
    let next = AtomicUsize::new(0);
    bencher
        .counter(BytesCount::new(layers[0].bytes()))
        .counter(ItemsCount::new(2 * m * rows * cols))
        .with_inputs(|| next.fetch_add(1, Ordering::Relaxed) % layers.len())
        .bench_values(|layer| {
            OUT.with_borrow_mut(|out| {
                out.resize(m * rows, 0.0);
                let layer = &layers[layer];
                // SAFETY: the output is this thread's own; nobody prepares.
                unsafe { layer.apply(&acts, m, OutPtr::new(out, rows), 0..layer.tiles()) };
            });
        });
}
