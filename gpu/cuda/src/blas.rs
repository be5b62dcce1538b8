//! Large products through cuBLASLt: fast, but the order of additions is the library's choice for each shape.

mod algorithm;
mod choices;
mod layout;

use std::{cell::RefCell, collections::HashMap, ffi::c_void, rc::Rc, sync::Arc};

use cudarc::{
    cublaslt::{result, sys},
    driver::CudaContext,
};
use half::bf16;

pub use self::algorithm::Algorithm;
use self::{choices::Choices, layout::Layout};
use crate::{Buffer, CudaError, Device, Library, View};

/// What Hopper's split and stream-k algorithms want.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Most algorithms that are asked for where one is to be chosen.
const PROPOSALS: usize = 32;

/// Where a product goes: bf16, or added to f32.
#[derive(Debug, Clone, Copy)]
pub(crate) enum BlasOutput<'a> {
    Bf16(View<'a, bf16>),
    F32(View<'a, f32>),
    AddF32(View<'a, f32>),
}

/// A product as the library sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Comes as f32, not as bf16.
    pub wide: bool,
}

/// A library handle, its workspace, and the plans made so far. Plans are kept for the life of the process; the number
/// of different shapes that steps can have is bounded.
#[derive(Debug)]
pub(crate) struct Blas {
    handle: sys::cublasLtHandle_t,
    version: usize,
    /// `None`: nothing was measured for this card and version.
    choices: Option<&'static Choices>,
    workspace: Buffer<u8>,
    plans: RefCell<HashMap<Product, Rc<Plan>>>,
}

impl Blas {
    /// For the GPU of this name. cuBLASLt must be present and the context current.
    pub fn new(context: &Arc<CudaContext>, gpu: &str) -> Result<Self, CudaError> {
        // SAFETY: the library is present.
        let version = unsafe { sys::cublasLtGetVersion() };
        Ok(Self {
            handle: result::create_handle()?,
            version,
            choices: Choices::find(gpu, version),
            workspace: Buffer::new(context, WORKSPACE_BYTES)?,
            plans: RefCell::default(),
        })
    }

    fn proposed(&self, product: Product) -> Result<Vec<Algorithm>, CudaError> {
        Algorithm::proposed(self.handle, &Layout::new(product)?, PROPOSALS)?
            .iter()
            .map(Algorithm::of)
            .collect()
    }

    fn choose(&self, product: Product, algorithm: Algorithm) -> Result<bool, CudaError> {
        let layout = Layout::new(product)?;
        let Ok(algorithm) = algorithm.accepted(self.handle, &layout, product) else { return Ok(false) };
        self.plans.borrow_mut().insert(product, Rc::new(Plan { layout, algorithm }));
        Ok(true)
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
        let plan = self.plan(Product { m, n, k, wide })?;
        let Plan { layout, algorithm } = &*plan;
        let alpha = 1.0f32;
        // SAFETY: the views cover the matrices that the plan's layouts describe (checked by the caller); handle,
        // plan and workspace live as long as self.
        unsafe {
            result::matmul(
                self.handle,
                layout.operation,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                w.address() as *const c_void,
                layout.a,
                x.address() as *const c_void,
                layout.b,
                address as *const c_void,
                layout.out,
                address as *mut c_void,
                layout.out,
                algorithm,
                self.workspace.view().address() as *mut c_void,
                WORKSPACE_BYTES,
                device.stream().cu_stream().cast(),
            )?;
        }
        device.count_launch();
        Ok(())
    }

    fn plan(&self, product: Product) -> Result<Rc<Plan>, CudaError> {
        let mut plans = self.plans.borrow_mut();
        if let Some(plan) = plans.get(&product) {
            return Ok(plan.clone());
        }
        let layout = Layout::new(product)?;
        let algorithm = match self.chosen(&layout, product) {
            Some(algorithm) => algorithm,
            None => *Algorithm::proposed(self.handle, &layout, 1)?
                .first()
                .ok_or_else(|| CudaError::Unsupported(format!("{product:?} by the library")))?,
        };
        let plan = Rc::new(Plan { layout, algorithm });
        plans.insert(product, plan.clone());
        Ok(plan)
    }

    /// The algorithm that was measured to be the best for a product, if there is one and the library takes it.
    fn chosen(&self, layout: &Layout, product: Product) -> Option<sys::cublasLtMatmulAlgo_t> {
        let algorithm = self.choices?.algorithm(product)?;
        let accepted = algorithm.accepted(self.handle, layout, product);
        accepted
            .inspect_err(|refusal| {
                tracing::warn!(
                    ?product,
                    ?algorithm,
                    %refusal,
                    "cublaslt refuses the algorithm measured for a product, its own first proposal is taken"
                );
            })
            .ok()
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

impl Device {
    /// Tells the log who computes products of many rows in the mode [`crate::ops::GemmMode::BatchVariant`].
    pub(crate) fn log_library(&self) {
        let gpu = &self.info().name;
        match self.blas() {
            None => {
                let reason = CudaError::Missing(Library::CublasLt);
                tracing::warn!(%reason, "products of many rows are computed without cublaslt");
            }
            Some(Blas { version, choices: Some(choices), .. }) => {
                tracing::info!(
                    gpu,
                    version,
                    products = choices.len(),
                    "cublaslt: algorithms measured on this gpu"
                );
            }
            Some(Blas { version, choices: None, .. }) => {
                tracing::info!(gpu, version, "cublaslt: its own first proposals, none were measured here");
            }
        }
    }
}

/// For who measures what to choose.
impl Device {
    /// Version of cuBLASLt, if it was found, as in 130100 for 13.1.0.
    pub fn library_version(&self) -> Option<usize> {
        self.blas().map(|blas| blas.version)
    }

    /// Algorithms that the library proposes for a product, the one that it thinks best first.
    pub fn library_algorithms(&self, product: Product) -> Result<Vec<Algorithm>, CudaError> {
        self.blas().map_or_else(|| Ok(Vec::new()), |blas| blas.proposed(product))
    }

    /// From now on the library computes a product by this algorithm; false if it cannot.
    pub fn choose_algorithm(&self, product: Product, algorithm: Algorithm) -> Result<bool, CudaError> {
        self.blas().map_or(Ok(false), |blas| blas.choose(product, algorithm))
    }
}

/// Descriptors of one product and its algorithm.
#[derive(Debug)]
struct Plan {
    layout: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}
