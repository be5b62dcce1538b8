use super::*;

fn claim(tenant: &str, tokens: u32) -> Claim {
    Claim { priority: 0, tenant: tenant.to_owned(), tokens }
}

fn fill(queue: &mut Queue<String>, tenant: &str, tokens: u32, count: usize) {
    for n in 0..count {
        queue.enter(&claim(tenant, tokens), format!("{tenant}{n}"));
    }
}

#[test]
fn a_flood_of_one_tenant_does_not_keep_another_waiting() {
    let mut queue = Queue::new(100);
    fill(&mut queue, "loud", 1000, 50);
    fill(&mut queue, "calm", 1000, 2);
    let first: Vec<String> = (0..6).filter_map(|_| queue.pop()).collect();
    assert!(first.contains(&"calm0".to_owned()) && first.contains(&"calm1".to_owned()), "{first:?}");
}

#[test]
fn shares_are_of_tokens_not_of_requests() {
    let mut queue = Queue::new(1000);
    fill(&mut queue, "long", 4000, 100);
    fill(&mut queue, "short", 500, 400);
    let served: Vec<String> = (0..180).filter_map(|_| queue.pop()).collect();
    let tokens =
        |tenant: &str, each: usize| served.iter().filter(|name| name.starts_with(tenant)).count() * each;
    let (long, short) = (tokens("long", 4000), tokens("short", 500));
    assert!(long.abs_diff(short) <= 8000, "{long} against {short}");
}

#[test]
fn tenants_with_small_requests_alternate() {
    let mut queue = Queue::new(100);
    fill(&mut queue, "a", 80, 20);
    fill(&mut queue, "b", 80, 2);
    let first: Vec<String> = (0..5).filter_map(|_| queue.pop()).collect();
    assert!(first.contains(&"b0".to_owned()) && first.contains(&"b1".to_owned()), "{first:?}");
}

#[test]
fn higher_priorities_go_first_and_a_tenants_own_stay_in_order() {
    let mut queue = Queue::new(10);
    fill(&mut queue, "a", 100, 2);
    queue.enter(&Claim { priority: 5, ..claim("b", 100) }, "urgent".to_owned());
    assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<Vec<_>>(), ["urgent", "a0", "a1"]);
    assert!(queue.is_empty());
}

#[test]
fn a_full_queue_refuses_whoever_has_most_in_it() {
    let mut queue = Queue::new(4);
    fill(&mut queue, "loud", 10, 4);
    assert_eq!(queue.enter(&claim("loud", 10), "more".to_owned()), Entered::Full("more".to_owned()));
    let entered = queue.enter(&claim("calm", 10), "calm0".to_owned());
    assert!(matches!(&entered, Entered::WaitsInsteadOf(_, evicted) if evicted == "loud3"), "{entered:?}");
    let urgent = Claim { priority: 1, ..claim("loud", 10) };
    assert!(matches!(queue.enter(&urgent, "urgent".to_owned()), Entered::WaitsInsteadOf(..)));
    assert_eq!(queue.len(), 4);
}

#[test]
fn who_leaves_is_not_served() {
    let mut queue = Queue::new(4);
    let Entered::Waits(place) = queue.enter(&claim("a", 10), 1) else { panic!("there is room") };
    queue.enter(&claim("a", 10), 2);
    assert_eq!(queue.leave(&claim("a", 10), place), Some(1));
    assert_eq!(queue.leave(&claim("a", 10), place), None);
    assert_eq!((queue.pop(), queue.pop()), (Some(2), None));
}
