//! Reply frames: gathered per inbox, sent as one message per step, numbered so that a reader sees a loss.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use messages::{
    InstanceId, Role, codec,
    frame::{Alive, Batch, Frame, Pulse},
    subject,
};
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::JoinHandle;

use crate::bus::{Bus, BusError};

/// A batch is cut when it would be larger than this.
pub const BATCH_BYTES: usize = 256 << 10;
/// An inbox with live runs hears from the sender at least this often.
pub const HEARTBEAT: Duration = Duration::from_millis(250);
/// An inbox that had nothing for this long is forgotten.
const IDLE_INBOX: Duration = Duration::from_secs(120);

/// Frames on their way to many inboxes.
pub struct Outbox<D> {
    bus: Bus,
    me: InstanceId,
    role: Role,
    inboxes: Mutex<HashMap<InstanceId, Pending<D>>>,
}

struct Pending<D> {
    sent: u64,
    frames: Vec<Frame<D>>,
    last: Instant,
}

impl<D> Default for Pending<D> {
    fn default() -> Self {
        Self { sent: 0, frames: Vec::new(), last: Instant::now() }
    }
}

impl<D: Serialize + Clone> Outbox<D> {
    pub fn new(bus: Bus, me: InstanceId, role: Role) -> Self {
        Self { bus, me, role, inboxes: Mutex::new(HashMap::new()) }
    }

    /// Adds a frame to what `to` gets with the next flush.
    pub fn push(&self, to: &InstanceId, frame: Frame<D>) {
        let mut inboxes = self.inboxes.lock();
        match inboxes.get_mut(to) {
            Some(pending) => pending.frames.push(frame),
            None => inboxes.entry(to.clone()).or_default().frames.push(frame),
        }
    }

    /// Sends what is pending, one message per inbox. `sampled_us`: end of the step that sampled the tokens, unix
    /// microseconds, 0 if none did.
    pub fn flush(&self, sampled_us: u64, pulse: Option<Pulse>) {
        let mut inboxes = self.inboxes.lock();
        for (to, pending) in inboxes.iter_mut().filter(|(_, pending)| !pending.frames.is_empty()) {
            let frames = std::mem::take(&mut pending.frames);
            self.send(to, pending, frames, Vec::new(), sampled_us, pulse);
        }
    }

    /// Sends each inbox the runs that live here for it. Call every [`HEARTBEAT`].
    pub fn beat(&self, alive: HashMap<InstanceId, Vec<Alive>>, pulse: Option<Pulse>) {
        let mut inboxes = self.inboxes.lock();
        for (to, alive) in alive {
            let pending = inboxes.entry(to.clone()).or_default();
            let frames = std::mem::take(&mut pending.frames);
            self.send(&to, pending, frames, alive, 0, pulse);
        }
        inboxes.retain(|_, pending| !pending.frames.is_empty() || pending.last.elapsed() < IDLE_INBOX);
    }

    fn send(
        &self,
        to: &InstanceId,
        pending: &mut Pending<D>,
        frames: Vec<Frame<D>>,
        alive: Vec<Alive>,
        sampled_us: u64,
        pulse: Option<Pulse>,
    ) {
        pending.sent += 1;
        pending.last = Instant::now();
        let number = pending.sent;
        let batch =
            Batch { from: self.me.clone(), role: self.role, number, sampled_us, frames, alive, pulse };
        let body = codec::encode(&batch);
        if body.len() > BATCH_BYTES && batch.frames.len() > 1 {
            pending.sent -= 1;
            let Batch { mut frames, alive, .. } = batch;
            let rest = frames.split_off(frames.len() / 2);
            self.send(to, pending, frames, alive, sampled_us, pulse);
            self.send(to, pending, rest, Vec::new(), sampled_us, pulse);
            return;
        }
        if !self.bus.post_frames(subject::frames(self.bus.namespace(), to), body) {
            metrics::counter!("stator_frame_batches_dropped_total").increment(1);
        }
    }
}

/// What takes the frames that arrive in this process's inbox. Both must return at once.
pub trait FrameSink<D>: Send + Sync + 'static {
    fn batch(&self, batch: Batch<D>);

    /// Batches from this sender were lost before the one that comes next.
    fn lost(&self, from: &InstanceId);

    /// The inbox was cut off and is back: batches of any sender may be lost, also the last that it will send.
    fn was_cut_off(&self);
}

/// Reads this process's inbox for as long as the process lives.
///
/// # Errors
/// If the subscription cannot be made.
pub async fn read_frames<D, S>(bus: &Bus, me: &InstanceId, sink: Arc<S>) -> Result<JoinHandle<()>, BusError>
where
    D: DeserializeOwned + Send + 'static,
    S: FrameSink<D>,
{
    let subject = subject::frames(bus.namespace(), me);
    let mut link = bus.frames_link();
    let mut inbox =
        bus.frames().subscribe(subject).await.map_err(|error| BusError::Subscribe(error.to_string()))?;
    Ok(tokio::spawn(async move {
        let mut numbers = Numbers::default();
        let mut epoch = link.borrow_and_update().epoch;
        loop {
            let message = tokio::select! {
                message = inbox.next() => message,
                Ok(()) = link.changed() => {
                    let before = std::mem::replace(&mut epoch, link.borrow_and_update().epoch);
                    if epoch != before {
                        sink.was_cut_off();
                    }
                    continue;
                }
            };
            let Some(message) = message else { return };
            let batch: Batch<D> = match codec::decode(&message.payload) {
                Ok(batch) => batch,
                Err(error) => {
                    tracing::warn!(%error, bytes = message.payload.len(), "frames ignored");
                    continue;
                }
            };
            match numbers.next(&batch.from, batch.number, Instant::now()) {
                Arrival::InOrder => {}
                Arrival::AfterGap => {
                    metrics::counter!("stator_frame_gaps_total").increment(1);
                    sink.lost(&batch.from);
                }
                Arrival::Repeated => continue,
            }
            sink.batch(batch);
        }
    }))
}

/// Senders whose last batch number is remembered; beyond this the oldest half is forgotten.
const SENDERS: usize = 8192;

#[derive(Default)]
struct Numbers {
    last: HashMap<InstanceId, (u64, Instant)>,
}

#[derive(Debug, PartialEq)]
enum Arrival {
    InOrder,
    AfterGap,
    Repeated,
}

impl Numbers {
    fn next(&mut self, from: &InstanceId, number: u64, now: Instant) -> Arrival {
        let Some((last, heard)) = self.last.get_mut(from) else {
            self.forget_old();
            self.last.insert(from.clone(), (number, now));
            return if number == 1 { Arrival::InOrder } else { Arrival::AfterGap };
        };
        let idle = now.duration_since(*heard) > IDLE_INBOX / 2;
        let arrival = match number {
            n if n == *last + 1 => Arrival::InOrder,
            n if n > *last => Arrival::AfterGap,
            // A sender forgets an idle inbox and begins again at 1,
            1 if idle => Arrival::InOrder,
            // which may get lost. Nothing is repeated as late as this.
            _ if idle => Arrival::AfterGap,
            _ => return Arrival::Repeated,
        };
        (*last, *heard) = (number, now);
        arrival
    }

    fn forget_old(&mut self) {
        if self.last.len() < SENDERS {
            return;
        }
        let mut ages: Vec<Instant> = self.last.values().map(|(_, heard)| *heard).collect();
        ages.sort();
        let middle = ages[ages.len() / 2];
        self.last.retain(|_, (_, heard)| *heard > middle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_gaps_and_repetitions() {
        let mut numbers = Numbers::default();
        let (sender, now): (InstanceId, _) = ("decode-1".parse().unwrap(), Instant::now());
        let seen: Vec<Arrival> = [1, 2, 2, 4, 3, 5].iter().map(|n| numbers.next(&sender, *n, now)).collect();
        use Arrival::{AfterGap, InOrder, Repeated};
        assert_eq!(seen, [InOrder, InOrder, Repeated, AfterGap, Repeated, InOrder]);
    }

    #[test]
    fn a_first_batch_that_is_not_the_first_shows_a_gap() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.next(&"decode-1".parse().unwrap(), 2, Instant::now()), Arrival::AfterGap);
    }

    #[test]
    fn a_sender_that_begins_again_is_heard_though_its_first_batch_is_lost() {
        let (mut numbers, sender, now) = (Numbers::default(), "decode-1".parse().unwrap(), Instant::now());
        for number in 1..=50 {
            numbers.next(&sender, number, now);
        }
        let later = now + IDLE_INBOX;
        assert_eq!(numbers.next(&sender, 2, later), Arrival::AfterGap);
        assert_eq!(numbers.next(&sender, 2, later), Arrival::Repeated);
        assert_eq!(numbers.next(&sender, 3, later), Arrival::InOrder);
    }
}
