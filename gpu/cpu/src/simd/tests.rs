use super::*;
use crate::Isa;

/// Runs every operation over `x` and `y` and returns the bits of all results.
#[inline(always)]
unsafe fn all_operations<V: Simd>(x: &[f32], y: &[f32], out: &mut Vec<u32>) {
    // SAFETY: the slices have whole vectors and the machine has the instructions.
    unsafe {
        let mut lanes = [0.0f32; LANES];
        for (x, y) in x.chunks_exact(LANES).zip(y.chunks_exact(LANES)) {
            let (a, b) = (V::load(x.as_ptr()), V::load(y.as_ptr()));
            let vectors = [
                V::add(a, b),
                V::sub(a, b),
                V::mul(a, b),
                V::div(a, b),
                V::fma(a, b, a),
                V::fnma(a, b, a),
                V::max(a, b),
                V::select_less(a, b, V::splat(1.0), a),
                V::keep(a, 3, 11, -5.0),
                V::keep(a, 0, 16, -5.0),
                V::keep(a, 9, 9, -5.0),
                V::load_first(x.as_ptr(), 7),
                V::load_f16(x.as_ptr().cast()),
                V::load_bf16(x.as_ptr().cast()),
                exp::<V>(a),
                silu::<V>(a),
            ];
            for vector in vectors {
                V::store(vector, lanes.as_mut_ptr());
                // A NaN's payload may differ.
                out.extend(lanes.iter().map(|lane| if lane.is_nan() { 1 } else { lane.to_bits() }));
            }
            V::store_first(b, lanes.as_mut_ptr(), 5);
            out.extend(lanes.iter().map(|lane| if lane.is_nan() { 1 } else { lane.to_bits() }));
            let mut halves = [0u16; LANES];
            V::store_f16(b, halves.as_mut_ptr());
            out.extend(halves.map(u32::from));
            out.push(V::first(a).to_bits());
            out.push(V::sum(a).to_bits());
            out.push(V::largest(a).to_bits());
        }
    }
}

kernel!(fn run = all_operations(x: &[f32], y: &[f32], out: &mut Vec<u32>));

#[test]
fn all_instruction_sets_give_the_same_bits() {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let unit = (state >> 40) as f32 / (1u64 << 24) as f32;
        (unit - 0.5) * 10f32.powi((state >> 8) as i32 % 6)
    };
    let x: Vec<f32> = (0..LANES * 500).map(|_| next()).collect();
    let y: Vec<f32> = (0..LANES * 500).map(|_| next()).collect();
    let results: Vec<Vec<u32>> = Isa::ALL
        .into_iter()
        .filter(|isa| isa.is_available())
        .map(|isa| {
            let mut out = Vec::new();
            // SAFETY: the machine supports `isa`.
            unsafe { run(isa, &x, &y, &mut out) };
            out
        })
        .collect();
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

#[inline(always)]
unsafe fn exp_all<V: Simd>(x: &[f32], out: &mut [f32]) {
    for (x, out) in x.chunks_exact(LANES).zip(out.chunks_exact_mut(LANES)) {
        // SAFETY: whole vectors; the machine has the instructions.
        unsafe { V::store(exp::<V>(V::load(x.as_ptr())), out.as_mut_ptr()) };
    }
}

kernel!(fn exp_slice = exp_all(x: &[f32], out: &mut [f32]));

#[test]
fn exponential_is_accurate_and_zero_far_below() {
    let x: Vec<f32> =
        (0..LANES * 10_000).map(|i| -87.0 + 175.0 * i as f32 / (LANES * 10_000) as f32).collect();
    let mut y = vec![0.0; x.len()];
    // SAFETY: the machine supports what was detected.
    unsafe { exp_slice(Isa::detect(), &x, &mut y) };
    for (&x, &y) in x.iter().zip(&y) {
        let exact = f64::from(x).exp();
        assert!((f64::from(y) - exact).abs() < 3e-7 * exact, "exp({x}) = {y}");
    }
    let far = [f32::NEG_INFINITY, -87.1, -1e9, -100.0].repeat(4);
    let mut y = vec![1.0; LANES];
    // SAFETY: as above.
    unsafe { exp_slice(Isa::detect(), &far, &mut y) };
    assert_eq!(y, [0.0; LANES]);
}
