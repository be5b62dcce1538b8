mod following;

use messages::Role;

use super::*;
use crate::fixtures::{id, load};

fn lease(instance: &str) -> Arc<Lease> {
    crate::fixtures::lease(Role::Decode, instance)
}

fn fleet_of(names: &[&str]) -> Fleet {
    let mut fleet = Fleet::default();
    let live: Vec<Arc<Lease>> = names.iter().map(|name| lease(name)).collect();
    assert!(fleet.sync(&live));
    fleet
}

fn snapshot(instance: &str, next: u64, blocks: &[u64]) -> KvSnapshot {
    KvSnapshot { instance: id(instance), epoch: 1, next, blocks: blocks.iter().copied().collect() }
}

fn stored(instance: &str, number: u64, blocks: &[u64]) -> KvEvents {
    let changes = vec![KvChange::Stored(blocks.iter().copied().collect())];
    KvEvents { instance: id(instance), epoch: 1, number, changes }
}

fn overlaps(fleet: &mut Fleet, chain: &[u64]) -> Vec<(String, u32)> {
    fleet.look_up(&[Chain { page_size: 16, blocks: chain.to_vec() }]);
    let members = fleet.members().iter().zip(fleet.candidates(None));
    members.map(|(member, seen)| (member.instance().to_string(), seen.overlap_blocks)).collect()
}

#[test]
fn a_newcomers_cache_is_asked_for_once_and_then_followed() {
    let mut fleet = fleet_of(&["a"]);
    assert_eq!(fleet.ask_for_all().len(), 1);
    assert!(fleet.ask_for(&id("a")).is_none(), "it is under way");
    fleet.heard_kv(stored("a", 7, &[3]));
    fleet.take_snapshot(&snapshot("a", 7, &[1, 2]));
    assert_eq!(overlaps(&mut fleet, &[1, 2, 3]), [("a".to_owned(), 3)]);
}

#[test]
fn a_gap_keeps_what_is_known_and_asks_again() {
    let mut fleet = fleet_of(&["a"]);
    fleet.take_snapshot(&snapshot("a", 0, &[1, 2]));
    fleet.heard_kv(stored("a", 1, &[3]));
    assert_eq!(overlaps(&mut fleet, &[1, 2, 3]), [("a".to_owned(), 2)]);
    assert!(fleet.ask_for(&id("a")).is_some());
}

#[test]
fn a_load_report_shows_that_the_last_message_was_lost() {
    let mut fleet = fleet_of(&["a"]);
    fleet.take_snapshot(&snapshot("a", 4, &[1]));
    let (me, now) = (id("router-1"), Instant::now());
    fleet.heard_load(Load { kv: Some((1, 4)), ..load("a", 1, 0) }, &me, now);
    assert!(fleet.ask_for(&id("a")).is_none());
    fleet.heard_load(Load { kv: Some((1, 5)), ..load("a", 2, 0) }, &me, now);
    assert!(fleet.ask_for(&id("a")).is_none(), "it may still be on its way");
    fleet.heard_load(Load { kv: Some((1, 5)), ..load("a", 3, 0) }, &me, now);
    assert!(fleet.ask_for(&id("a")).is_some());
}

#[test]
fn the_dead_are_forgotten_at_once_and_the_others_keep_their_blocks() {
    let mut fleet = fleet_of(&["a", "b", "c"]);
    fleet.take_snapshot(&snapshot("a", 0, &[1]));
    fleet.take_snapshot(&snapshot("c", 0, &[1, 2]));
    assert!(fleet.sync(&[lease("b"), lease("c")]));
    assert_eq!(overlaps(&mut fleet, &[1, 2]), [("b".to_owned(), 0), ("c".to_owned(), 2)]);
    assert!(!fleet.sync(&[lease("b"), lease("c")]));
}

#[test]
fn a_cleared_cache_matches_nothing() {
    let mut fleet = fleet_of(&["a"]);
    fleet.take_snapshot(&snapshot("a", 0, &[1, 2]));
    let changes = vec![KvChange::Cleared, KvChange::Stored([1].into_iter().collect())];
    fleet.heard_kv(KvEvents { instance: id("a"), epoch: 1, number: 0, changes });
    assert_eq!(overlaps(&mut fleet, &[1, 2]), [("a".to_owned(), 1)]);
}

#[test]
fn a_full_engine_has_no_room() {
    let mut fleet = fleet_of(&["a"]);
    assert_eq!(fleet.members()[0].room(1.25), u32::MAX, "nothing is known of it yet");
    fleet.heard_load(load("a", 1, 7), &id("router-1"), Instant::now());
    assert_eq!(fleet.members()[0].room(1.25), 3);
    fleet.heard_load(Load { max_queued: 1, ..load("a", 2, 7) }, &id("router-1"), Instant::now());
    assert_eq!(fleet.members()[0].room(1.25), 2, "it lets one wait and no more");
}

#[test]
fn the_lease_says_how_much_an_engine_takes_before_its_first_report() {
    let mut fleet = Fleet::new(None);
    let told = Lease { max_running: Some(4), max_queued: Some(9), ..Lease::clone(&lease("a")) };
    fleet.sync(&[Arc::new(told)]);
    assert_eq!(fleet.members()[0].room(1.25), 5);
}

#[test]
fn members_of_each_page_size_are_found_by_their_own_blocks() {
    let mut fleet = Fleet::default();
    let paged =
        |name: &str, tokens| Arc::new(Lease { page_size: Some(tokens), ..Lease::clone(&lease(name)) });
    fleet.sync(&[paged("large", 32), paged("small", 16)]);
    fleet.take_snapshot(&snapshot("small", 0, &[1, 2, 3]));
    fleet.take_snapshot(&snapshot("large", 0, &[71, 72]));
    fleet.heard_load(Load { blocks_used: 10, ..load("large", 1, 0) }, &id("router-1"), Instant::now());
    let small = Chain { page_size: 16, blocks: vec![1, 2, 3, 4, 5] };
    let large = Chain { page_size: 32, blocks: vec![71, 72] };
    fleet.look_up(&[small.clone(), large]);
    let seen = |fleet: &Fleet, name: &str| {
        let place = fleet.place(&id(name)).unwrap();
        (fleet.candidate(place, None).overlap_blocks, fleet.cached_tokens(place))
    };
    assert_eq!(fleet.page_size(), 16);
    assert_eq!((seen(&fleet, "small"), seen(&fleet, "large")), ((3, 48), (4, 64)));
    let place = fleet.place(&id("large")).unwrap();
    assert_eq!(fleet.candidate(place, None).used_blocks, 20, "counted in the blocks of all");
    let leases = fleet.one_of_each_page_size();
    assert_eq!(leases.iter().map(|lease| lease.page_size).collect::<Vec<_>>(), [Some(16), Some(32)]);

    // A page size that came after the prompt was looked at.
    fleet.look_up(&[small]);
    assert_eq!((seen(&fleet, "small"), seen(&fleet, "large")), ((3, 48), (0, 0)));
    fleet.sync(&[paged("large", 32)]);
    assert_eq!(fleet.page_size(), 32);
}
