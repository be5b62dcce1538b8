use std::time::Duration;

use actors::frames::HEARTBEAT;
use messages::frame::Pulse;

/// How much longer than announced a step may take. Ingress has gone on elsewhere long before.
const MARGIN: Duration = Duration::from_secs(10);

/// Finds out that a step hangs, from heartbeats: only those that saw it run count as time, so that a process that was
/// stopped meanwhile blames nobody.
#[derive(Debug, Default)]
pub(super) struct HangWatch {
    step: u64,
    beats: u32,
}

impl HangWatch {
    /// Call every [`HEARTBEAT`], never sooner. True once the running step should have ended long ago.
    pub fn hangs(&mut self, pulse: Pulse) -> bool {
        if pulse.step != self.step || pulse.age_ms == 0 {
            *self = Self { step: pulse.step, beats: 0 };
            return false;
        }
        self.beats = self.beats.saturating_add(1);
        HEARTBEAT.saturating_mul(self.beats) > Duration::from_millis(pulse.bound_ms.into()) + MARGIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(step: u64, age_ms: u32) -> Pulse {
        Pulse { step, age_ms, bound_ms: 1000 }
    }

    /// Beats until a step of a second's bound hangs.
    fn patience() -> u32 {
        (MARGIN + Duration::from_secs(1)).div_duration_f64(HEARTBEAT) as u32
    }

    #[test]
    fn a_step_hangs_when_it_was_seen_running_for_longer_than_its_bound_and_the_margin() {
        let mut watch = HangWatch::default();
        assert!(!watch.hangs(pulse(7, 90)), "it is new");
        for beat in 1..=patience() {
            assert!(!watch.hangs(pulse(7, 250 * beat)), "beat {beat}");
        }
        assert!(watch.hangs(pulse(7, 12_000)));
    }

    #[test]
    fn time_in_which_the_process_was_stopped_does_not_count() {
        let mut watch = HangWatch::default();
        for hour in 1..patience() {
            assert!(!watch.hangs(pulse(7, hour * 3_600_000)));
        }
    }

    #[test]
    fn steps_that_follow_each_other_do_not_add_up_and_neither_do_pauses() {
        let mut watch = HangWatch::default();
        for beat in 0..10 * patience() {
            assert!(!watch.hangs(pulse(u64::from(beat / 2), 100)), "each step is seen twice");
        }
        for beat in 0..10 * patience() {
            assert!(!watch.hangs(pulse(9, if beat % 8 == 0 { 0 } else { 100 })), "the last step has ended");
        }
    }
}
