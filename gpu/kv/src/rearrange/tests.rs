use std::ops::Range;

use proptest::prelude::*;

use super::*;
use crate::{GROUP, Order};

/// An element of layer, head and position: of the key, or of the value.
type Contents<'a> = &'a dyn Fn(usize, usize, usize, bool, usize) -> f32;

fn layout(arrangement: Arrangement, page_size: u32, layers: u32) -> PageLayout {
    PageLayout {
        revision: "r1".to_owned(),
        name: arrangement.to_string(),
        page_size,
        layers,
        layer_bytes: arrangement.layer_bytes(page_size as usize) as u32,
    }
}

/// A page as executors write it, element after element.
fn page(arrangement: Arrangement, page_size: usize, layers: usize, contents: Contents<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    (0..layers).for_each(|layer| {
        write_layer(arrangement, page_size, &mut out, &|head, position, value, at| {
            contents(layer, head, position, value, at)
        })
    });
    out.into_iter().flat_map(|value| rounded(arrangement.dtype, value)).collect()
}

fn write_layer(
    arrangement: Arrangement,
    page_size: usize,
    out: &mut Vec<f32>,
    contents: &dyn Fn(usize, usize, bool, usize) -> f32,
) {
    let (heads, head_dim) = (0..arrangement.kv_heads as usize, arrangement.head_dim as usize);
    match arrangement.order {
        Order::Grouped => {
            for head in heads {
                for first in (0..page_size).step_by(GROUP) {
                    for element in 0..head_dim {
                        out.extend((first..first + GROUP).map(|at| contents(head, at, false, element)));
                    }
                }
                for position in 0..page_size {
                    out.extend((0..head_dim).map(|element| contents(head, position, true, element)));
                    out.resize(out.len().next_multiple_of(GROUP), 0.0);
                }
            }
        }
        Order::Rows { width } => {
            let half = width as usize / 2;
            let pairs = arrangement.turning as usize / 2;
            for value in [false, true] {
                for head in heads.clone() {
                    for position in 0..page_size {
                        let read = |elements: Range<usize>| {
                            elements.map(|element| contents(head, position, value, element))
                        };
                        let mut row = vec![0.0; 2 * half];
                        if value {
                            row.iter_mut().zip(read(0..head_dim)).for_each(|(to, from)| *to = from);
                        } else {
                            let mut rest = read(2 * pairs..head_dim);
                            let (low, high) = row.split_at_mut(half);
                            low.iter_mut().zip(read(0..pairs)).for_each(|(to, from)| *to = from);
                            high.iter_mut().zip(read(pairs..2 * pairs)).for_each(|(to, from)| *to = from);
                            low[pairs..].iter_mut().zip(&mut rest).for_each(|(to, from)| *to = from);
                            high[pairs..].iter_mut().zip(&mut rest).for_each(|(to, from)| *to = from);
                        }
                        out.extend(row);
                    }
                }
            }
        }
    }
}

fn rounded(dtype: KvDtype, value: f32) -> Vec<u8> {
    match dtype {
        KvDtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        KvDtype::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        KvDtype::F32 => value.to_le_bytes().to_vec(),
    }
}

fn shape() -> impl Strategy<Value = (Arrangement, u32, u32)> {
    let sizes = (1..4u32, 1..40u32, 0..=20u32, prop::sample::select(vec![8u32, 16, 32]), 1..3u32);
    sizes.prop_map(|(kv_heads, pairs, turning, page_size, layers)| {
        let (head_dim, turning) = (2 * pairs, 2 * turning.min(pairs));
        let order = Order::Rows { width: 128 };
        (Arrangement { order, dtype: KvDtype::F32, kv_heads, head_dim, turning }, page_size, layers)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Numbers that every type holds exactly, between any two arrangements.
    #[test]
    fn a_page_becomes_the_page_that_the_other_executor_would_have_written(
        (shape, page_size, layers) in shape(),
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        seed in any::<u32>(),
    ) {
        let all: Vec<_> = shape.all_of(page_size).collect();
        let (from, to) = (*from.get(&all), *to.get(&all));
        let contents = |layer: usize, head: usize, position: usize, value: bool, element: usize| {
            let place = [layer, head, position, usize::from(value), element].into_iter();
            let mixed = place.fold(seed, |hash, at| (hash ^ at as u32).wrapping_mul(0x0100_0193));
            (mixed >> 8 & 0x7f) as f32 / 4.0 - 15.0
        };
        let of = |arrangement| page(arrangement, page_size as usize, layers as usize, &contents);
        let [theirs, ours] = [from, to].map(|arrangement| layout(arrangement, page_size, layers));
        prop_assert_eq!(of(from).len() as u64, theirs.page_bytes());
        let rearrangement = Rearrangement::new(&theirs, &ours).unwrap();
        prop_assert!(rearrangement.page(&of(from)) == of(to), "{theirs} to {ours}");
        prop_assert_eq!(from != to, ours.others().contains(&theirs));
    }
}

fn small(dtype: KvDtype) -> Arrangement {
    Arrangement { order: Order::Grouped, dtype, kv_heads: 1, head_dim: 4, turning: 4 }
}

#[test]
fn what_the_new_type_cannot_hold_is_rounded_to_the_nearest() {
    // Halfway between two numbers of f16 and of bf16 the even one is nearest; beyond f16 lies infinity.
    let values = [1.0 + f32::EPSILON, 1.0 + 1.5 / 1024.0, 1.0 + 1.5 / 128.0, 1e6];
    let convert = |to: KvDtype| {
        let [theirs, ours] = [KvDtype::F32, to].map(|dtype| layout(small(dtype), 16, 1));
        let bytes = page(small(KvDtype::F32), 16, 1, &|_, _, _, _, element| values[element]);
        Rearrangement::new(&theirs, &ours).unwrap().page(&bytes)
    };
    let expect = |dtype: KvDtype, expected: [f32; 4]| {
        let wanted = page(small(dtype), 16, 1, &|_, _, _, _, element| expected[element]);
        assert!(convert(dtype) == wanted, "{}", dtype.name());
    };
    expect(KvDtype::F32, values);
    expect(KvDtype::F16, [1.0, 1.0 + 2.0 / 1024.0, 1.0 + 12.0 / 1024.0, f32::INFINITY]);
    expect(KvDtype::Bf16, [1.0, 1.0, 1.0 + 2.0 / 128.0, 999_424.0]);
}

#[test]
fn pages_of_other_contents_are_not_made() {
    let ours = layout(small(KvDtype::F16), 16, 2);
    let mut theirs = vec![
        PageLayout { revision: "r2".to_owned(), ..ours.clone() },
        PageLayout { name: "sim".to_owned(), ..ours.clone() },
        layout(small(KvDtype::F16), 32, 2),
        layout(small(KvDtype::F16), 16, 1),
    ];
    let changes: [fn(&mut Arrangement); 3] = [
        |arrangement| arrangement.kv_heads = 2,
        |arrangement| arrangement.head_dim = 6,
        |arrangement| arrangement.turning = 2,
    ];
    for change in changes {
        let mut other = small(KvDtype::Bf16);
        change(&mut other);
        theirs.push(layout(other, 16, 2));
    }
    for theirs in theirs {
        assert!(Rearrangement::new(&theirs, &ours).is_none(), "{theirs}");
        assert!(!ours.others().contains(&theirs), "{theirs}");
    }
}
