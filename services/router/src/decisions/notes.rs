use std::collections::{HashMap, VecDeque};

use messages::{Attempt, Fault, RequestId};
use serde::Serialize;

use super::{About, KEPT};

/// An attempt at a request that came here and was not dispatched, or not yet.
#[derive(Debug, Clone, Serialize)]
pub struct Note {
    #[serde(flatten)]
    pub about: About,
    pub outcome: Fate,
    /// Time in this router, queueing included.
    pub held_us: u64,
    pub why: Option<Fault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// Waits for its turn, since `at_ms`.
    Queued,
    /// Had its turn and waits for an engine to come, since `at_ms`.
    Held,
    /// Was not taken in, or had to leave the queue for another.
    Refused,
    /// Ended here: no engine in time, or none that took it.
    Failed,
    Cancelled,
}

/// The last notes of this router.
#[derive(Debug, Default)]
pub struct Notes {
    by_request: HashMap<RequestId, Vec<Note>>,
    /// In the order in which requests were first noted.
    order: VecDeque<RequestId>,
}

impl Notes {
    /// Puts a note in the place of the last one of this attempt.
    pub fn put(&mut self, note: Note) {
        let About { request, attempt, .. } = note.about;
        let notes = self.by_request.entry(request).or_default();
        if notes.is_empty() {
            self.order.push_back(request);
        }
        notes.retain(|known| known.about.attempt != attempt);
        notes.push(note);
        if self.order.len() > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_request.remove(&oldest);
        }
    }

    /// This attempt was dispatched.
    pub fn drop_of(&mut self, request: RequestId, attempt: Attempt) {
        if let Some(notes) = self.by_request.get_mut(&request) {
            notes.retain(|note| note.about.attempt != attempt);
            if notes.is_empty() {
                self.by_request.remove(&request);
                if let Some(at) = self.order.iter().rposition(|known| *known == request) {
                    self.order.remove(at);
                }
            }
        }
    }

    /// Every note of a request, by bus id or by the client's label.
    pub fn about(&self, name: &str) -> Vec<&Note> {
        let id = name.parse::<RequestId>().ok();
        let notes = self.by_request.values().flatten();
        notes.filter(|note| note.about.is_named(name, id)).collect()
    }
}
