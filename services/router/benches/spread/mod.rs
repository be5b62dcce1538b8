//! How long single calls take, told from a machine that does other things too.

use std::time::{Duration, Instant};

/// Times that each call is made: other processes fall upon single ones, and between two of them everything else has
/// gone through the CPU's caches.
const VISITS: usize = 21;

/// Makes each of `calls` again and again, in turns, and prints how their times spread: as the clock saw them, and each
/// by the median of its visits.
pub fn print<T>(what: &str, calls: &[T], mut call: impl FnMut(usize, &T)) {
    let mut times: Vec<Vec<Duration>> = calls.iter().map(|_| Vec::with_capacity(VISITS)).collect();
    for visit in 0..VISITS {
        for (argument, times) in calls.iter().zip(&mut times) {
            let began = Instant::now();
            call(visit, argument);
            times.push(began.elapsed());
        }
    }
    println!("{what}, wall clock: {}", percentiles(times.iter().flatten().copied().collect()));
    let medians = times.iter_mut().map(|times| {
        times.sort_unstable();
        times[VISITS / 2]
    });
    println!("{what}, each its median of {VISITS}: {}", percentiles(medians.collect()));
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    format!("p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?}", at(0.5), at(0.99), at(0.999))
}
