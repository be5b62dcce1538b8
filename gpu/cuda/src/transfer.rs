//! KV pages on their way to other processes: out of the pool and into it, in memory that is shared by CUDA IPC.

mod memory;
mod mover;

pub use memory::SharedMemory;
pub(crate) use mover::{Mover, PagePool};
