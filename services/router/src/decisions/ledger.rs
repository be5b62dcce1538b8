use std::collections::VecDeque;

use messages::{InstanceId, load::Started};

use super::{Decision, Outcome};

/// Decisions that can be read back.
const KEPT: usize = 4096;

/// The last decisions of this router, by number.
#[derive(Debug, Default)]
pub struct Ledger {
    decisions: VecDeque<Decision>,
}

impl Ledger {
    pub fn enter(&mut self, decision: Decision) {
        if self.decisions.len() == KEPT {
            self.decisions.pop_front();
        }
        // Numbers are drawn before decisions are entered, by many tasks: they may cross.
        let at = self.decisions.partition_point(|known| known.number < decision.number);
        self.decisions.insert(at, decision);
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
    pub fn about(&self, name: &str) -> Vec<&Decision> {
        let is_it = |decision: &&Decision| {
            decision.label.as_deref() == Some(name) || decision.request.to_string() == name
        };
        self.decisions.iter().filter(is_it).collect()
    }

    fn find(&mut self, number: u64) -> Option<&mut Decision> {
        let at = self.decisions.binary_search_by_key(&number, |decision| decision.number).ok()?;
        self.decisions.get_mut(at)
    }
}
