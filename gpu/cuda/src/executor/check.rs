//! Bounds of this executor beyond the contract of a batch.

use models::{Batch, Logprobs};

use super::slots::{MAX_BIAS, MAX_STOPS};
use crate::ops::MAX_TOP;

/// # Errors
/// What exceeds which bound.
pub(super) fn check_bounds(batch: &Batch) -> Result<(), String> {
    for open in &batch.opens {
        let (slot, params) = (open.slot.0, &open.params);
        if params.logit_bias.len() > MAX_BIAS {
            return Err(format!("slot {slot} has more than {MAX_BIAS} biases"));
        }
        if params.stop_ids.len() > MAX_STOPS {
            return Err(format!("slot {slot} has more than {MAX_STOPS} stop ids"));
        }
        if let Logprobs::Top(count) = params.logprobs
            && usize::from(count) > MAX_TOP
        {
            return Err(format!("slot {slot} reports more than {MAX_TOP} tokens"));
        }
    }
    Ok(())
}
