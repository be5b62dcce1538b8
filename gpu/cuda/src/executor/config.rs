use crate::{DeviceConfig, ops::GemmMode};

/// How a [`crate::CudaExecutor`] is set up.
#[derive(Debug, Clone)]
pub struct CudaConfig {
    pub device: DeviceConfig,
    /// Tokens per KV page, a power of two.
    pub page_size: u32,
    pub kv: KvBudget,
    /// Sequences that may be open at once.
    pub slots: u32,
    /// Input tokens that one step may carry.
    pub max_batch_tokens: u32,
    /// Longest sequence; the model's own if `None`. No longer than the KV pool.
    pub context_length: Option<u32>,
    pub gemm: GemmMode,
    /// Replay decode steps as graphs.
    pub graphs: bool,
}

/// Size of the KV pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KvBudget {
    Pages(u32),
    /// As many pages as fit.
    Bytes(u64),
    /// What this process' weights and buffers leave of this share of the device's memory, or as much as is free.
    MemoryFraction(f64),
}
