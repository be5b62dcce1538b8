use std::collections::{HashSet, VecDeque};

use messages::kv::KvChange;
use proptest::prelude::*;

use super::*;

/// An engine's cache and the messages it sends.
#[derive(Clone)]
struct Engine {
    epoch: u64,
    next: u64,
    blocks: HashSet<u64>,
}

impl Engine {
    fn send(&mut self, changes: Vec<KvChange>) -> KvEvents {
        changes.iter().for_each(|change| apply(change, &mut self.blocks));
        self.next += 1;
        KvEvents { instance: "decode-1".parse().unwrap(), epoch: self.epoch, number: self.next - 1, changes }
    }
}

fn apply(change: &KvChange, blocks: &mut HashSet<u64>) {
    match change {
        KvChange::Stored(ids) => blocks.extend(ids.iter()),
        KvChange::Removed(ids) => blocks.retain(|block| !ids.iter().any(|id| id == *block)),
        KvChange::Cleared => blocks.clear(),
    }
}

fn hear(follower: &mut Follower, events: KvEvents, index: &mut HashSet<u64>) {
    if let Heard::Apply(events) = follower.hear(events) {
        events.changes.iter().for_each(|change| apply(change, index));
    }
}

fn take_snapshot(follower: &mut Follower, snapshot: Engine, index: &mut HashSet<u64>) {
    *index = snapshot.blocks;
    for events in follower.resume(snapshot.epoch, snapshot.next) {
        events.changes.iter().for_each(|change| apply(change, index));
    }
}

#[derive(Debug, Clone)]
enum Act {
    Store(u64),
    Remove(u64),
    Clear,
    Restart,
    /// The oldest message under way arrives, is lost, arrives twice, or is overtaken by the next.
    Arrive,
    Lose,
    Repeat,
    Overtake,
    /// The engine answers who has asked for its cache, and what it answered arrives.
    Answer,
    AnswerArrives,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (0..40u64).prop_map(Act::Store),
        3 => (0..40u64).prop_map(Act::Remove),
        1 => Just(Act::Clear),
        1 => Just(Act::Restart),
        8 => Just(Act::Arrive),
        1 => Just(Act::Lose),
        1 => Just(Act::Repeat),
        1 => Just(Act::Overtake),
        2 => Just(Act::Answer),
        2 => Just(Act::AnswerArrives),
    ]
}

proptest! {
    /// Whatever is lost, doubled or overtaken: a follower that is not lost has what the engine had at that number,
    /// and once all has arrived and a load report has told the last number, snapshots make it equal.
    #[test]
    fn a_follower_ends_equal_to_its_engine(acts in proptest::collection::vec(act(), 1..200)) {
        let mut engine = Engine { epoch: 1, next: 0, blocks: HashSet::new() };
        let (mut follower, mut index) = (Follower::default(), HashSet::new());
        let mut under_way: VecDeque<KvEvents> = VecDeque::new();
        let mut answer: Option<Engine> = None;
        for act in acts {
            match act {
                Act::Store(id) => under_way.push_back(engine.send(vec![KvChange::Stored([id].into_iter().collect())])),
                Act::Remove(id) => under_way.push_back(engine.send(vec![KvChange::Removed([id].into_iter().collect())])),
                Act::Clear => under_way.push_back(engine.send(vec![KvChange::Cleared])),
                Act::Restart => {
                    engine = Engine { epoch: engine.epoch + 1, next: 0, blocks: HashSet::new() };
                }
                Act::Arrive => if let Some(events) = under_way.pop_front() {
                    hear(&mut follower, events, &mut index);
                },
                Act::Lose => drop(under_way.pop_front()),
                Act::Repeat => if let Some(events) = under_way.front() {
                    hear(&mut follower, events.clone(), &mut index);
                },
                Act::Overtake => if under_way.len() > 1 {
                    under_way.swap(0, 1);
                },
                Act::Answer => if follower.is_lost() && answer.is_none() {
                    answer = Some(engine.clone());
                },
                Act::AnswerArrives => if let Some(snapshot) = answer.take() {
                    take_snapshot(&mut follower, snapshot, &mut index);
                },
            }
        }
        for events in under_way {
            hear(&mut follower, events, &mut index);
        }
        if let Some(snapshot) = answer {
            take_snapshot(&mut follower, snapshot, &mut index);
        }
        // What the first report names is due by the second.
        follower.told(engine.epoch, engine.next);
        follower.told(engine.epoch, engine.next);
        // One answer may cross with messages of another epoch; the one after it cannot.
        for _ in 0..2 {
            if follower.is_lost() {
                take_snapshot(&mut follower, engine.clone(), &mut index);
            }
        }
        prop_assert!(!follower.is_lost());
        prop_assert_eq!(index, engine.blocks);
    }
}

fn message(epoch: u64, number: u64) -> KvEvents {
    KvEvents { instance: "decode-1".parse().unwrap(), epoch, number, changes: Vec::new() }
}

#[test]
fn what_came_while_the_snapshot_was_on_its_way_is_applied_after_it() {
    let mut follower = Follower::default();
    for number in [3, 4, 5] {
        assert_eq!(follower.hear(message(1, number)), Heard::Waits);
    }
    let numbers: Vec<u64> = follower.resume(1, 4).iter().map(|events| events.number).collect();
    assert_eq!(numbers, [4, 5], "3 is in the snapshot");
    assert_eq!(follower.hear(message(1, 6)), Heard::Apply(message(1, 6)));
    assert_eq!(follower.hear(message(1, 6)), Heard::Known);
}

#[test]
fn memory_is_bounded_while_no_snapshot_comes() {
    let mut follower = Follower::default();
    (0..5000).for_each(|number| drop(follower.hear(message(1, number))));
    assert_eq!(follower.waiting.len(), WAITING_AT_MOST);
    follower.resume(1, 10);
    assert!(follower.is_lost(), "what was dropped is missing");
}
