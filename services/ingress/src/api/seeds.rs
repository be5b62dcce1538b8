use parking_lot::Mutex;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Gives seeds to requests that name none: by chance, or one fixed row of them.
#[derive(Debug, Default)]
pub struct Seeds(Option<Mutex<StdRng>>);

impl Seeds {
    /// With `fixed`, the n-th draw is the same in every run of one version.
    pub fn new(fixed: Option<u64>) -> Self {
        Self(fixed.map(|seed| Mutex::new(StdRng::seed_from_u64(seed))))
    }

    pub fn draw(&self) -> u64 {
        match &self.0 {
            Some(row) => row.lock().random(),
            None => rand::random(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_seeds_come_again_and_chance_does_not_repeat_itself() {
        let row = |fixed| {
            let seeds = Seeds::new(fixed);
            [seeds.draw(), seeds.draw(), seeds.draw()]
        };
        assert_eq!(row(Some(42)), row(Some(42)));
        assert_ne!(row(Some(42)), row(Some(43)));
        assert_ne!(row(Some(42))[0], row(Some(42))[1]);
        assert_ne!(row(None), row(None));
    }
}
