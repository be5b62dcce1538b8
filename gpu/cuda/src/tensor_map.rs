use std::ffi::c_void;

use cudarc::driver::sys;
use half::bf16;

use crate::{CudaError, Element, View};

/// Columns of a box: as many as the tensor cores take of a stage.
const BOX_COLUMNS: u32 = 64;

/// Tiles in shared memory begin at multiples of this, which the swizzle needs.
pub(crate) const SWIZZLE_ALIGNMENT: usize = 1024;

/// How the copy engine finds boxes of a matrix: `box_rows` rows by 64 columns, laid out in shared memory as the kernels
/// want them (rows of 128 bytes of bf16 or 64 bytes of codes, swizzled over their width). Parts of a box outside of the
/// matrix read as zeros.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(crate) struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// Of the first `rows` rows of `columns` elements, row-major; `columns` is a multiple of 8, `box_rows` at most 256.
    ///
    /// # Panics
    /// If the view is shorter.
    pub fn new(matrix: View<'_, bf16>, size: [usize; 2], box_rows: usize) -> Result<Self, CudaError> {
        let element = sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        Self::encode(
            matrix,
            element,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            size,
            [BOX_COLUMNS, box_rows as u32],
        )
    }

    /// The same of FP8 codes; `columns` is a multiple of 16.
    ///
    /// # Panics
    /// If the view is shorter.
    pub fn of_codes(matrix: View<'_, u8>, size: [usize; 2], box_rows: usize) -> Result<Self, CudaError> {
        let element = sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8;
        Self::encode(
            matrix,
            element,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            size,
            [BOX_COLUMNS, box_rows as u32],
        )
    }

    /// Of rows of 64 or 128 codes, whose boxes are whole rows, swizzled over their width.
    ///
    /// # Panics
    /// If the view is shorter.
    pub fn of_rows(matrix: View<'_, u8>, size: [usize; 2], box_rows: usize) -> Result<Self, CudaError> {
        let element = sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8;
        let swizzle = match size[1] {
            64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        Self::encode(matrix, element, swizzle, size, [size[1] as u32, box_rows as u32])
    }

    fn encode<T: Element>(
        matrix: View<'_, T>,
        element: sys::CUtensorMapDataType,
        swizzle: sys::CUtensorMapSwizzle,
        [rows, columns]: [usize; 2],
        extent: [u32; 2],
    ) -> Result<Self, CudaError> {
        assert!(matrix.len() >= rows * columns, "a matrix of {rows} x {columns}");
        let mut map = Self(sys::CUtensorMap { opaque: [0; 16] });
        let sizes = [columns as u64, rows as u64];
        let row_bytes = [(columns * size_of::<T>()) as u64];
        let steps = [1u32; 2];
        // SAFETY: the driver is loaded, since there is a view; every pointer is valid for the call and the arrays have
        // one entry a dimension (strides one fewer).
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map.0,
                element,
                sizes.len() as u32,
                matrix.address() as *mut c_void,
                sizes.as_ptr(),
                row_bytes.as_ptr(),
                extent.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()?;
        Ok(map)
    }
}
