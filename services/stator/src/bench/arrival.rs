//! When requests of an open loop begin.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Arrival times of a Poisson process, as offsets from the start: gaps are exponential with mean 1 / rate.
pub struct Poisson {
    rng: StdRng,
    rate: f64,
    at: f64,
}

impl Poisson {
    pub fn new(rate: f64, seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), rate, at: 0.0 }
    }
}

impl Iterator for Poisson {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        // 1 - u lies in (0, 1]: its logarithm is finite.
        let gap = -(1.0 - self.rng.random::<f64>()).ln() / self.rate;
        self.at += gap;
        Some(Duration::from_secs_f64(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let times: Vec<f64> = Poisson::new(50.0, 7).take(20_000).map(|at| at.as_secs_f64()).collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "mean {mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "exponential gaps vary as much as their mean");
    }

    #[test]
    fn a_seed_gives_the_same_arrivals() {
        let times = |seed| Poisson::new(3.0, seed).take(5).collect::<Vec<_>>();
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
    }
}
