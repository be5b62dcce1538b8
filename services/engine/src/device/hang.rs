use std::time::Duration;

use actors::frames::HEARTBEAT;

use super::clock::Stamp;

/// How much longer than announced anything may take. Ingress has gone on elsewhere long before.
const MARGIN: Duration = Duration::from_secs(10);

/// Finds out that the device hangs, from heartbeats: only those that saw it at the same thing count as time, so that a
/// process that was stopped meanwhile blames nobody.
#[derive(Debug, Default)]
pub(super) struct HangWatch {
    seen: Option<Stamp>,
    beats: u32,
}

impl HangWatch {
    /// Call every [`HEARTBEAT`], never sooner, with what the device has been at for longest. True once that should have
    /// ended long ago.
    pub fn hangs(&mut self, oldest: Option<Stamp>) -> bool {
        let Some(stamp) = oldest.filter(|_| oldest == self.seen) else {
            *self = Self { seen: oldest, beats: 0 };
            return false;
        };
        self.beats = self.beats.saturating_add(1);
        HEARTBEAT.saturating_mul(self.beats) > stamp.bound + MARGIN
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn stamp(began: Instant) -> Option<Stamp> {
        Some(Stamp { began, bound: Duration::from_secs(1) })
    }

    /// Beats until something of a second's bound hangs.
    fn patience() -> u32 {
        (MARGIN + Duration::from_secs(1)).div_duration_f64(HEARTBEAT) as u32
    }

    #[test]
    fn a_step_hangs_when_it_was_seen_running_for_longer_than_its_bound_and_the_margin() {
        let (mut watch, step) = (HangWatch::default(), stamp(Instant::now()));
        assert!(!watch.hangs(step), "it is new");
        for beat in 1..=patience() {
            assert!(!watch.hangs(step), "beat {beat}");
        }
        assert!(watch.hangs(step));
    }

    #[test]
    fn time_in_which_the_process_was_stopped_does_not_count() {
        let hours_ago = Instant::now().checked_sub(Duration::from_secs(7200)).unwrap();
        let mut watch = HangWatch::default();
        for _ in 0..patience() {
            assert!(!watch.hangs(stamp(hours_ago)));
        }
    }

    #[test]
    fn what_follows_each_other_does_not_add_up_and_neither_do_pauses() {
        let (mut watch, start) = (HangWatch::default(), Instant::now());
        for beat in 0..10 * patience() {
            assert!(!watch.hangs(stamp(start + HEARTBEAT * (beat / 2))), "each step is seen twice");
        }
        for beat in 0..10 * patience() {
            let step = if beat % 8 == 0 { None } else { stamp(start) };
            assert!(!watch.hangs(step), "the last step has ended");
        }
    }
}
