use std::collections::VecDeque;

use messages::{InstanceId, RequestId, load::Started};

use super::{Decision, Outcome, Shortlist};

/// Decisions that can be read back.
pub const KEPT: usize = 4096;

/// Tokens that a cache was predicted to hold of a prompt, that it did hold, and of the prompt in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    pub predicted: u32,
    pub found: u32,
    pub prompt: u32,
}

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

    /// Takes in what an engine or a prefill instance found cached; `None` if that was not about a decision known here.
    pub fn started(&mut self, engine: &InstanceId, started: &Started) -> Option<Checked> {
        let (decision, found) = (self.find(started.number)?, started.cached_tokens);
        let predicted = if decision.chosen == *engine {
            decision.cached_tokens = Some(found);
            decision.predicted_cached_tokens
        } else {
            let predicted = decision.predicted_at(engine)?;
            decision.prefill_cached_tokens = Some(found);
            predicted
        };
        Some(Checked { predicted, found, prompt: decision.demand.prompt_tokens })
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
