/// Instruction set of the compute kernels. All of them give the same bits; they differ in speed alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// 512-bit vectors with the byte dot product `vpdpbusd`.
    Avx512Vnni,
    /// 256-bit vectors with fused multiply-add and half-precision conversion.
    Avx2Fma,
    /// Portable Rust.
    Scalar,
}

impl Isa {
    /// The fastest one that this machine runs.
    pub fn detect() -> Self {
        Self::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Self::Scalar)
    }

    /// Fastest first.
    pub const ALL: [Self; 3] = [Self::Avx512Vnni, Self::Avx2Fma, Self::Scalar];

    /// Whether this machine runs it.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        match self {
            Self::Avx512Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::Avx2Fma => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Self::Scalar => true,
        }
        #[cfg(not(target_arch = "x86_64"))]
        matches!(self, Self::Scalar)
    }

    /// Name in logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx2Fma => "avx2-fma",
            Self::Scalar => "scalar",
        }
    }
}
