//! What a broken device looks like: in a process of its own, which it costs.

use std::process::Command;

use cuda::{CudaError, ops::CopyPages};
use half::bf16;
use models::ExecutorError;

use crate::{
    harness::{Case, Context, Failure, Outcome, ensure},
    random::Random,
};

/// Argument of the process that breaks its device.
pub const CHILD: &str = "fault";

pub fn cases() -> Vec<Case> {
    vec![Case { name: "device: an illegal access has a name and stays", run: illegal_access }]
}

fn illegal_access(context: &Context, _: &mut Random) -> Outcome {
    if context.light {
        return Ok("left out: a sanitizer would count it".to_owned());
    }
    let child = std::env::current_exe().and_then(|this| Command::new(this).arg(CHILD).output());
    let output = child.map_err(|error| Failure(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure(output.status.success(), || format!("{}: {text}", output.status))?;
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// Copies a page from far outside its pool, and looks twice at what the device says to that.
pub fn fail(context: &Context) -> Result<(), String> {
    let text = |error: CudaError| error.to_string();
    let device = &context.device;
    let kv = device.upload(&[bf16::ZERO; 64]).map_err(text)?;
    let pairs = device.upload(&[u32::MAX, 0]).map_err(text)?;
    let copy = CopyPages { kv: kv.view().cast(), pairs: pairs.view(), count: 1, layers: 1, page_bytes: 128 };
    device.copy_pages(copy).map_err(text)?;
    let first = device.synchronize();
    let then = device.read(kv.view());
    let (Err(first), Err(then)) = (first, then) else { return Err("nobody noticed".to_owned()) };
    let lost =
        |error| matches!(ExecutorError::from(error), ExecutorError::Device(why) if why.contains("ILLEGAL"));
    let said = first.to_string();
    if lost(first) && lost(then) {
        println!("{said}");
        return Ok(());
    }
    Err(said)
}
