//! What is checked and chosen before weights are loaded.

use models::Model;

use crate::{
    CpuConfig, CpuError, Isa, KvBudget, MemoryReport, Precision,
    kv_pool::{GROUP, PageShape},
    memory::available_bytes,
};

/// Checks what can be checked before anything is loaded and chooses the instruction set.
pub(super) fn check_config(model: &Model, config: &CpuConfig) -> Result<Isa, CpuError> {
    let positive = |field, value: u64| {
        if value == 0 { Err(CpuError::Config { field, value, expected: "at least 1" }) } else { Ok(()) }
    };
    positive("threads", config.threads as u64)?;
    positive("slots", config.slots.into())?;
    positive("max_batch_tokens", config.max_batch_tokens.into())?;
    positive("context_length", config.context_length.unwrap_or(1).into())?;
    if !config.page_size.is_power_of_two() || (config.page_size as usize) < GROUP {
        let value = config.page_size.into();
        return Err(CpuError::Config { field: "page_size", value, expected: "a power of two, at least 16" });
    }
    let spec = &model.spec;
    let shape = |holds: bool, what: String| if holds { Ok(()) } else { Err(CpuError::Shape(what)) };
    shape(spec.layers > 0 && spec.vocab_size > 0, "no layers or no vocabulary".into())?;
    shape(
        spec.kv_heads > 0 && spec.heads.is_multiple_of(spec.kv_heads),
        format!("{} heads over {} kv heads", spec.heads, spec.kv_heads),
    )?;
    shape(
        spec.rope.dim.is_multiple_of(2) && spec.rope.dim <= spec.head_dim,
        format!("{} rotated elements in a head of {}", spec.rope.dim, spec.head_dim),
    )?;
    let isa = config.isa.unwrap_or_else(Isa::detect);
    if isa.is_available() { Ok(isa) } else { Err(CpuError::Isa(isa)) }
}

/// Pages that the budget holds.
pub(super) fn pages(config: &CpuConfig, shape: &PageShape) -> Result<u32, CpuError> {
    let page_bytes = shape.page_bytes() as u64;
    let (pages, budget) = match config.kv {
        KvBudget::Pages(pages) => (pages, u64::from(pages) * page_bytes),
        KvBudget::Bytes(bytes) => (u32::try_from(bytes / page_bytes).unwrap_or(u32::MAX), bytes),
    };
    match pages {
        0 => Err(CpuError::KvBudget { budget, page_size: config.page_size, page_bytes }),
        pages => Ok(pages),
    }
}

/// Whether the machine has the memory, as far as that can be told.
pub(super) fn check_memory(report: MemoryReport) -> Result<(), CpuError> {
    let MemoryReport { weights, kv, scratch } = report;
    match available_bytes() {
        Some(available) if report.total() > available => {
            Err(CpuError::Memory { weights, kv, scratch, available })
        }
        _ => Ok(()),
    }
}

/// Executors of one class compute the same bits: kernel set, weight types, KV type.
pub(super) fn numerics_class(model: &Model, config: &CpuConfig) -> String {
    /// Changes with any change of the arithmetic.
    const KERNELS: &str = "cpu1";
    let weights = match config.precision {
        Precision::F32 => "f32".into(),
        Precision::Packed => {
            let names: Vec<String> =
                model.weights.matrix_dtypes().iter().map(|dtype| dtype.to_string().to_lowercase()).collect();
            names.join("+")
        }
    };
    format!("{KERNELS}/{weights}/kv-{}", config.kv_dtype.name())
}
