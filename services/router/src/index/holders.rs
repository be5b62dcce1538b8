use super::{
    Worker,
    crowd::{Crowds, Marks},
};

/// Who holds a block, in eight bytes: up to four workers themselves, or the place of a crowd.
///
/// Four lanes of 16 bits. An empty lane is [`EMPTY`] and comes after the full ones; a last lane of [`CROWD`] says
/// that the lower 32 bits are the place of a crowd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holders(u64);

const LANES: usize = 4;
const EMPTY: u16 = u16::MAX;
const CROWD: u16 = u16::MAX - 1;
/// Worker numbers that no mark of a lane takes.
pub(super) const NUMBERS: usize = CROWD as usize;
/// A crowd that shrinks to this many is written out again; fewer than [`LANES`], so that one who comes and goes does
/// not turn it over each time.
const DISSOLVE_AT: usize = 2;

/// What [`Holders`] hold.
pub(super) enum View {
    Few([u16; LANES]),
    Crowd(u32),
}

impl Holders {
    pub const NONE: Self = Self(u64::MAX);

    pub fn view(self) -> View {
        let lanes = self.lanes();
        if lanes[LANES - 1] == CROWD { View::Crowd(self.0 as u32) } else { View::Few(lanes) }
    }

    fn lanes(self) -> [u16; LANES] {
        [self.0 as u16, (self.0 >> 16) as u16, (self.0 >> 32) as u16, (self.0 >> 48) as u16]
    }

    fn of(workers: impl Iterator<Item = u16>) -> Self {
        let mut holders = Self::NONE;
        for (lane, worker) in workers.take(LANES).enumerate() {
            holders.0 &= !(u64::from(EMPTY) << (16 * lane));
            holders.0 |= u64::from(worker) << (16 * lane);
        }
        holders
    }

    fn crowd(place: u32) -> Self {
        Self(u64::from(CROWD) << 48 | u64::from(place))
    }

    /// False if the worker is there already.
    pub fn add(&mut self, Worker(worker): Worker, crowds: &mut Crowds) -> bool {
        let lanes = match self.view() {
            View::Crowd(place) => return crowds.add(place, worker),
            View::Few(lanes) => lanes,
        };
        for (lane, there) in lanes.into_iter().enumerate() {
            if there == worker {
                return false;
            }
            if there == EMPTY {
                self.0 ^= u64::from(EMPTY ^ worker) << (16 * lane);
                return true;
            }
        }
        let [a, b, c, d] = lanes;
        *self = Self::crowd(crowds.gather(&[a, b, c, d, worker]));
        true
    }

    /// False if the worker is not there.
    pub fn remove(&mut self, Worker(worker): Worker, crowds: &mut Crowds) -> bool {
        match self.view() {
            View::Few(lanes) => {
                let kept = Self::of(full(lanes).filter(|there| *there != worker));
                std::mem::replace(self, kept) != kept
            }
            View::Crowd(place) => {
                let removed = crowds.remove(place, worker);
                self.shrink(place, crowds);
                removed
            }
        }
    }

    /// Removes whoever is marked; says how many.
    pub fn remove_all(&mut self, marks: &Marks, crowds: &mut Crowds) -> usize {
        match self.view() {
            View::Few(lanes) => {
                let gone = full(lanes).filter(|worker| marks.has(*worker)).count();
                if gone > 0 {
                    *self = Self::of(full(lanes).filter(|worker| !marks.has(*worker)));
                }
                gone
            }
            View::Crowd(place) => {
                let gone = crowds.remove_all(place, marks);
                self.shrink(place, crowds);
                gone
            }
        }
    }

    /// Whether the same workers are known to hold both.
    pub fn same(self, other: Self, crowds: &Crowds) -> bool {
        self == other
            || match (self.view(), other.view()) {
                (View::Crowd(one), View::Crowd(other)) => crowds.get(one) == crowds.get(other),
                _ => false,
            }
    }

    fn shrink(&mut self, place: u32, crowds: &mut Crowds) {
        if crowds.len(place) <= DISSOLVE_AT {
            *self = Self::of(crowds.dissolve(place).into_iter());
        }
    }
}

fn full(lanes: [u16; LANES]) -> impl Iterator<Item = u16> {
    lanes.into_iter().take_while(|worker| *worker != EMPTY)
}
