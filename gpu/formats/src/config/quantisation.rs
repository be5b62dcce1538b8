use serde_json::Value;

use super::fields::Fields;
use crate::{error::ErrorKind, fp8::SCALE_BLOCK};

/// Accepts the `quantization_config` of FP8 checkpoints whose weights have a scale for each block of 128 x 128 elements
/// and whose activations are quantised, if at all, as they come. Which tensors are FP8 their types say.
pub(super) fn check(fields: Fields<'_>) -> Result<(), ErrorKind> {
    match fields.str("quant_method")? {
        Some("fp8") => {}
        Some(other) => {
            let reason =
                format!("quantisation by {other:?} (built are fp8 in blocks of 128 x 128, and GGUF files)");
            return Err(fields.unsupported("quant_method", reason));
        }
        None => return Err(fields.malformed("quant_method", "missing")),
    }
    match fields.str("fmt")? {
        None | Some("e4m3") => {}
        Some(other) => return Err(fields.unsupported("fmt", format!("the FP8 format {other:?}"))),
    }
    match fields.str("activation_scheme")? {
        None | Some("dynamic") => {}
        Some(other) => {
            return Err(fields.unsupported("activation_scheme", format!("{other:?}, other than \"dynamic\"")));
        }
    }
    let block = fields.list("weight_block_size")?.unwrap_or_default();
    let expected = [Value::from(SCALE_BLOCK), Value::from(SCALE_BLOCK)];
    if block != expected {
        let found = Value::from(block);
        return Err(fields.unsupported("weight_block_size", format!("{found}, other than [128,128],")));
    }
    Ok(())
}
