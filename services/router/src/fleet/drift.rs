/// Weight of the newest observation.
const NEWEST: f64 = 1.0 / 16.0;
/// Prediction beyond what was found, as a share of the prompt, above which a cache is asked for again.
const BOUND: f64 = 0.1;
/// Observations before a judgement.
const OBSERVATIONS: u32 = 16;

/// How far predictions of one engine's cache have been above what it found. What it found beyond a prediction was
/// computed since and says nothing against the index.
#[derive(Debug, Default)]
pub struct Drift {
    share: f64,
    observations: u32,
}

impl Drift {
    /// Takes in one prompt: tokens predicted to be cached, found to be, and in all. True if the index is too far
    /// off; it then begins anew.
    pub fn observe(&mut self, predicted: u32, found: u32, prompt: u32) -> bool {
        let excess = f64::from(predicted.saturating_sub(found)) / f64::from(prompt.max(1));
        self.share += (excess - self.share) * NEWEST;
        self.observations += 1;
        let beyond = self.observations >= OBSERVATIONS && self.share > BOUND;
        if beyond {
            *self = Self::default();
        }
        beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_evictions_are_no_drift_and_a_stale_index_is() {
        let mut drift = Drift::default();
        assert!((0..1000).all(|n| !drift.observe(600, if n % 20 == 0 { 0 } else { 640 }, 800)));
        assert!((0..64).any(|_| drift.observe(600, 100, 800)));
    }
}
