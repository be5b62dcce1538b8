use std::{fmt, mem::MaybeUninit};

use cudarc::cublaslt::{
    result::CublasError,
    sys::{self, cublasLtMatmulAlgoConfigAttributes_t as Attribute},
};

use super::{Product, WORKSPACE_BYTES, layout::Layout};
use crate::CudaError;

/// How the library computes a product: what its algorithms are configured by, in its own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Algorithm {
    pub id: u32,
    pub tile: u32,
    pub stages: u32,
    /// Parts of k that are added up in the end.
    pub split: u32,
    pub reduction: u32,
    pub swizzle: u32,
    pub custom: u32,
    pub inner: u16,
    pub cluster: u16,
}

/// Why a product is not computed by an algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    Library(CublasError),
    /// It wants more than [`WORKSPACE_BYTES`].
    Workspace(usize),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Library(CublasError(status)) => write!(f, "the library says {status:?}"),
            Self::Workspace(bytes) => write!(f, "a workspace of {bytes} bytes, there are {WORKSPACE_BYTES}"),
        }
    }
}

impl From<CublasError> for Refusal {
    fn from(error: CublasError) -> Self {
        Self::Library(error)
    }
}

impl Algorithm {
    /// At most so many that the library proposes for a product, the best by its own estimate first.
    pub(super) fn proposed(
        handle: sys::cublasLtHandle_t,
        layout: &Layout,
        most: usize,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>, CudaError> {
        let mut results = vec![MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); most];
        let mut count = 0;
        let preference = layout.preference()?;
        // SAFETY: descriptors and preference are alive; the array has room for as many results as are asked for, of which
        // the library writes the first `count`.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                layout.operation,
                layout.a,
                layout.b,
                layout.out,
                layout.out,
                preference.0,
                results.len() as i32,
                results.as_mut_ptr().cast(),
                &mut count,
            )
            .result()?;
            Ok(results[..count as usize].iter().map(|result| result.assume_init_ref().algo).collect())
        }
    }

    /// What an algorithm is configured by.
    pub(super) fn of(algorithm: &sys::cublasLtMatmulAlgo_t) -> Result<Self, CudaError> {
        fn read<T: Default>(
            algorithm: &sys::cublasLtMatmulAlgo_t,
            attribute: Attribute,
        ) -> Result<T, CudaError> {
            let (mut value, mut written) = (T::default(), 0);
            // SAFETY: the buffer has the size that is named, that of the attribute's type.
            unsafe {
                sys::cublasLtMatmulAlgoConfigGetAttribute(
                    algorithm,
                    attribute,
                    (&raw mut value).cast(),
                    size_of::<T>(),
                    &mut written,
                )
            }
            .result()?;
            Ok(value)
        }
        Ok(Self {
            id: read(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_ID)?,
            tile: read(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID)?,
            stages: read(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID)?,
            split: read(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM)?,
            reduction: read(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)?,
            swizzle: read(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING)?,
            custom: read(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION)?,
            inner: read(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID)?,
            cluster: read(algorithm, Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID)?,
        })
    }

    /// As the library takes it, unless it cannot compute the product so.
    pub(super) fn accepted(
        &self,
        handle: sys::cublasLtHandle_t,
        layout: &Layout,
        product: Product,
    ) -> Result<sys::cublasLtMatmulAlgo_t, Refusal> {
        let [half, out] = [Layout::HALF, Layout::out_type(product)];
        let mut made = MaybeUninit::uninit();
        // SAFETY: the handle is alive; the library fills the algorithm in, or fails.
        let mut made = unsafe {
            sys::cublasLtMatmulAlgoInit(
                handle,
                Layout::COMPUTE,
                Layout::SCALE,
                half,
                half,
                out,
                out,
                self.id as i32,
                made.as_mut_ptr(),
            )
            .result()?;
            made.assume_init()
        };
        let words = [
            (Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID, self.tile),
            (Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID, self.stages),
            (Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM, self.split),
            (Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, self.reduction),
            (Attribute::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, self.swizzle),
            (Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, self.custom),
        ];
        let shorts = [
            (Attribute::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, self.inner),
            (Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, self.cluster),
        ];
        fn write<T>(
            made: &mut sys::cublasLtMatmulAlgo_t,
            (attribute, value): (Attribute, T),
        ) -> Result<(), CublasError> {
            // SAFETY: the value has the size that is named, that of the attribute's type.
            unsafe {
                sys::cublasLtMatmulAlgoConfigSetAttribute(
                    made,
                    attribute,
                    (&raw const value).cast(),
                    size_of::<T>(),
                )
            }
            .result()
        }
        for word in words {
            write(&mut made, word)?;
        }
        for short in shorts {
            write(&mut made, short)?;
        }
        let mut result = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit();
        // SAFETY: all descriptors are alive; the library fills the result in, or fails.
        let result = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                handle,
                layout.operation,
                layout.a,
                layout.b,
                layout.out,
                layout.out,
                &made,
                result.as_mut_ptr(),
            )
            .result()?;
            result.assume_init()
        };
        if result.workspaceSize <= WORKSPACE_BYTES {
            Ok(made)
        } else {
            Err(Refusal::Workspace(result.workspaceSize))
        }
    }
}
