use std::collections::HashMap;

use messages::{Attempt, InstanceId, RequestId, control::Cancel, frame::Alive};
use tokio_util::sync::CancellationToken;

/// Requests in this router's custody.
#[derive(Debug, Default)]
pub struct Held {
    by_request: HashMap<RequestId, Vec<Entry>>,
    count: usize,
}

#[derive(Debug)]
struct Entry {
    attempt: Attempt,
    ingress: InstanceId,
    cancelled: CancellationToken,
}

impl Held {
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn holds(&self, request: RequestId) -> bool {
        self.by_request.contains_key(&request)
    }

    /// Takes a request in; `None` if this attempt is held already.
    pub fn take(
        &mut self,
        request: RequestId,
        attempt: Attempt,
        ingress: &InstanceId,
    ) -> Option<CancellationToken> {
        let entries = self.by_request.entry(request).or_default();
        if entries.iter().any(|entry| entry.attempt == attempt) {
            return None;
        }
        let cancelled = CancellationToken::new();
        entries.push(Entry { attempt, ingress: ingress.clone(), cancelled: cancelled.clone() });
        self.count += 1;
        Some(cancelled)
    }

    pub fn release(&mut self, request: RequestId, attempt: Attempt) {
        let Some(entries) = self.by_request.get_mut(&request) else { return };
        let before = entries.len();
        entries.retain(|entry| entry.attempt != attempt);
        self.count -= before - entries.len();
        if entries.is_empty() {
            self.by_request.remove(&request);
        }
    }

    /// Cancels of one run or choice are the engine's business.
    pub fn cancel(&mut self, cancel: &Cancel) {
        if cancel.run.is_some() || cancel.choice.is_some() {
            return;
        }
        for entry in self.by_request.get(&cancel.request).into_iter().flatten() {
            if entry.attempt <= cancel.attempt {
                entry.cancelled.cancel();
            }
        }
    }

    pub fn cancel_of(&mut self, ingress: &InstanceId) {
        self.by_request
            .values()
            .flatten()
            .filter(|e| e.ingress == *ingress)
            .for_each(|e| e.cancelled.cancel());
    }

    /// What is held, by the ingress that waits for it.
    pub fn alive(&self) -> HashMap<InstanceId, Vec<Alive>> {
        let mut alive: HashMap<InstanceId, Vec<Alive>> = HashMap::new();
        for (request, entry) in
            self.by_request.iter().flat_map(|(r, entries)| entries.iter().map(move |e| (r, e)))
        {
            let sign = Alive {
                request: *request,
                attempt: entry.attempt,
                run: None,
                reached: Vec::new(),
                quiet_ms: 0,
                handed_on: false,
            };
            alive.entry(entry.ingress.clone()).or_default().push(sign);
        }
        alive
    }
}
