use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Op {
    Allocate,
    Retain(usize),
    Release(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Allocate),
        2 => any::<usize>().prop_map(Op::Retain),
        4 => any::<usize>().prop_map(Op::Release),
    ]
}

proptest! {
    #[test]
    fn counts_as_a_multiset_does(capacity in 0_u32..12, ops in prop::collection::vec(op(), 0..200)) {
        let mut pool = PagePool::new(capacity);
        let mut model: BTreeMap<PageId, u32> = BTreeMap::new();
        for op in ops {
            let held: Vec<PageId> = model.keys().copied().collect();
            match op {
                Op::Allocate => match pool.allocate() {
                    Some(page) => prop_assert!(model.insert(page, 1).is_none(), "handed out a page in use"),
                    None => prop_assert_eq!(model.len() as u32, capacity),
                },
                Op::Retain(at) if !held.is_empty() => {
                    let page = held[at % held.len()];
                    pool.retain(page);
                    *model.get_mut(&page).unwrap() += 1;
                }
                Op::Release(at) if !held.is_empty() => {
                    let page = held[at % held.len()];
                    let left = model.get_mut(&page).unwrap();
                    *left -= 1;
                    prop_assert_eq!(pool.release(page), *left);
                    if *left == 0 {
                        model.remove(&page);
                    }
                }
                Op::Retain(_) | Op::Release(_) => {}
            }
            prop_assert_eq!(pool.check(), Ok(()));
            prop_assert_eq!(pool.used(), model.len() as u32);
            prop_assert!(model.iter().all(|(page, references)| pool.references(*page) == *references));
        }
    }
}

#[test]
#[should_panic(expected = "released the free page 0")]
fn a_page_cannot_be_freed_twice() {
    let mut pool = PagePool::new(1);
    let page = pool.allocate().unwrap();
    pool.release(page);
    pool.release(page);
}

#[test]
#[should_panic(expected = "retained the free page 0")]
fn a_free_page_cannot_be_shared() {
    PagePool::new(1).retain(PageId(0));
}
