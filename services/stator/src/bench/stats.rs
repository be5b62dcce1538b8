//! Figures from samples. All samples are kept: percentiles are exact.

use serde::Serialize;

/// A distribution, in the unit of its samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    pub count: usize,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Summary {
    /// `None` without samples.
    pub fn of(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let max = *samples.last()?;
        let mean = samples.iter().sum::<f64>() / samples.len() as f64;
        Some(Self {
            count: samples.len(),
            mean,
            p50: percentile(&samples, 50),
            p90: percentile(&samples, 90),
            p99: percentile(&samples, 99),
            max,
        })
    }
}

/// The smallest sample that at least `percent` of all samples do not exceed (nearest rank).
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let hundred = Summary::of((1..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((hundred.p50, hundred.p90, hundred.p99, hundred.max), (50.0, 90.0, 99.0, 100.0));
        assert_eq!(hundred.mean, 50.5);
        let three = Summary::of(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((three.p50, three.p90, three.p99), (2.0, 3.0, 3.0));
        assert_eq!(Summary::of(Vec::new()), None);
    }
}
