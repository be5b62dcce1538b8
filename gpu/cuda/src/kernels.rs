use std::{collections::HashMap, fmt, sync::Arc};

use cudarc::driver::{CudaContext, CudaFunction, sys::CUfunction_attribute_enum};
use cudarc::nvrtc::Ptx;

use crate::CudaError;

/// A source file of kernels, compiled as a whole after its private headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelFile {
    DecodeAttention,
    Elementwise,
    Float32,
    Fp8,
    Gemm,
    GemmCluster,
    GemmCodes,
    GemmMany,
    GemmWide,
    Pages,
    Persistent,
    PrefillAttention,
    Probe,
    Qkv,
    Sample,
}

impl KernelFile {
    pub const ALL: [Self; 15] = [
        Self::DecodeAttention,
        Self::Elementwise,
        Self::Float32,
        Self::Fp8,
        Self::Gemm,
        Self::GemmCluster,
        Self::GemmCodes,
        Self::GemmMany,
        Self::GemmWide,
        Self::Pages,
        Self::Persistent,
        Self::PrefillAttention,
        Self::Probe,
        Self::Qkv,
        Self::Sample,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::DecodeAttention => "decode_attention.cu",
            Self::Elementwise => "elementwise.cu",
            Self::Float32 => "float32.cu",
            Self::Fp8 => "fp8.cu",
            Self::Gemm => "gemm.cu",
            Self::GemmCluster => "gemm_cluster.cu",
            Self::GemmCodes => "gemm_codes.cu",
            Self::GemmMany => "gemm_many.cu",
            Self::GemmWide => "gemm_wide.cu",
            Self::Persistent => "persistent.cu",
            Self::PrefillAttention => "prefill_attention.cu",
            Self::Pages => "pages.cu",
            Self::Probe => "probe.cu",
            Self::Qkv => "qkv.cu",
            Self::Sample => "sample.cu",
        }
    }

    /// The file of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|file| file.name() == name)
    }

    /// What the compiler is given; messages keep the line numbers of the files.
    pub fn source(self) -> String {
        let body = match self {
            Self::DecodeAttention => include_str!("../../kernels/decode_attention.cu"),
            Self::Elementwise => include_str!("../../kernels/elementwise.cu"),
            Self::Float32 => include_str!("../../kernels/float32.cu"),
            Self::Fp8 => include_str!("../../kernels/fp8.cu"),
            Self::Gemm => include_str!("../../kernels/gemm.cu"),
            Self::GemmCluster => include_str!("../../kernels/gemm_cluster.cu"),
            Self::GemmCodes => include_str!("../../kernels/gemm_codes.cu"),
            Self::GemmMany => include_str!("../../kernels/gemm_many.cu"),
            Self::GemmWide => include_str!("../../kernels/gemm_wide.cu"),
            Self::Persistent => include_str!("../../kernels/persistent.cu"),
            Self::PrefillAttention => include_str!("../../kernels/prefill_attention.cu"),
            Self::Pages => include_str!("../../kernels/pages.cu"),
            Self::Probe => include_str!("../../kernels/probe.cu"),
            Self::Qkv => include_str!("../../kernels/qkv.cu"),
            Self::Sample => include_str!("../../kernels/sample.cu"),
        };
        let headers = self.headers().iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n"));
        format!("{}#line 1 \"{}\"\n{body}", headers.collect::<String>(), self.name())
    }

    /// What stands before the file, with its name.
    fn headers(self) -> &'static [(&'static str, &'static str)] {
        const COMMON: (&str, &str) = ("common.cuh", include_str!("../../kernels/common.cuh"));
        const ATTENTION: (&str, &str) = ("attention.cuh", include_str!("../../kernels/attention.cuh"));
        const FP8: (&str, &str) = ("fp8.cuh", include_str!("../../kernels/fp8.cuh"));
        const GEMM: (&str, &str) = ("gemm.cuh", include_str!("../../kernels/gemm.cuh"));
        const MANY: (&str, &str) = ("gemm_many.cuh", include_str!("../../kernels/gemm_many.cuh"));
        const WEIGHTS: (&str, &str) = ("gemm_weights.cuh", include_str!("../../kernels/gemm_weights.cuh"));
        const QKV: (&str, &str) = ("qkv.cuh", include_str!("../../kernels/qkv.cuh"));
        const WORK: (&str, &str) = ("decode_work.cuh", include_str!("../../kernels/decode_work.cuh"));
        const LOAD: (&str, &str) = ("decode_load.cuh", include_str!("../../kernels/decode_load.cuh"));
        const MULTIPLY: (&str, &str) =
            ("decode_multiply.cuh", include_str!("../../kernels/decode_multiply.cuh"));
        match self {
            Self::DecodeAttention => &[COMMON, FP8, ATTENTION, WORK, LOAD, MULTIPLY],
            Self::PrefillAttention => &[
                COMMON,
                FP8,
                ATTENTION,
                ("prefill_work.cuh", include_str!("../../kernels/prefill_work.cuh")),
                ("prefill_load.cuh", include_str!("../../kernels/prefill_load.cuh")),
                ("prefill_compute.cuh", include_str!("../../kernels/prefill_compute.cuh")),
                ("prefill_canonical.cuh", include_str!("../../kernels/prefill_canonical.cuh")),
                ("prefill_variant.cuh", include_str!("../../kernels/prefill_variant.cuh")),
            ],
            Self::Fp8 => &[COMMON, FP8],
            Self::Qkv => &[COMMON, FP8, QKV],
            Self::Gemm | Self::GemmWide => &[COMMON, FP8, GEMM, WEIGHTS],
            Self::GemmCluster => &[COMMON, FP8, GEMM, QKV],
            Self::GemmMany => &[COMMON, GEMM, MANY],
            Self::GemmCodes => &[COMMON, FP8, GEMM, MANY],
            Self::Persistent => &[
                COMMON,
                FP8,
                ATTENTION,
                GEMM,
                ("persistent/messages.cuh", include_str!("../../kernels/persistent/messages.cuh")),
                ("persistent/weights.cuh", include_str!("../../kernels/persistent/weights.cuh")),
                ("persistent/products.cuh", include_str!("../../kernels/persistent/products.cuh")),
                ("persistent/attention.cuh", include_str!("../../kernels/persistent/attention.cuh")),
            ],
            _ => &[COMMON],
        }
    }

    fn kernels(self) -> &'static [&'static str] {
        match self {
            Self::DecodeAttention => &[
                "attention_decode_64",
                "attention_decode_128",
                "attention_decode_64_fp8",
                "attention_decode_128_fp8",
            ],
            Self::Elementwise => &["embed", "rms_norm", "gather_rows", "copy_pages"],
            Self::Float32 => &["embed_f32", "norm_f32", "gemm_f32", "gate_f32", "heads_f32", "attention_f32"],
            Self::Fp8 => &["fp8_pack", "fp8_quantise", "fp8_unpack"],
            Self::Gemm => &[
                "gemm_stream_1_1",
                "gemm_stream_2_1",
                "gemm_stream_2_1_short",
                "gemm_stream_1_2",
                "gemm_stream_2_2",
                "gemm_stream_4_2",
                "gemm_stream_1_1_fp8",
                "gemm_stream_2_1_fp8",
                "gemm_stream_1_2_fp8",
                "gemm_stream_2_2_fp8",
                "gemm_stream_4_2_fp8",
            ],
            Self::GemmWide => &[
                "gemm_wide_32",
                "gemm_wide_64",
                "gemm_wide_64_fold",
                "gemm_wide_128_fold",
                "gemm_wide_128_split",
                "gemm_wide_32_fp8",
                "gemm_wide_64_fp8",
                "gemm_wide_64_fold_fp8",
                "gemm_wide_128_fold_fp8",
                "gemm_wide_32_split_fp8",
                "gemm_wide_64_split_fp8",
                "gemm_wide_128_split_fp8",
            ],
            Self::GemmCluster => &[
                "gemm_cluster_64_32",
                "gemm_cluster_128_32",
                "gemm_cluster_192_32",
                "gemm_cluster_256_32",
                "gemm_cluster_64_64",
                "gemm_cluster_128_64",
                "gemm_cluster_192_64",
                "gemm_cluster_256_64",
                "gemm_cluster_64_32_two",
                "gemm_cluster_64_64_two",
                "gemm_cluster_128_32_one",
                "gemm_cluster_192_32_one",
                "gemm_cluster_192_64_one",
                "gemm_heads_64_32",
                "gemm_heads_64_64",
                "gemm_heads_128_32",
                "gemm_heads_128_64",
                "gemm_heads_64_32_half",
                "gemm_heads_128_32_half",
            ],
            Self::GemmMany => &[
                "gemm_many_64_fold",
                "gemm_many_96_fold",
                "gemm_many_128_fold",
                "gemm_many_192_fold",
                "gemm_many_128_fold_beside",
                "gemm_many_192_fold_beside",
                "gemm_many_192",
                "gemm_many_256",
                "gemm_many_192_beside",
            ],
            Self::GemmCodes => &[
                "codes_of_weights",
                "codes_of_rows",
                "gemm_codes_64",
                "gemm_codes_128",
                "gemm_codes_192",
                "gemm_codes_128_beside",
                "gemm_codes_192_beside",
            ],
            Self::PrefillAttention => &[
                "attention_prefill_64",
                "attention_prefill_128",
                "attention_prefill_64_variant",
                "attention_prefill_128_variant",
                "attention_prefill_64_fp8",
                "attention_prefill_128_fp8",
            ],
            Self::Persistent => &["persistent_step_64", "persistent_step_128"],
            Self::Pages => &["pages_out", "pages_in", "pages_sum"],
            Self::Probe => &["read_all", "fill_bf16"],
            Self::Qkv => &["qkv_head_64", "qkv_head_128", "qkv_head_64_fp8", "qkv_head_128_fp8"],
            Self::Sample => &["sample", "score"],
        }
    }
}

impl fmt::Display for KernelFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Most shared memory that a block may have on compute capability 9.0.
const SHARED_BYTES: i32 = 227 * 1024;

/// All kernels, loaded into a context.
#[derive(Debug)]
pub(crate) struct Kernels {
    functions: HashMap<&'static str, CudaFunction>,
}

impl Kernels {
    /// `images` are cubins, one for each file.
    pub fn load(
        context: &Arc<CudaContext>,
        images: impl IntoIterator<Item = (KernelFile, Vec<u8>)>,
    ) -> Result<Self, CudaError> {
        let mut functions = HashMap::new();
        for (file, image) in images {
            let module = context.load_module(Ptx::from_binary(image))?;
            for &name in file.kernels() {
                let function = module.load_function(name)?;
                let declared =
                    function.get_attribute(CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
                let limit = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                function.set_attribute(limit, SHARED_BYTES - declared)?;
                functions.insert(name, function);
            }
        }
        Ok(Self { functions })
    }

    /// # Panics
    /// If there is no kernel of this name: the names are constants of this crate.
    pub fn get(&self, name: &str) -> &CudaFunction {
        self.functions.get(name).expect("a kernel that KernelFile::kernels lists")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_kernel_is_in_its_source() {
        for file in KernelFile::ALL {
            let source = file.source();
            for name in file.kernels() {
                let stem = name.split('_').take(2).collect::<Vec<_>>().join("_");
                assert!(source.contains(&stem), "{name}");
            }
        }
    }

    #[test]
    fn files_are_found_by_their_names() {
        for file in KernelFile::ALL {
            assert_eq!(KernelFile::named(file.name()), Some(file));
        }
        assert_eq!(KernelFile::named("../etc/passwd"), None);
    }
}
