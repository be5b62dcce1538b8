use std::collections::VecDeque;

use messages::{InstanceId, RequestId, load::Started};

use super::{Decision, Outcome, Shortlist};

/// Decisions that can be read back.
pub const KEPT: usize = 4096;

/// The last decisions of this router, by number.
#[derive(Debug)]
pub struct Ledger {
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    decision: Decision,
    /// Its candidates, if they are not written out.
    shortlist: Option<Shortlist>,
}

impl Default for Ledger {
    fn default() -> Self {
        // Growing would move all decisions while one waits to be entered.
        Self { entries: VecDeque::with_capacity(KEPT) }
    }
}

impl Ledger {
    /// Keeps a decision; its candidates may still be in a shortlist.
    pub fn enter(&mut self, decision: Decision, shortlist: Option<Shortlist>) {
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        // Numbers are drawn before decisions are entered, by many tasks: they may cross.
        let number = decision.number;
        let later = self.entries.iter().rev().take_while(|known| known.decision.number > number).count();
        self.entries.insert(self.entries.len() - later, Entry { decision, shortlist });
    }

    pub fn close(&mut self, number: u64, outcome: Outcome) {
        if let Some(decision) = self.find(number) {
            decision.outcome = outcome;
        }
    }

    /// Takes in what an engine found cached; the decision it was about.
    pub fn started(&mut self, engine: &InstanceId, started: &Started) -> Option<&Decision> {
        let decision = self.find(started.number).filter(|decision| decision.chosen == *engine)?;
        decision.cached_tokens = Some(started.cached_tokens);
        Some(decision)
    }

    /// Every decision about a request, by bus id or by the client's label, oldest first.
    pub fn about(&self, name: &str) -> Vec<Decision> {
        let id = name.parse::<RequestId>().ok();
        let is_it = |entry: &&Entry| entry.decision.about.is_named(name, id);
        self.entries.iter().filter(is_it).map(Entry::write_out).collect()
    }

    fn find(&mut self, number: u64) -> Option<&mut Decision> {
        let at = self.entries.binary_search_by_key(&number, |entry| entry.decision.number).ok()?;
        self.entries.get_mut(at).map(|entry| &mut entry.decision)
    }
}

impl Entry {
    fn write_out(&self) -> Decision {
        let mut decision = self.decision.clone();
        if let Some(shortlist) = &self.shortlist {
            decision.candidates = shortlist.write_out(&decision.weights, &decision.demand);
            decision.left_out = shortlist.left_out;
        }
        decision
    }
}
