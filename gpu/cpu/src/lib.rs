//! The CPU executor: paged KV, quantised matrix products and attention for x86-64 (AVX-512, AVX2) and, in plain
//! Rust, for anything else.
//!
//! It is the default where there is no GPU and the oracle for the other executors, so its results are canonical: a
//! position's logits have the same bits whatever else is in the batch, however its prompt was cut into chunks, on
//! any number of threads and any instruction set.

mod activation;
mod attention;
mod config;
mod executor;
mod isa;
mod kv_pool;
mod linear;
mod memory;
mod norm;
mod probe;
mod rope;
mod simd;
mod team;
mod weights;

pub use config::{CpuConfig, CpuError, KvBudget};
pub use executor::{CpuExecutor, PhaseKind, Profile};
pub use isa::Isa;
pub use kv::KvDtype;
pub use linear::{Acts, ActsFormat, Linear, OutPtr, PackError, Precision, TILE_ROWS};
pub use memory::MemoryReport;
pub use probe::int8_operations;
pub use weights::LoadProgress;
