use cudarc::cublaslt::{result, sys};

use super::{Product, WORKSPACE_BYTES};
use crate::CudaError;

/// CUBLAS_OP_T of `cublasOperation_t`, which the bindings do not carry for this library.
const TRANSPOSE: i32 = 1;

/// Descriptors of a product. In cuBLAS' column order it is out^T[n, m] = (w^T)^T x^T.
#[derive(Debug)]
pub(super) struct Layout {
    pub operation: sys::cublasLtMatmulDesc_t,
    pub a: sys::cublasLtMatrixLayout_t,
    pub b: sys::cublasLtMatrixLayout_t,
    pub out: sys::cublasLtMatrixLayout_t,
}

impl Layout {
    pub const HALF: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_16BF;
    pub const SCALE: sys::cudaDataType_t = sys::cudaDataType_t::CUDA_R_32F;
    pub const COMPUTE: sys::cublasComputeType_t = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;

    pub fn out_type(product: Product) -> sys::cudaDataType_t {
        if product.wide { sys::cudaDataType_t::CUDA_R_32F } else { Self::HALF }
    }

    pub fn new(product: Product) -> Result<Self, CudaError> {
        let Product { m, n, k, .. } = product;
        let layout = Self {
            operation: result::create_matmul_desc(Self::COMPUTE, Self::SCALE)?,
            a: result::create_matrix_layout(Self::HALF, k as u64, n as u64, k as i64)?,
            b: result::create_matrix_layout(Self::HALF, k as u64, m as u64, k as i64)?,
            out: result::create_matrix_layout(Self::out_type(product), n as u64, m as u64, n as i64)?,
        };
        let transpose = TRANSPOSE;
        // SAFETY: the descriptor was created above; the value is of the type that the library documents.
        unsafe {
            result::set_matmul_desc_attribute(
                layout.operation,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transpose).cast(),
                size_of_val(&transpose),
            )?;
        }
        Ok(layout)
    }

    /// What the library is asked to keep to when it proposes algorithms.
    pub fn preference(&self) -> Result<Preference, CudaError> {
        let preference = Preference(result::create_matmul_pref()?);
        let workspace = WORKSPACE_BYTES;
        // SAFETY: the preference was created above; the value is of the type that the library documents.
        unsafe {
            result::set_matmul_pref_attribute(
                preference.0,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of_val(&workspace),
            )?;
        }
        Ok(preference)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        let results = unsafe {
            [
                result::destroy_matrix_layout(self.a),
                result::destroy_matrix_layout(self.b),
                result::destroy_matrix_layout(self.out),
                result::destroy_matmul_desc(self.operation),
            ]
        };
        for error in results.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "cannot destroy a cublaslt descriptor");
        }
    }
}

#[derive(Debug)]
pub(super) struct Preference(pub sys::cublasLtMatmulPreference_t);

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by `Layout::preference`, destroyed once.
        if let Err(error) = unsafe { result::destroy_matmul_pref(self.0) } {
            tracing::warn!(%error, "cannot destroy a cublaslt preference");
        }
    }
}
