use half::{bf16, f16};
use kv::{PageLayout, Rearrangement};

use super::*;
use crate::simd::Scalar;

const LAYERS: usize = 2;
const PAGE_SIZE: usize = 32;

fn shape(dtype: KvDtype, head_dim: usize) -> PageShape {
    PageShape { page_size: PAGE_SIZE, layers: LAYERS, kv_heads: 3, head_dim, turning: head_dim, dtype }
}

/// A small number that says where it is.
fn number(layer: usize, head: usize, position: usize, element: usize) -> f32 {
    ((layer * 91 + head * 57 + position * 29 + element * 3) % 120) as f32 / 8.0
}

/// Stores keys and, negative, values at every position of page 1, whose neighbours stay zero.
fn store<E: Element>(pool: &KvPool, head_dim: usize) {
    let padded = head_dim.next_multiple_of(LANES);
    for layer in 0..LAYERS {
        for head in 0..pool.shape().kv_heads {
            let kv = pool.head::<E>(layer, head);
            for position in 0..PAGE_SIZE {
                let mut key = vec![0.0; padded];
                let mut value = vec![0.0; padded];
                for element in 0..head_dim {
                    key[element] = number(layer, head, position, element);
                    value[element] = -key[element];
                }
                // SAFETY: plain Rust needs no instructions, and nobody else uses the pool.
                unsafe { kv.store::<Scalar>(&[1], position, &key, &value) };
            }
        }
    }
}

fn layout(arrangement: Arrangement) -> PageLayout {
    PageLayout {
        revision: "r1".to_owned(),
        name: arrangement.to_string(),
        page_size: PAGE_SIZE as u32,
        layers: LAYERS as u32,
        layer_bytes: arrangement.layer_bytes(PAGE_SIZE) as u32,
    }
}

/// What is stored as plain rows of f32, `[layer][key, value][head][position][64]`.
fn rows(pool: &KvPool) -> Vec<f32> {
    let ours = pool.shape().arrangement();
    let rows = Arrangement { order: Order::Rows { width: 64 }, dtype: KvDtype::F32, ..ours };
    assert_eq!(layout(ours).page_bytes(), pool.shape().page_bytes() as u64);
    let rearrangement = Rearrangement::new(&layout(ours), &layout(rows)).unwrap();
    // SAFETY: nobody else uses the pool.
    let bytes = rearrangement.page(unsafe { pool.page_mut(1) });
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

#[test]
fn stored_keys_and_values_are_where_the_layout_says() {
    for (dtype, head_dim) in [(KvDtype::F16, 64), (KvDtype::Bf16, 64), (KvDtype::F32, 64), (KvDtype::F16, 20)]
    {
        let pool = KvPool::new(shape(dtype, head_dim), 3).unwrap();
        match dtype {
            KvDtype::F16 => store::<f16>(&pool, head_dim),
            KvDtype::Bf16 => store::<bf16>(&pool, head_dim),
            KvDtype::F32 => store::<f32>(&pool, head_dim),
        }
        let rows = rows(&pool);
        let kv_heads = pool.shape().kv_heads;
        for (number_of_row, row) in rows.chunks_exact(64).enumerate() {
            let (rest, position) = (number_of_row / PAGE_SIZE, number_of_row % PAGE_SIZE);
            let (rest, head) = (rest / kv_heads, rest % kv_heads);
            let (layer, value) = (rest / 2, rest % 2 == 1);
            for element in 0..head_dim {
                let stored = number(layer, head, position, element);
                // Halves of a narrow key turn together, so they lie half a row apart.
                let half = head_dim / 2;
                let place = if value || element < half { element } else { 32 + element - half };
                assert_eq!(row[place], if value { -stored } else { stored }, "{dtype:?} {head_dim}");
            }
        }
    }
}
