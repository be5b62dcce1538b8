use std::collections::{HashSet, VecDeque};

use proptest::prelude::*;

use super::*;

const ENGINES: [&str; 3] = ["a", "b", "c"];
const CONVERSATIONS: u64 = 4;
const LENGTH: usize = 8;

/// Blocks of a conversation: all begin alike.
fn conversation(which: u64) -> Vec<u64> {
    let block = |depth| if depth < 3 { depth + 1 } else { 100 * (which + 1) + depth };
    (0..LENGTH as u64).map(block).collect()
}

/// An engine's cache, its messages under way, and its answer to who asked for the whole cache.
#[derive(Default)]
struct Engine {
    alive: bool,
    epoch: u64,
    next: u64,
    reports: u64,
    blocks: HashSet<u64>,
    under_way: VecDeque<KvEvents>,
    answer: Option<KvSnapshot>,
}

impl Engine {
    fn start(&mut self) {
        let (under_way, answer) = (std::mem::take(&mut self.under_way), self.answer.take());
        *self = Self { alive: true, epoch: self.epoch + 1, under_way, answer, ..Self::default() };
    }

    fn send(&mut self, name: &str, change: KvChange) {
        let (instance, epoch, number) = (id(name), self.epoch, self.next);
        self.next += 1;
        self.under_way.push_back(KvEvents { instance, epoch, number, changes: vec![change] });
    }

    fn held(&self, which: u64) -> usize {
        conversation(which).iter().take_while(|block| self.blocks.contains(block)).count()
    }

    /// Stores the next block of a conversation.
    fn grow(&mut self, name: &str, which: u64) {
        let Some(next) = conversation(which).get(self.held(which)).copied() else { return };
        self.blocks.insert(next);
        self.send(name, KvChange::Stored([next].into_iter().collect()));
    }

    /// Removes the last block held of a conversation, unless another goes on from it.
    fn shrink(&mut self, name: &str, which: u64) {
        let held = self.held(which);
        let goes_on = |other: u64| {
            self.held(other) > held && conversation(other)[held - 1] == conversation(which)[held - 1]
        };
        if held == 0 || (0..CONVERSATIONS).any(goes_on) {
            return;
        }
        let last = conversation(which)[held - 1];
        self.blocks.remove(&last);
        self.send(name, KvChange::Removed([last].into_iter().collect()));
    }

    fn clear(&mut self, name: &str) {
        self.blocks.clear();
        self.send(name, KvChange::Cleared);
    }
}

#[derive(Debug, Clone)]
enum Act {
    Grow(u64),
    Shrink(u64),
    Clear,
    /// It goes, or comes with nothing in its cache.
    ComeOrGo,
    /// The oldest message under way arrives, is lost, arrives twice, or is overtaken by the next.
    Arrive,
    Lose,
    Repeat,
    Overtake,
    Report,
    /// It answers with its cache, if that is asked for.
    Answer,
    /// What it answered arrives.
    AnswerArrives,
}

fn act() -> impl Strategy<Value = (usize, Act)> {
    let act = prop_oneof![
        8 => (0..CONVERSATIONS).prop_map(Act::Grow),
        3 => (0..CONVERSATIONS).prop_map(Act::Shrink),
        1 => Just(Act::Clear),
        1 => Just(Act::ComeOrGo),
        9 => Just(Act::Arrive),
        1 => Just(Act::Lose),
        1 => Just(Act::Repeat),
        1 => Just(Act::Overtake),
        2 => Just(Act::Report),
        3 => Just(Act::Answer),
        3 => Just(Act::AnswerArrives),
    ];
    (0..ENGINES.len(), act)
}

/// A fleet and the engines that it follows.
struct World {
    fleet: Fleet,
    engines: [Engine; 3],
}

impl World {
    fn new() -> Self {
        let mut world = Self { fleet: Fleet::new(None), engines: Default::default() };
        world.engines.iter_mut().for_each(Engine::start);
        world.sync();
        world
    }

    fn sync(&mut self) {
        let alive = ENGINES.iter().zip(&self.engines).filter(|(_, engine)| engine.alive);
        let live: Vec<Arc<Lease>> = alive.map(|(name, _)| lease(name)).collect();
        self.fleet.sync(&live);
    }

    fn act(&mut self, at: usize, act: Act) {
        let (name, engine) = (ENGINES[at], &mut self.engines[at]);
        match act {
            Act::Grow(which) if engine.alive => engine.grow(name, which),
            Act::Shrink(which) if engine.alive => engine.shrink(name, which),
            Act::Clear if engine.alive => engine.clear(name),
            Act::Grow(_) | Act::Shrink(_) | Act::Clear => {}
            Act::ComeOrGo => {
                if engine.alive {
                    engine.alive = false;
                } else {
                    engine.start();
                }
                self.sync();
            }
            Act::Arrive => {
                if let Some(events) = engine.under_way.pop_front() {
                    self.fleet.heard_kv(events);
                }
            }
            Act::Lose => drop(engine.under_way.pop_front()),
            Act::Repeat => {
                if let Some(events) = engine.under_way.front() {
                    self.fleet.heard_kv(events.clone());
                }
            }
            Act::Overtake => {
                if engine.under_way.len() > 1 {
                    engine.under_way.swap(0, 1);
                }
            }
            Act::Report => {
                engine.reports += 1;
                let report = Load { kv: Some((engine.epoch, engine.next)), ..load(name, engine.reports, 0) };
                self.fleet.heard_load(report, &id("router-1"), Instant::now());
            }
            Act::Answer => self.answer(at),
            Act::AnswerArrives => self.answer_arrives(at),
        }
    }

    fn answer(&mut self, at: usize) {
        let (name, engine) = (ENGINES[at], &mut self.engines[at]);
        if self.fleet.ask_for(&id(name)).is_some() {
            let blocks = engine.blocks.iter().copied().collect();
            let (epoch, next) = (engine.epoch, engine.next);
            engine.answer = Some(KvSnapshot { instance: id(name), epoch, next, blocks });
        }
    }

    fn answer_arrives(&mut self, at: usize) {
        let Some(snapshot) = self.engines[at].answer.take() else { return };
        self.fleet.take_snapshot(&snapshot);
        if let Some(member) = self.fleet.member_mut(&snapshot.instance) {
            member.asked = false;
        }
    }

    /// Everything under way arrives, and what was lost is noticed.
    fn settle(&mut self) {
        for at in 0..ENGINES.len() {
            while !self.engines[at].under_way.is_empty() {
                self.act(at, Act::Arrive);
            }
            self.act(at, Act::AnswerArrives);
            // What the first report names is due by the second; an answer may cross with messages of another epoch.
            for act in [Act::Report, Act::Report] {
                self.act(at, act);
            }
            for act in [Act::Answer, Act::AnswerArrives, Act::Answer, Act::AnswerArrives] {
                self.act(at, act);
            }
        }
    }
}

proptest! {
    /// Whatever is lost, doubled or overtaken, whoever comes and goes: in the end the index finds of any prompt at each
    /// engine what a look into its cache would.
    #[test]
    fn the_index_ends_equal_to_the_caches(acts in proptest::collection::vec(act(), 1..400)) {
        let mut world = World::new();
        acts.into_iter().for_each(|(at, act)| world.act(at, act));
        world.settle();
        prop_assert_eq!(world.fleet.unknown(), 0);
        for which in 0..CONVERSATIONS {
            let alive = ENGINES.iter().zip(&world.engines).filter(|(_, engine)| engine.alive);
            let expected: HashSet<(String, u32)> =
                alive.map(|(name, engine)| ((*name).to_owned(), engine.held(which) as u32)).collect();
            let found: HashSet<(String, u32)> =
                overlaps(&mut world.fleet, &conversation(which)).into_iter().collect();
            prop_assert_eq!(found, expected);
        }
    }
}
