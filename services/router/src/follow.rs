use std::collections::VecDeque;

use messages::kv::KvEvents;

/// Messages kept while a snapshot is on its way; of more the oldest are dropped, and another snapshot is needed.
const WAITING_AT_MOST: usize = 1024;

/// How far this router has followed the changes of one prefix cache. Pure: says what to apply and when it is lost.
///
/// A follower begins lost. Any doubt (a gap, another epoch, a number that the engine names and that never came) makes
/// it lost again, and lost it stays until a snapshot is taken.
#[derive(Debug, Default)]
pub struct Follower {
    followed: Option<Followed>,
    /// What the engine last said that it had sent.
    due: Option<Followed>,
    /// Came while lost, in order of arrival.
    waiting: VecDeque<KvEvents>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Followed {
    epoch: u64,
    next: u64,
}

/// What to do with a message.
#[derive(Debug, PartialEq)]
pub enum Heard {
    Apply(KvEvents),
    /// It is included already.
    Known,
    /// It waits for a snapshot.
    Waits,
}

impl Follower {
    /// What the index says of this cache is not complete.
    pub fn is_lost(&self) -> bool {
        self.followed.is_none()
    }

    pub fn lose(&mut self) {
        self.followed = None;
    }

    pub fn hear(&mut self, events: KvEvents) -> Heard {
        if let Some(Followed { epoch, next }) = &mut self.followed
            && events.epoch == *epoch
        {
            if events.number < *next {
                return Heard::Known;
            }
            if events.number == *next {
                *next += 1;
                return Heard::Apply(events);
            }
        }
        self.lose();
        if self.waiting.len() == WAITING_AT_MOST {
            self.waiting.pop_front();
        }
        self.waiting.push_back(events);
        Heard::Waits
    }

    /// The engine says that `next` is the number of its next message. Reports and messages may overtake each other
    /// by a little: what one report named has to be here by the next.
    pub fn told(&mut self, epoch: u64, next: u64) {
        let due = self.due.replace(Followed { epoch, next });
        let behind = |known: Followed, due: Followed| known.epoch != due.epoch || known.next < due.next;
        if due
            .filter(|due| due.epoch == epoch)
            .zip(self.followed)
            .is_some_and(|(due, known)| behind(known, due))
        {
            self.lose();
        }
    }

    /// A snapshot was taken that ends before message `next`: goes on from there with what came meanwhile, in order.
    /// Lost again if that has gaps.
    pub fn resume(&mut self, epoch: u64, next: u64) -> Vec<KvEvents> {
        let mut followed = Followed { epoch, next };
        let mut waiting: Vec<KvEvents> = std::mem::take(&mut self.waiting).into();
        waiting.sort_by_key(|events| events.number);
        let (same, other): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|events| events.epoch == epoch);
        let mut gap = false;
        let mut ready = Vec::new();
        for events in same {
            if events.number == followed.next {
                followed.next += 1;
                ready.push(events);
            } else if events.number > followed.next {
                gap = true;
                self.waiting.push_back(events);
            }
        }
        // Which of two epochs is the newer one cannot be told: the next snapshot says.
        self.followed = (!gap && other.is_empty()).then_some(followed);
        ready
    }
}

#[cfg(test)]
mod tests;
