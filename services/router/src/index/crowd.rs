use super::Worker;

/// A crowd of more workers than this is a bitmap: 64 numbers of two bytes take as much as the bits of a thousand.
const LISTED: usize = 64;

/// Workers as bits.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Marks(Vec<u64>);

impl Marks {
    pub fn has(&self, worker: u16) -> bool {
        self.0.get(usize::from(worker) / 64).is_some_and(|word| word >> (worker % 64) & 1 == 1)
    }

    pub fn set(&mut self, worker: u16) {
        let place = usize::from(worker) / 64;
        if place >= self.0.len() {
            self.0.resize(place + 1, 0);
        }
        self.0[place] |= 1 << (worker % 64);
    }

    pub fn unset(&mut self, worker: u16) {
        if let Some(word) = self.0.get_mut(usize::from(worker) / 64) {
            *word &= !(1 << (worker % 64));
        }
    }

    pub fn words(&self) -> &[u64] {
        &self.0
    }

    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0
            .iter()
            .enumerate()
            .flat_map(|(place, word)| bits(*word).map(move |bit| (64 * place) as u16 + bit))
    }
}

impl FromIterator<Worker> for Marks {
    fn from_iter<I: IntoIterator<Item = Worker>>(workers: I) -> Self {
        let mut marks = Self::default();
        workers.into_iter().for_each(|Worker(worker)| marks.set(worker));
        marks
    }
}

/// The set bits of a word, lowest first.
pub(super) fn bits(mut word: u64) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as u16)?;
        word &= word - 1;
        Some(bit)
    })
}

#[derive(Debug, PartialEq)]
pub(super) enum Crowd {
    /// In order.
    Listed(Vec<u16>),
    Mapped {
        marks: Marks,
        len: u32,
    },
}

/// Sets of workers that are too many for [`super::holders::Holders`], by place.
#[derive(Debug, Default)]
pub(super) struct Crowds {
    crowds: Vec<Crowd>,
    free: Vec<u32>,
}

impl Crowds {
    pub fn gather(&mut self, workers: &[u16]) -> u32 {
        let mut listed = workers.to_vec();
        listed.sort_unstable();
        let crowd = Crowd::Listed(listed);
        match self.free.pop() {
            Some(place) => {
                self.crowds[place as usize] = crowd;
                place
            }
            None => {
                self.crowds.push(crowd);
                (self.crowds.len() - 1) as u32
            }
        }
    }

    pub fn get(&self, place: u32) -> &Crowd {
        &self.crowds[place as usize]
    }

    /// Reads a little of a crowd: of many that are wanted soon, so that their cache misses overlap.
    pub fn touch(&self, place: u32) {
        std::hint::black_box(match self.get(place) {
            Crowd::Listed(listed) => listed.first().copied().map(u64::from),
            Crowd::Mapped { marks, .. } => marks.words().first().copied(),
        });
    }

    pub fn len(&self, place: u32) -> usize {
        match self.get(place) {
            Crowd::Listed(listed) => listed.len(),
            Crowd::Mapped { len, .. } => *len as usize,
        }
    }

    /// Gives the place free and returns who was left.
    pub fn dissolve(&mut self, place: u32) -> Vec<u16> {
        self.free.push(place);
        match std::mem::replace(&mut self.crowds[place as usize], Crowd::Listed(Vec::new())) {
            Crowd::Listed(listed) => listed,
            Crowd::Mapped { marks, .. } => marks.iter().collect(),
        }
    }

    pub fn add(&mut self, place: u32, worker: u16) -> bool {
        let crowd = &mut self.crowds[place as usize];
        match crowd {
            Crowd::Listed(listed) => {
                let Err(at) = listed.binary_search(&worker) else { return false };
                listed.insert(at, worker);
                if listed.len() > LISTED {
                    let len = listed.len() as u32;
                    *crowd = Crowd::Mapped { marks: listed.drain(..).map(Worker).collect(), len };
                }
                true
            }
            Crowd::Mapped { marks, len } => {
                let new = !marks.has(worker);
                marks.set(worker);
                *len += u32::from(new);
                new
            }
        }
    }

    pub fn remove(&mut self, place: u32, worker: u16) -> bool {
        match &mut self.crowds[place as usize] {
            Crowd::Listed(listed) => {
                let found = listed.binary_search(&worker);
                found.map(|at| listed.remove(at)).is_ok()
            }
            Crowd::Mapped { marks, len } => {
                let there = marks.has(worker);
                marks.unset(worker);
                *len -= u32::from(there);
                there
            }
        }
    }

    /// Says how many were removed.
    pub fn remove_all(&mut self, place: u32, marked: &Marks) -> usize {
        let before = self.len(place);
        match &mut self.crowds[place as usize] {
            Crowd::Listed(listed) => listed.retain(|worker| !marked.has(*worker)),
            Crowd::Mapped { marks, len } => {
                marks.0.iter_mut().zip(&marked.0).for_each(|(word, gone)| *word &= !gone);
                *len = marks.0.iter().map(|word| word.count_ones()).sum();
            }
        }
        before - self.len(place)
    }
}
