use kv::{Arrangement, KvDtype, Order};
use models::DecoderSpec;

use super::Dimensions;
use crate::{DeviceConfig, DeviceInfo, ops::GemmMode};

/// How a [`crate::CudaExecutor`] is set up.
#[derive(Debug, Clone)]
pub struct CudaConfig {
    pub device: DeviceConfig,
    /// Tokens per KV page, a power of two.
    pub page_size: u32,
    pub kv: KvBudget,
    pub kv_format: KvFormat,
    /// Pages beside the pool, to be set aside later ([`crate::SharedMemory`]) for others to store to.
    pub transfer_slots: u32,
    /// Sequences that may be open at once.
    pub slots: u32,
    /// Input tokens that one step may carry.
    pub max_batch_tokens: u32,
    /// Longest sequence; the model's own if `None`. No longer than the KV pool.
    pub context_length: Option<u32>,
    pub gemm: GemmMode,
    pub weights: WeightFormat,
    /// Run decode steps of few rows as one kernel, where the model is small enough for that to pay.
    pub persistent: bool,
    /// Run decode steps of 33 to 64 rows as two halves beside each other from so many attention tiles of a key head on,
    /// where weights are few beside keys and values.
    pub halves_from: Option<usize>,
    /// Replay decode steps as graphs.
    pub graphs: bool,
}

impl CudaConfig {
    /// What [`CudaConfig::halves_from`] is unless there is a reason.
    pub const HALVES_FROM: usize = 320;
}

/// What decides which bits an engine computes, its configuration aside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arithmetic<'a> {
    pub gpu: &'a DeviceInfo,
    /// [`crate::Device::digest`]
    pub kernels: &'a str,
    /// Version of cuBLASLt.
    pub library: Option<usize>,
    /// Element types of the layers' matrices.
    pub weights: &'a str,
}

/// What the matrices of layers become on the device. Embedding and output head are bf16, unless said otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightFormat {
    /// FP8 where the checkpoint holds FP8 (and heads have 64 or 128 elements), else bf16.
    #[default]
    AsStored,
    /// FP8: what the checkpoint holds otherwise is quantised.
    Fp8,
    /// f32, the embedding and the output head too, and so is all that is computed and kept, whatever the format of keys and
    /// values: by plain kernels, to check others against.
    Float32,
}

/// Element type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvFormat {
    #[default]
    Bf16,
    /// FP8 E4M3 without a scale: what is beyond 448 becomes that.
    Fp8E4m3,
}

impl CudaConfig {
    pub(super) fn is_f32(&self) -> bool {
        self.weights == WeightFormat::Float32
    }

    /// The element type of keys and values.
    fn kv_name(&self) -> &'static str {
        if self.is_f32() { KvDtype::F32.name() } else { self.kv_format.name() }
    }

    /// Bytes of an element of keys and values.
    pub(super) fn kv_bytes(&self) -> usize {
        if self.is_f32() { KvDtype::F32.bytes() } else { self.kv_format.bytes() }
    }

    /// Engines of one class compute the same bits. With batch-variant kernels none but the same batches do, and the order
    /// of additions is the card's and the library's.
    pub(super) fn numerics_class(&self, arithmetic: Arithmetic<'_>) -> String {
        let Arithmetic { gpu, kernels, library, weights } = arithmetic;
        let (major, minor) = gpu.capability;
        let class = format!("cuda-sm{major}{minor}-{weights}-kv{}-{kernels}", self.kv_name());
        match self.gemm {
            GemmMode::BatchInvariant => class,
            GemmMode::BatchVariant => {
                let card = gpu.name.to_lowercase().replace(' ', "-");
                let library = library.map_or_else(|| "none".to_owned(), |version| version.to_string());
                format!("{class}-batch-variant-{card}-cublaslt-{library}")
            }
        }
    }

    /// What pages of a decoder are called.
    pub(super) fn layout_name(&self, model: &DecoderSpec, dimensions: &Dimensions) -> String {
        let Dimensions { kv_heads, head_dim, .. } = *dimensions;
        let dtype = match self.kv_format {
            _ if self.is_f32() => KvDtype::F32,
            KvFormat::Bf16 => KvDtype::Bf16,
            KvFormat::Fp8E4m3 => return format!("cuda {} {kv_heads}x{head_dim}", self.kv_name()),
        };
        let arrangement = Arrangement {
            order: Order::Rows { width: head_dim as u32 },
            dtype,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            turning: model.rope.dim,
        };
        arrangement.to_string()
    }
}

impl KvFormat {
    pub const ALL: [Self; 2] = [Self::Bf16, Self::Fp8E4m3];

    /// As SGLang calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Fp8E4m3 => "fp8_e4m3",
        }
    }

    /// Of an element.
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::Fp8E4m3 => 1,
        }
    }
}

/// Size of the KV pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KvBudget {
    Pages(u32),
    /// What this process' weights, buffers and transfer slots leave of this share of the device's memory, or as much as is free.
    MemoryFraction(f64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CompileMode;

    fn config(gemm: GemmMode) -> CudaConfig {
        CudaConfig {
            device: DeviceConfig { ordinal: 0, cache_dir: "".into(), compile: CompileMode::InProcess },
            page_size: 16,
            kv: KvBudget::Pages(1),
            kv_format: KvFormat::Bf16,
            transfer_slots: 0,
            slots: 1,
            max_batch_tokens: 1,
            context_length: None,
            gemm,
            weights: WeightFormat::AsStored,
            persistent: false,
            halves_from: None,
            graphs: false,
        }
    }

    fn class(gemm: GemmMode, name: &str, library: Option<usize>) -> String {
        let gpu =
            DeviceInfo { name: name.to_owned(), capability: (9, 0), multiprocessors: 132, memory_bytes: 0 };
        config(gemm).numerics_class(Arithmetic { gpu: &gpu, kernels: "0123abcd", library, weights: "bf16" })
    }

    #[test]
    fn only_batch_variant_kernels_depend_on_card_and_library() {
        let (invariant, variant) = (GemmMode::BatchInvariant, GemmMode::BatchVariant);
        assert_eq!(class(invariant, "A B", Some(130_100)), "cuda-sm90-bf16-kvbf16-0123abcd");
        assert_eq!(class(invariant, "A B", None), class(invariant, "C", Some(130_100)));
        assert_eq!(
            class(variant, "A B", Some(130_100)),
            "cuda-sm90-bf16-kvbf16-0123abcd-batch-variant-a-b-cublaslt-130100"
        );
        assert_ne!(class(variant, "A", Some(130_100)), class(variant, "B", Some(130_100)));
        assert_ne!(class(variant, "A", Some(130_100)), class(variant, "A", None));
    }
}
