use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const LAYERS: u32 = 2;

#[derive(Debug, Clone)]
enum Op {
    Lend(u32),
    Attach(usize, bool),
    Claim(usize, u32, u32),
    Arrive(usize, bool),
    Take(usize),
    Retire(usize, bool),
    Detach(usize),
    Revoke(usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let at = any::<usize>;
    prop_oneof![
        2 => (0..7u32).prop_map(Op::Lend),
        3 => (at(), any::<bool>()).prop_map(|(grant, remote)| Op::Attach(grant, remote)),
        12 => (at(), 0..7u32, 0..LAYERS).prop_map(|(grant, page, layer)| Op::Claim(grant, page, layer)),
        12 => (at(), prop::bool::weighted(0.9)).prop_map(|(claim, intact)| Op::Arrive(claim, intact)),
        6 => at().prop_map(Op::Take),
        2 => (at(), any::<bool>()).prop_map(|(stream, well)| Op::Retire(stream, well)),
        2 => at().prop_map(Op::Detach),
        1 => (at(), any::<bool>()).prop_map(|(grant, closed)| Op::Revoke(grant, closed)),
    ]
}

/// What the outside holds of a ledger.
#[derive(Default)]
struct Outside {
    epochs: Vec<Epoch>,
    /// Connections that have not retired, and writers that have not detached.
    streams: Vec<(Epoch, bool)>,
    remote: Vec<Epoch>,
    claims: Vec<(Epoch, Piece, u32)>,
    pages: Vec<(Epoch, PageIndex, u32)>,
    landed: BTreeMap<(Epoch, PageIndex), u32>,
}

impl Outside {
    fn apply(&mut self, ledger: &mut Ledger, op: Op) -> Result<(), TestCaseError> {
        let pick = |at: usize, len: usize| (len > 0).then(|| at % len);
        match op {
            Op::Lend(pages) => {
                let epoch = Epoch(self.epochs.len() as u64);
                let free = ledger.counts().free;
                match ledger.lend(epoch, pages, "prefill-1", 0) {
                    Ok(slots) => {
                        prop_assert_eq!(slots.len() as u32, pages.min(3).min(free));
                        let used = self
                            .claims
                            .iter()
                            .map(|claim| claim.2)
                            .chain(self.pages.iter().map(|page| page.2));
                        prop_assert!(
                            used.into_iter().all(|slot| !slots.contains(&slot)),
                            "lent a slot in use"
                        );
                        self.epochs.push(epoch);
                    }
                    Err(_) => prop_assert!(pages == 0 || free == 0),
                }
            }
            Op::Attach(at, remote) => {
                if let Some(at) = pick(at, self.epochs.len())
                    && ledger.attach(self.epochs[at], remote, Memory::Host)
                {
                    self.streams.push((self.epochs[at], remote));
                    self.remote.extend(remote.then_some(self.epochs[at]));
                }
            }
            Op::Claim(at, page, layer) => {
                let Some((epoch, _)) = pick(at, self.streams.len()).map(|at| self.streams[at]) else {
                    return Ok(());
                };
                let piece = Piece { index: PageIndex(page), layer, layers: 1 };
                if let Claim::Store(slot) = ledger.claim(epoch, piece) {
                    let busy = |claim: &(Epoch, Piece, u32)| claim.2 == slot && claim.1.layer == layer;
                    prop_assert!(!self.claims.iter().any(busy), "two claims on the same bytes");
                    prop_assert!(!self.pages.iter().any(|page| page.2 == slot), "a claim on a landed page");
                    self.claims.push((epoch, piece, slot));
                }
            }
            Op::Arrive(at, intact) => {
                let Some(at) = pick(at, self.claims.len()) else { return Ok(()) };
                let (epoch, piece, slot) = self.claims.swap_remove(at);
                if !intact {
                    ledger.abandoned(epoch, piece);
                } else if ledger.arrived(epoch, piece) {
                    self.pages.push((epoch, piece.index, slot));
                    *self.landed.entry((epoch, piece.index)).or_default() += 1;
                }
            }
            Op::Take(at) => {
                if let Some(at) = pick(at, self.pages.len()) {
                    let (epoch, index, _) = self.pages.swap_remove(at);
                    ledger.taken(epoch, index);
                }
            }
            Op::Retire(at, well) => {
                let Some(at) = pick(at, self.streams.len()) else { return Ok(()) };
                // A connection retires after its last claim is done.
                if self.claims.iter().all(|claim| claim.0 != self.streams[at].0) {
                    let (epoch, _) = self.streams.swap_remove(at);
                    ledger.retired(epoch, if well { GrantEnd::Closed } else { GrantEnd::Gone });
                }
            }
            Op::Detach(at) => {
                if let Some(at) = pick(at, self.remote.len()) {
                    ledger.detached(self.remote.swap_remove(at));
                }
            }
            Op::Revoke(at, closed) => {
                if let Some(at) = pick(at, self.epochs.len()) {
                    ledger.revoke(self.epochs[at], closed);
                }
            }
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn no_slot_is_lost_or_shared_in_any_interleaving(ops in prop::collection::vec(op(), 0..300)) {
        let (mut ledger, mut outside) = (Ledger::new(LAYERS, 5, 3), Outside::default());
        for op in ops {
            outside.apply(&mut ledger, op)?;
            prop_assert_eq!(ledger.counts().total(), 5);
        }
        prop_assert!(outside.landed.values().all(|times| *times == 1), "a page landed twice");
        for (epoch, piece, _) in outside.claims.drain(..) {
            ledger.abandoned(epoch, piece);
        }
        for (epoch, index, _) in outside.pages.drain(..) {
            ledger.taken(epoch, index);
        }
        for (epoch, _) in outside.streams.drain(..) {
            ledger.retired(epoch, GrantEnd::Gone);
        }
        for epoch in outside.remote.drain(..) {
            ledger.detached(epoch);
        }
        for epoch in outside.epochs.drain(..) {
            ledger.revoke(epoch, false);
        }
        prop_assert_eq!(ledger.counts(), SlotCounts { free: 5, ..SlotCounts::default() });
        prop_assert!(ledger.lent.is_empty(), "a grant that is over is remembered");
    }
}

fn piece(page: u32, layer: u32) -> Piece {
    Piece { index: PageIndex(page), layer, layers: 1 }
}

#[test]
fn a_landed_page_of_a_remote_writer_is_not_quarantined_once_taken() {
    let (epoch, mut ledger) = (Epoch(1), Ledger::new(LAYERS, 2, 2));
    ledger.lend(epoch, 2, "prefill-1", 0).unwrap();
    assert!(ledger.attach(epoch, true, Memory::Host));
    for layer in 0..LAYERS {
        assert!(matches!(ledger.claim(epoch, piece(0, layer)), Claim::Store(_)));
        assert_eq!(ledger.arrived(epoch, piece(0, layer)), layer + 1 == LAYERS);
    }
    ledger.revoke(epoch, false);
    assert_eq!(ledger.counts(), SlotCounts { held: 1, quarantined: 1, ..SlotCounts::default() });
    ledger.taken(epoch, PageIndex(0));
    assert_eq!(ledger.counts(), SlotCounts { free: 1, quarantined: 1, ..SlotCounts::default() });
    assert_eq!(ledger.retired(epoch, GrantEnd::Gone), None, "the receiver gave it up itself");
    ledger.detached(epoch);
    assert_eq!(ledger.counts().free, 2);
}

#[test]
fn the_end_is_told_once_and_after_the_last_connection() {
    let (epoch, mut ledger) = (Epoch(1), Ledger::new(LAYERS, 2, 2));
    ledger.lend(epoch, 2, "prefill-1", 0).unwrap();
    assert!(ledger.attach(epoch, false, Memory::Host) && ledger.attach(epoch, false, Memory::Host));
    assert_eq!(ledger.retired(epoch, GrantEnd::Corrupt), None);
    assert!(!ledger.attach(epoch, false, Memory::Host), "a grant that failed took a connection");
    assert_eq!(ledger.retired(epoch, GrantEnd::Gone), Some(GrantEnd::Corrupt));
    assert_eq!(ledger.counts().free, 2);
}
