//! Large products through cuBLASLt: fast, but the order of additions is the library's choice for each shape.

use std::{cell::RefCell, collections::HashMap, ffi::c_void, rc::Rc, sync::Arc};

use cudarc::{
    cublaslt::{result, sys},
    driver::CudaContext,
};
use half::bf16;

use crate::{Buffer, CudaError, Device, View};

/// What Hopper's split and stream-k algorithms want.
const WORKSPACE_BYTES: usize = 32 << 20;

/// CUBLAS_OP_T of `cublasOperation_t`, which the bindings do not carry for this library.
const TRANSPOSE: i32 = 1;

/// Where a product goes: bf16, or added to f32.
#[derive(Debug, Clone, Copy)]
pub(crate) enum BlasOutput<'a> {
    Bf16(View<'a, bf16>),
    F32(View<'a, f32>),
    AddF32(View<'a, f32>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    m: usize,
    n: usize,
    k: usize,
    wide: bool,
}

/// A library handle, its workspace, and the plans made so far. Plans are kept for the life of the process; the number
/// of different shapes that steps can have is bounded.
#[derive(Debug)]
pub(crate) struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer<u8>,
    plans: RefCell<HashMap<Key, Rc<Plan>>>,
}

impl Blas {
    /// cuBLASLt must be present and the context current.
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        Ok(Self {
            handle: result::create_handle()?,
            workspace: Buffer::new(context, WORKSPACE_BYTES)?,
            plans: RefCell::default(),
        })
    }

    /// out[m, n] = x[m, k] w[n, k]^T.
    pub fn product(
        &self,
        device: &Device,
        output: BlasOutput<'_>,
        x: View<'_, bf16>,
        w: View<'_, bf16>,
        [m, n, k]: [usize; 3],
    ) -> Result<(), CudaError> {
        let (address, wide, beta) = match output {
            BlasOutput::Bf16(view) => (view.address(), false, 0.0f32),
            BlasOutput::F32(view) => (view.address(), true, 0.0),
            BlasOutput::AddF32(view) => (view.address(), true, 1.0),
        };
        let plan = self.plan(Key { m, n, k, wide })?;
        let alpha = 1.0f32;
        // SAFETY: the views cover the matrices that the plan's layouts describe (checked by the caller); handle,
        // plan and workspace live as long as self.
        unsafe {
            result::matmul(
                self.handle,
                plan.operation,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                w.address() as *const c_void,
                plan.a,
                x.address() as *const c_void,
                plan.b,
                address as *const c_void,
                plan.out,
                address as *mut c_void,
                plan.out,
                &plan.algorithm,
                self.workspace.view().address() as *mut c_void,
                WORKSPACE_BYTES,
                device.stream().cu_stream().cast(),
            )?;
        }
        device.count_launch();
        Ok(())
    }

    fn plan(&self, key: Key) -> Result<Rc<Plan>, CudaError> {
        let mut plans = self.plans.borrow_mut();
        if let Some(plan) = plans.get(&key) {
            return Ok(plan.clone());
        }
        let plan = Rc::new(Plan::new(self.handle, key)?);
        plans.insert(key, plan.clone());
        Ok(plan)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.borrow_mut().clear();
        // SAFETY: created by create_handle, destroyed once, after its plans.
        if let Err(error) = unsafe { result::destroy_handle(self.handle) } {
            tracing::warn!(%error, "cannot destroy the cublaslt handle");
        }
    }
}

/// Descriptors of one shape and the algorithm that the library's heuristic names first. In cuBLAS' column order the
/// product is out^T[n, m] = (w^T)^T x^T.
#[derive(Debug)]
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    a: sys::cublasLtMatrixLayout_t,
    b: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, Key { m, n, k, wide }: Key) -> Result<Self, CudaError> {
        let half = sys::cudaDataType_t::CUDA_R_16BF;
        let float = sys::cudaDataType_t::CUDA_R_32F;
        let out_type = if wide { float } else { half };
        let operation = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, float)?;
        let a = result::create_matrix_layout(half, k as u64, n as u64, k as i64)?;
        let b = result::create_matrix_layout(half, k as u64, m as u64, k as i64)?;
        let out = result::create_matrix_layout(out_type, n as u64, m as u64, n as i64)?;
        let transpose = TRANSPOSE;
        let preference = result::create_matmul_pref()?;
        let workspace = WORKSPACE_BYTES;
        // SAFETY: all descriptors were created above; attribute values are of the types that the library documents.
        let found = unsafe {
            result::set_matmul_desc_attribute(
                operation,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transpose).cast(),
                size_of_val(&transpose),
            )?;
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of_val(&workspace),
            )?;
            let found = result::get_matmul_algo_heuristic(handle, operation, a, b, out, out, preference);
            result::destroy_matmul_pref(preference)?;
            found?
        };
        Ok(Self { operation, a, b, out, algorithm: found.algo })
    }
}

impl Drop for Plan {
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
