mod rate;
mod stretch;

use std::time::Duration;

use rate::Rate;
use stretch::Stretch;

/// Prompt tokens of a step while nothing has been measured.
const FIRST_CHUNK: u32 = 256;
/// A step that computes prompts takes at least this many of their tokens, however slow the device: prefill goes on.
const LEAST_CHUNK: u32 = 16;
/// Share of the target that is planned for; the rest absorbs what the estimate does not see.
const PLANNED_SHARE: f64 = 0.8;
/// How much longer than expected a step may take before it counts as hung, and never less than the floor.
const HUNG_FACTOR: f64 = 4.0;
const HUNG_FLOOR: Duration = Duration::from_secs(1);
/// Allowed to a step of a kind that was never measured: kernels may still be compiled or weights paged in.
const UNMEASURED_BOUND: Duration = Duration::from_secs(30);

/// Learns from finished steps how long a step will take: a time per decoded sequence plus a time per prompt token.
///
/// Each rate is a quotient of fading sums, so that large steps count for more than small ones, whose fixed costs
/// would make the device look slow.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    decode: Rate,
    prefill: Rate,
    step: Rate,
    stretch: Stretch,
}

/// What a step computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Work {
    /// Sequences with a single token.
    pub decodes: u32,
    /// Tokens of all other sequences.
    pub prefill_tokens: u32,
}

impl Speed {
    pub fn observe(&mut self, work: Work, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        self.step.add(seconds, 1);
        if work.prefill_tokens == 0 {
            self.decode.add(seconds, work.decodes);
        } else {
            // While prompts wait every step has some: a rate learned at a small batch, fixed costs included, must not
            // outlive it, or nothing would seem to be left for prompts.
            self.decode.at_most(seconds, work.decodes);
            // A step has fixed costs: a few sequences more take hardly more time, and prompts would seem to take none.
            let plain = self.stretch.plain().unwrap_or(f64::INFINITY);
            let decoding = (f64::from(work.decodes) * self.decode.get().unwrap_or(0.0)).min(plain);
            self.prefill.add((seconds - decoding).max(seconds / 10.0), work.prefill_tokens);
        }
        self.stretch.observe(work, seconds);
    }

    /// Prompt tokens that make a step about `stretch` times as long as one that only decodes.
    pub fn sparing_budget(&self, stretch: f64) -> u32 {
        self.stretch.budget(stretch)
    }

    /// Prompt tokens of a step of `target` beside `decodes` sequences. At least [`LEAST_CHUNK`].
    pub fn prefill_budget(&self, decodes: u32, target: Duration) -> u32 {
        if target.is_zero() {
            return u32::MAX;
        }
        self.prefill_fits(decodes, target).map_or(FIRST_CHUNK, |tokens| tokens.max(LEAST_CHUNK))
    }

    /// Prompt tokens that fit into a step of `target` beside `decodes` sequences; `None` while nothing is measured.
    pub fn prefill_fits(&self, decodes: u32, target: Duration) -> Option<u32> {
        let per_token = self.prefill.get()?;
        let decoding = f64::from(decodes) * self.decode.get().unwrap_or(0.0);
        let left = (target.as_secs_f64() * PLANNED_SHARE - decoding).max(0.0);
        // Saturates: an immeasurably fast device has no bound.
        Some((left / per_token.max(f64::MIN_POSITIVE)) as u32)
    }

    /// How long a step may take before it counts as hung.
    pub fn bound(&self, work: Work) -> Duration {
        let expected = [(work.decodes, &self.decode), (work.prefill_tokens, &self.prefill)]
            .into_iter()
            .filter(|(units, _)| *units > 0)
            .map(|(units, rate)| rate.get().map(|seconds| seconds * f64::from(units)))
            .sum::<Option<f64>>();
        match expected {
            Some(seconds) => Duration::from_secs_f64(seconds * HUNG_FACTOR).max(HUNG_FLOOR),
            None => UNMEASURED_BOUND,
        }
    }

    pub fn step_time(&self) -> Duration {
        Duration::from_secs_f64(self.step.get().unwrap_or(0.0))
    }

    pub fn prefill_token_time(&self) -> Duration {
        Duration::from_secs_f64(self.prefill.get().unwrap_or(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(250);

    /// Milliseconds of a step on a made-up device.
    fn device(work: Work) -> Duration {
        Duration::from_micros(5_000 + u64::from(work.decodes) * 500 + u64::from(work.prefill_tokens) * 800)
    }

    #[test]
    fn chunks_grow_to_the_target_and_stay_within() {
        let mut speed = Speed::default();
        let mut largest = Duration::ZERO;
        for step in 0..60 {
            let decodes = step % 40;
            let prefill_tokens = speed.prefill_budget(decodes, TARGET);
            for work in [Work { decodes, prefill_tokens }, Work { decodes, prefill_tokens: 0 }] {
                speed.observe(work, device(work));
                largest = largest.max(device(work));
            }
        }
        assert!(largest <= TARGET, "{largest:?}");
        let settled = Work { decodes: 0, prefill_tokens: speed.prefill_budget(0, TARGET) };
        assert!(device(settled) > TARGET / 2, "{settled:?}");
    }

    #[test]
    fn a_cost_per_sequence_learned_at_a_small_batch_does_not_starve_prompts_at_a_large_one() {
        let mut speed = Speed::default();
        let step = Duration::from_millis(6);
        speed.observe(Work { decodes: 1, prefill_tokens: 0 }, step);
        speed.observe(Work { decodes: 1, prefill_tokens: 256 }, step);
        for _ in 0..3 {
            let prefill_tokens = speed.prefill_budget(63, TARGET);
            speed.observe(Work { decodes: 63, prefill_tokens }, step);
        }
        assert!(speed.prefill_budget(63, TARGET) > 1000);
    }

    #[test]
    fn prompts_beside_spared_sequences_make_steps_longer_by_so_much_and_no_more() {
        for decodes in [1, 40] {
            let mut speed = Speed::default();
            let plain = Work { decodes, prefill_tokens: 0 };
            let mut steps = Vec::new();
            for step in 0..40 {
                let work = Work { decodes, prefill_tokens: speed.sparing_budget(2.0) };
                steps.push(work);
                speed.observe(work, device(work));
                // Now and then something else has the core for a while.
                let hitch = Duration::from_millis(if step % 7 == 3 { 20 } else { 0 });
                (0..5).for_each(|_| speed.observe(plain, device(plain)));
                speed.observe(plain, device(plain) + hitch);
            }
            let longest = steps.iter().map(|work| device(*work)).max().unwrap();
            assert_eq!(steps[0].prefill_tokens, 0, "it is not known what decoding takes");
            assert!(longest < device(plain) * 3, "{longest:?} of {:?}", device(plain));
            assert!(device(steps[39]) > device(plain) * 3 / 2, "{:?}", steps[39]);
        }
    }

    #[test]
    fn prompts_that_never_cease_go_on_beside_a_crowd_that_grew() {
        let mut speed = Speed::default();
        speed.observe(Work { decodes: 1, prefill_tokens: 0 }, device(Work { decodes: 1, prefill_tokens: 0 }));
        let (mut prompts, mut longest) = (0, Duration::ZERO);
        for step in 0..200 {
            let work = Work { decodes: 100, prefill_tokens: speed.sparing_budget(2.0) };
            speed.observe(work, device(work));
            if step >= 100 {
                prompts += work.prefill_tokens;
                longest = longest.max(device(work));
            }
        }
        let plain = device(Work { decodes: 100, prefill_tokens: 0 });
        assert!(longest < plain * 3, "{longest:?} of {plain:?}");
        // A step of this crowd has room for 69 tokens.
        assert!(prompts > 100 * 69 / 2, "{prompts} tokens in 100 steps");
    }

    #[test]
    fn a_device_whose_steps_take_as_long_for_many_tokens_as_for_few_is_found_out() {
        let device = |work: Work| Duration::from_micros(60_000 + u64::from(work.prefill_tokens) * 20);
        for stretch in [1.25, 1.5, 2.0] {
            let mut speed = Speed::default();
            let see = |speed: &mut Speed, decodes, prefill_tokens| {
                let work = Work { decodes, prefill_tokens };
                speed.observe(work, device(work));
            };
            // Alone it has only seen what little is left of prompts that were computed elsewhere.
            see(&mut speed, 0, 8);
            see(&mut speed, 1, 0);
            for _ in 0..30 {
                let budget = speed.sparing_budget(stretch);
                see(&mut speed, 100, budget);
            }
            let budget = speed.sparing_budget(stretch);
            assert!(f64::from(budget) > 2_000.0 * (stretch - 1.0), "{budget} tokens for {stretch}");
        }
    }

    #[test]
    fn small_chunks_beside_more_sequences_than_before_do_not_make_prompts_look_cheap() {
        let mut speed = Speed::default();
        let device = |work: Work| {
            Duration::from_micros(
                3_500 + u64::from(work.decodes) * 1_000 + u64::from(work.prefill_tokens) * 650,
            )
        };
        let mut see = |decodes, prefill_tokens| {
            let work = Work { decodes, prefill_tokens };
            speed.observe(work, device(work));
        };
        (0..20).for_each(|_| see(1, 0));
        (0..20).for_each(|_| see(3, 7));
        assert!(speed.prefill_token_time() > Duration::from_micros(500), "{:?}", speed.prefill_token_time());
    }

    #[test]
    fn a_hopelessly_slow_device_still_gets_prompts() {
        let mut speed = Speed::default();
        speed.observe(Work { decodes: 8, prefill_tokens: 0 }, Duration::from_secs(4));
        speed.observe(Work { decodes: 8, prefill_tokens: 256 }, Duration::from_secs(9));
        assert_eq!(speed.prefill_budget(8, TARGET), LEAST_CHUNK);
    }

    #[test]
    fn bounds_are_wide_until_measured() {
        let mut speed = Speed::default();
        let work = Work { decodes: 1, prefill_tokens: 0 };
        assert_eq!(speed.bound(work), UNMEASURED_BOUND);
        speed.observe(work, Duration::from_millis(10));
        assert_eq!(speed.bound(work), HUNG_FLOOR);
        assert_eq!(speed.bound(Work { prefill_tokens: 5, ..work }), UNMEASURED_BOUND);
        assert_eq!(speed.bound(Work { decodes: 100, ..work }), Duration::from_secs(4));
    }
}
