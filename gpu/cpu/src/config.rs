use models::ModelError;

use crate::{Isa, KvDtype, PackError, Precision};

/// How a [`crate::CpuExecutor`] is set up.
#[derive(Debug, Clone, PartialEq)]
pub struct CpuConfig {
    /// Compute threads, the one that drives the executor included.
    pub threads: usize,
    pub kv_dtype: KvDtype,
    /// Tokens per KV page: a power of two, at least 16.
    pub page_size: u32,
    pub kv: KvBudget,
    /// Sequences that may be open at once.
    pub slots: u32,
    /// Input tokens that one step may carry.
    pub max_batch_tokens: u32,
    /// Longest sequence; the model's own if `None`. No longer than the KV pool.
    pub context_length: Option<u32>,
    /// Instruction set of the kernels; the best of the machine if `None`.
    pub isa: Option<Isa>,
    pub precision: Precision,
}

impl Default for CpuConfig {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            kv_dtype: KvDtype::F16,
            page_size: 16,
            kv: KvBudget::Bytes(1 << 30),
            slots: 64,
            max_batch_tokens: 512,
            context_length: None,
            isa: None,
            precision: Precision::Packed,
        }
    }
}

/// Size of the KV pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvBudget {
    Pages(u32),
    /// As many pages as fit.
    Bytes(u64),
}

/// Why an executor cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error("{field} is {value}, which must be {expected}")]
    Config { field: &'static str, value: u64, expected: &'static str },
    #[error("instruction set {0:?} is not available on this machine")]
    Isa(Isa),
    #[error(
        "kv budget of {budget} bytes holds no page: a page of {page_size} tokens takes {page_bytes} bytes"
    )]
    KvBudget { budget: u64, page_size: u32, page_bytes: u64 },
    #[error(
        "not enough memory: weights take {weights} bytes, the kv pool {kv}, scratch {scratch}, together {}, \
         but {available} are available",
        weights + kv + scratch
    )]
    Memory { weights: u64, kv: u64, scratch: u64, available: u64 },
    #[error("a model with {0}")]
    Shape(String),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error("cannot map the kv pool of {bytes} bytes: {source}")]
    Map { bytes: u64, source: std::io::Error },
    #[error("cannot start a compute thread: {0}")]
    Thread(std::io::Error),
}
