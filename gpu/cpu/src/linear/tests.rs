use std::borrow::Cow;

use formats::{DType, dequantise_row};
use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

/// Dtypes that are packed as they are.
const DTYPES: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q8_0,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
];

/// splitmix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ x >> 31
    }

    /// In -1..1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn activations(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|i| self.unit() * if i % 37 == 5 { 40.0 } else { 1.0 }).collect()
    }
}

fn matrix(dtype: DType, rows: usize, cols: usize, random: &mut Random) -> Matrix<'static> {
    let blocks = rows * dtype.row_bytes(cols).unwrap() / dtype.block_bytes();
    let halves: &[usize] = match dtype {
        DType::Q8_0 | DType::Q4_0 | DType::Q5_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q6_K => &[208],
        _ => &[],
    };
    let mut data = Vec::new();
    for _ in 0..blocks {
        match dtype {
            DType::F32 => data.extend(random.unit().to_le_bytes()),
            DType::F16 => data.extend(f16::from_f32(random.unit()).to_le_bytes()),
            DType::BF16 => data.extend(bf16::from_f32(random.unit()).to_le_bytes()),
            _ => {
                let mut block: Vec<u8> = (0..dtype.block_bytes()).map(|_| random.bits() as u8).collect();
                for &at in halves {
                    block[at..at + 2].copy_from_slice(&f16::from_f32(random.unit()).to_le_bytes());
                }
                data.extend(block);
            }
        }
    }
    Matrix { dtype, rows, cols, data: Cow::Owned(data), scales: None }
}

fn dequantise(matrix: &Matrix<'_>) -> Vec<Vec<f32>> {
    matrix
        .data
        .chunks_exact(matrix.dtype.row_bytes(matrix.cols).unwrap())
        .map(|row| {
            let mut out = vec![0.0; matrix.cols];
            dequantise_row(matrix.dtype, row, &mut out);
            out
        })
        .collect()
}

fn available() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available())
}

/// Computes `m` rows in one go.
fn product(linear: &Linear, isa: Isa, x: &[f32], m: usize) -> Vec<f32> {
    let acts = Acts::new(m, linear.cols(), linear.acts_format(), isa);
    let mut out = vec![f32::NAN; m * linear.rows()];
    // SAFETY: one thread.
    unsafe {
        acts.prepare(x, 0..m);
        linear.apply(&acts, m, OutPtr::new(&mut out, linear.rows()), 0..linear.tiles());
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// `x` as the kernels see it: rounded to bytes per 32 columns.
fn quantised(x: &[f32]) -> Vec<f32> {
    x.chunks(32)
        .flat_map(|block| {
            let largest = block.iter().fold(0f32, |a, x| a.max(x.abs()));
            let inverse = if largest == 0.0 { 0.0 } else { 127.0 / largest };
            block.iter().map(move |x| (x * inverse).round_ties_even() * (largest / 127.0))
        })
        .collect()
}

#[test]
fn products_match_dequantised_weights_times_rounded_activations() {
    let mut random = Random(1);
    for dtype in DTYPES {
        let (rows, cols, m) = (40, 512, 3);
        let weights = matrix(dtype, rows, cols, &mut random);
        let x = random.activations(m * cols);
        let seen = if dtype.is_quantised() { quantised(&x) } else { x.clone() };
        let reference = dequantise(&weights);
        for isa in available() {
            let linear = Linear::pack(std::slice::from_ref(&weights), isa, Precision::Packed).unwrap();
            let out = product(&linear, isa, &x, m);
            for (i, out) in out.chunks_exact(rows).enumerate() {
                for (out, weights) in out.iter().zip(&reference) {
                    let terms =
                        weights.iter().zip(&seen[i * cols..]).map(|(&w, &x)| f64::from(w) * f64::from(x));
                    let size: f64 = terms.clone().map(f64::abs).sum();
                    let error = (f64::from(*out) - terms.sum::<f64>()).abs();
                    assert!(error <= 2e-6 * size, "{dtype} {isa:?}: {error} of {size}");
                }
            }
        }
    }
}

#[test]
fn exact_precision_multiplies_unrounded_activations() {
    let mut random = Random(2);
    for dtype in DTYPES {
        let weights = matrix(dtype, 24, 256, &mut random);
        let x = random.activations(256);
        let isa = Isa::detect();
        let linear = Linear::pack(std::slice::from_ref(&weights), isa, Precision::F32).unwrap();
        for (out, weights) in product(&linear, isa, &x, 1).iter().zip(dequantise(&weights)) {
            let expected = weights.iter().zip(&x).fold(0f32, |sum, (w, x)| w.mul_add(*x, sum));
            assert_eq!(out.to_bits(), expected.to_bits(), "{dtype}");
        }
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let mut random = Random(3);
    for dtype in DTYPES {
        let (rows, cols, m) = (200, 768, 11);
        let weights = matrix(dtype, rows, cols, &mut random);
        let x = random.activations(m * cols);
        let results: Vec<_> = available()
            .map(|isa| {
                let linear = Linear::pack(std::slice::from_ref(&weights), isa, Precision::Packed).unwrap();
                bits(&product(&linear, isa, &x, m))
            })
            .collect();
        assert!(results.iter().all(|result| *result == results[0]), "{dtype}");
    }
}

#[test]
fn a_row_is_read_back_as_its_file_means_it() {
    let mut random = Random(4);
    for dtype in DTYPES {
        let weights = matrix(dtype, 35, 512, &mut random);
        for precision in [Precision::Packed, Precision::F32] {
            let linear = Linear::pack(std::slice::from_ref(&weights), Isa::Scalar, precision).unwrap();
            for (row, expected) in dequantise(&weights).iter().enumerate() {
                let mut out = vec![f32::NAN; 512];
                linear.row_to_f32(row, &mut out);
                assert_eq!(&out, expected, "{dtype} row {row}");
            }
        }
    }
}

#[test]
fn stacked_parts_of_several_dtypes_give_what_each_gives_alone() {
    let mut random = Random(5);
    let (cols, m, isa) = (256, 9, Isa::detect());
    let dtypes = [DType::Q4_K, DType::Q4_K, DType::Q6_K, DType::F16, DType::Q4_0];
    let parts: Vec<_> =
        dtypes.iter().zip([16, 24, 33, 7, 64]).map(|(&d, rows)| matrix(d, rows, cols, &mut random)).collect();
    let x = random.activations(m * cols);
    let stacked = Linear::pack(&parts, isa, Precision::Packed).unwrap();
    let out = product(&stacked, isa, &x, m);
    let mut first = 0;
    for part in &parts {
        let alone = Linear::pack(std::slice::from_ref(part), isa, Precision::Packed).unwrap();
        for (i, alone) in product(&alone, isa, &x, m).chunks_exact(part.rows).enumerate() {
            let within = &out[i * stacked.rows() + first..][..part.rows];
            assert_eq!(bits(within), bits(alone), "{} at {first}", part.dtype);
        }
        let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
        stacked.row_to_f32(first + part.rows - 1, &mut a);
        alone.row_to_f32(part.rows - 1, &mut b);
        assert_eq!(a, b);
        first += part.rows;
    }
    assert_eq!(stacked.rows(), first);
}

#[test]
fn a_value_that_is_not_finite_shows_in_its_row_alone() {
    let mut random = Random(6);
    for dtype in [DType::Q4_1, DType::Q8_0, DType::F32] {
        let weights = matrix(dtype, 16, 64, &mut random);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random.activations(3 * 64);
            x[64 + 40] = bad;
            for isa in available() {
                let linear = Linear::pack(std::slice::from_ref(&weights), isa, Precision::Packed).unwrap();
                let out = product(&linear, isa, &x, 3);
                let finite: Vec<bool> = out.iter().map(|out| out.is_finite()).collect();
                assert!(finite[..16].iter().chain(&finite[32..]).all(|&finite| finite), "{dtype} {isa:?}");
                assert!(finite[16..32].iter().all(|&finite| !finite), "{dtype} {isa:?} hides {bad}");
            }
        }
    }
}

#[test]
fn tiny_and_zero_activations_are_zero() {
    let mut random = Random(7);
    let weights = matrix(DType::Q4_1, 16, 64, &mut random);
    for value in [0.0, -0.0, f32::MIN_POSITIVE / 4.0] {
        let linear = Linear::pack(std::slice::from_ref(&weights), Isa::detect(), Precision::Packed).unwrap();
        assert!(product(&linear, Isa::detect(), &[value; 64], 1).iter().all(|&out| out == 0.0));
    }
}

#[test]
fn matrices_that_do_not_fit_are_refused() {
    let mut random = Random(8);
    let pack = |parts: &[Matrix<'_>]| Linear::pack(parts, Isa::Scalar, Precision::Packed).unwrap_err();
    let good = matrix(DType::Q4_0, 4, 64, &mut random);
    let other = matrix(DType::Q4_0, 4, 32, &mut random);
    assert!(matches!(pack(&[]), PackError::Empty));
    assert!(matches!(pack(&[good.clone(), other]), PackError::Cols { first: 64, other: 32 }));
    let cut = Matrix { data: Cow::Borrowed(&good.data[1..]), ..good };
    assert!(matches!(pack(&[cut]), PackError::Bytes { bytes: 143, .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A row's outputs do not depend on the rows beside it, on how the tiles are split, or on who prepared
    /// what.
    #[test]
    fn a_row_gives_the_same_bits_alone_and_in_any_batch(
        seed: u64,
        dtype in proptest::sample::select(DTYPES.to_vec()),
        rows in 1..150usize,
        blocks in 1..3usize,
        m in 1..150usize,
        cut in 0.0..1.0f64,
    ) {
        let mut random = Random(seed);
        let isa = Isa::detect();
        let cols = blocks * 256 + if dtype.is_quantised() { 0 } else { 13 };
        let weights = matrix(dtype, rows, cols, &mut random);
        let x = random.activations(m * cols);
        let linear = Linear::pack(&[weights], isa, Precision::Packed).unwrap();

        let acts = Acts::new(m + 3, cols, linear.acts_format(), isa);
        let stride = rows + 5;
        let mut out = vec![f32::NAN; m * stride];
        let (row, tile) = ((m as f64 * cut) as usize, (linear.tiles() as f64 * cut) as usize);
        // SAFETY: one thread.
        unsafe {
            acts.prepare(&x[row * cols..], row..m);
            acts.prepare(&x[..row * cols], 0..row);
            let ptr = OutPtr::new(&mut out, stride);
            linear.apply(&acts, m, ptr, tile..linear.tiles());
            linear.apply(&acts, m, ptr, 0..tile);
        }
        for (i, x) in x.chunks_exact(cols).enumerate() {
            let alone = product(&linear, isa, x, 1);
            prop_assert_eq!(bits(&out[i * stride..][..rows]), bits(&alone));
        }
        for gap in out.chunks(stride).map(|row| &row[rows..]) {
            prop_assert!(gap.iter().all(|value| value.is_nan()), "wrote beyond a row");
        }
    }
}
