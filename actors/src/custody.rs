//! Passing custody: a hop hands a request to the next and is free of it once that one has accepted.

use std::time::{Duration, Instant};

use bytes::Bytes;
use messages::{Envelope, Fault, FaultCode, InstanceId, codec, submit::Custody};

use crate::{
    bus::{AskError, Bus},
    suspects::Suspects,
};

/// An instance that has not accepted by then is passed over; runs make the duplicate harmless.
pub const ACCEPT_WITHIN: Duration = Duration::from_millis(250);
/// Pause before the same instances are asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// Hands a request over, trying instances until one accepts or `give_up` has come. Instances that are overloaded are
/// asked once: asking again and again would add to what they have too much of.
///
/// `choose` names the next instance, given those that failed so far; `None` when it knows no other. `message` makes
/// the subject and body for an instance (a fresh run id per dispatch, for example). `unanswered` is told of each
/// instance that took the message, perhaps, and did not answer; it says whether to go on with another.
///
/// # Errors
/// The refusal, if it is of a kind that no other instance would answer differently; overload, if any instance said so
/// and no other took it; else why the last one failed.
pub async fn hand_over(
    bus: &Bus,
    suspects: &Suspects,
    envelope: &Envelope,
    give_up: Instant,
    mut choose: impl FnMut(&[InstanceId]) -> Option<InstanceId>,
    mut message: impl FnMut(&InstanceId) -> (String, Bytes),
    mut unanswered: impl FnMut(&InstanceId) -> bool,
) -> Result<InstanceId, Fault> {
    let mut tried = Vec::new();
    let mut overloaded = None;
    let mut last =
        Fault::new(FaultCode::NoInstance, "no instance is alive to take the request").retry_after(1000);
    loop {
        let Some(target) = choose(&tried) else {
            if let Some(fault) = overloaded {
                return Err(fault);
            }
            if tried.is_empty() || Instant::now() + PAUSE >= give_up {
                return Err(last);
            }
            tried.clear();
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let (subject, body) = message(&target);
        match bus.ask_encoded(subject, Some(envelope), body, ACCEPT_WITHIN).await {
            Ok(reply) => match codec::decode(&reply) {
                Ok(Custody::Accepted { instance }) => return Ok(instance),
                Ok(Custody::Refused(fault)) if !fault.retryable() => return Err(fault),
                Ok(Custody::Refused(fault)) if fault.code == FaultCode::Overloaded => {
                    overloaded = Some(fault.clone());
                    last = fault;
                }
                Ok(Custody::Refused(fault)) => last = fault,
                Err(error) => last = Fault::new(FaultCode::Internal, error.to_string()),
            },
            Err(AskError::TooLarge { size, limit }) => {
                let text =
                    format!("the request takes {size} bytes on the bus, which carries {limit} at most");
                return Err(Fault::new(FaultCode::TooLarge, text));
            }
            Err(error) => {
                tracing::debug!(instance = %target, %error, "custody not taken");
                metrics::counter!("stator_custody_retries_total").increment(1);
                suspects.mark(&target);
                if matches!(error, AskError::TimedOut(_)) && !unanswered(&target) {
                    return Err(last);
                }
            }
        }
        if Instant::now() >= give_up {
            return Err(last);
        }
        tried.push(target);
    }
}

/// `instances` beginning with another one each turn.
pub fn in_turn(mut instances: Vec<InstanceId>, turn: usize) -> Vec<InstanceId> {
    if !instances.is_empty() {
        let first = turn % instances.len();
        instances.rotate_left(first);
    }
    instances
}

/// The first of `instances` that was not tried and is not suspect, else the first not tried. Callers take them [`in_turn`].
pub fn prefer(instances: &[InstanceId], tried: &[InstanceId], suspects: &Suspects) -> Option<InstanceId> {
    let fresh = || instances.iter().filter(|instance| !tried.contains(instance));
    fresh().find(|instance| !suspects.is_suspect(instance)).or_else(|| fresh().next()).cloned()
}
