//! When to start a process again, and when not.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

use crate::service::BAD_CONFIGURATION;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);
/// A process that lived this long starts over with the shortest wait.
const STEADY: Duration = Duration::from_secs(60);
/// A process that ends this often without ever having been ready will not be by trying again.
const TRIES_TO_BE_READY: u32 = 3;

/// What to do about a process that ended by itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Again {
        after: Duration,
    },
    /// It cannot work.
    Hopeless,
}

/// One process's record.
#[derive(Debug, Default)]
pub struct Backoff {
    /// Ends in a row.
    ends: u32,
    was_ready: bool,
}

impl Backoff {
    pub fn became_ready(&mut self) {
        self.was_ready = true;
    }

    /// Judges an end after a life of `lived`.
    pub fn judge(&mut self, status: ExitStatus, lived: Duration) -> Verdict {
        // Somebody has drained it.
        let drained = status.success() && self.was_ready;
        if drained || lived >= STEADY {
            self.ends = 0;
        }
        self.ends += 1;
        if status.code() == Some(i32::from(BAD_CONFIGURATION)) {
            return Verdict::Hopeless;
        }
        if !self.was_ready && self.ends >= TRIES_TO_BE_READY {
            return Verdict::Hopeless;
        }
        Verdict::Again { after: FIRST.saturating_mul(1 << (self.ends - 1).min(16)).min(LONGEST) }
    }
}

/// An end in words.
pub fn explain(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended in good order".to_owned(),
        (Some(code), _) if code == i32::from(BAD_CONFIGURATION) => {
            "refused its configuration (exit code 2)".to_owned()
        }
        (Some(code), _) if code == engine::device::DEVICE_LOST => {
            format!("lost its device (exit code {code})")
        }
        (Some(code), _) if code == actors::process::PANICKED => {
            format!("ended because a thread panicked (exit code {code})")
        }
        (Some(code), _) => format!("failed (exit code {code})"),
        (None, Some(9)) => "was killed (signal 9; by the kernel, if memory ran out)".to_owned(),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(10);

    fn failed() -> ExitStatus {
        ExitStatus::from_raw(1 << 8)
    }

    #[test]
    fn waits_double_up_to_a_bound_and_start_over_after_a_steady_life() {
        let mut backoff = Backoff::default();
        backoff.became_ready();
        let mut waits = Vec::new();
        for _ in 0..10 {
            let Verdict::Again { after } = backoff.judge(failed(), MOMENT) else { panic!("given up") };
            waits.push(after);
        }
        assert!(waits.windows(2).all(|pair| pair[1] == (pair[0] * 2).min(LONGEST)), "{waits:?}");
        assert_eq!(waits.last(), Some(&LONGEST));
        assert_eq!(backoff.judge(failed(), STEADY), Verdict::Again { after: FIRST });
    }

    #[test]
    fn however_often_it_is_drained_it_is_started_again_soon() {
        let mut backoff = Backoff::default();
        backoff.became_ready();
        for _ in 0..10 {
            assert_eq!(backoff.judge(ExitStatus::from_raw(0), MOMENT), Verdict::Again { after: FIRST });
        }
    }

    #[test]
    fn what_never_became_ready_is_given_up() {
        let mut backoff = Backoff::default();
        let verdicts: Vec<Verdict> = (0..3).map(|_| backoff.judge(failed(), MOMENT)).collect();
        assert!(matches!(verdicts[..], [Verdict::Again { .. }, Verdict::Again { .. }, Verdict::Hopeless]));
    }

    #[test]
    fn a_refused_configuration_is_not_tried_again() {
        let refused = ExitStatus::from_raw(i32::from(BAD_CONFIGURATION) << 8);
        let mut backoff = Backoff::default();
        backoff.became_ready();
        assert_eq!(backoff.judge(refused, MOMENT), Verdict::Hopeless);
    }
}
