use std::ffi::c_void;

use cudarc::driver::sys;
use half::bf16;

use crate::{CudaError, Element, View};

/// Columns of a box: as many as the tensor cores take of a stage.
const BOX_COLUMNS: usize = 64;

/// Tiles in shared memory begin at multiples of this, which the swizzle needs.
pub(crate) const SWIZZLE_ALIGNMENT: usize = 1024;

/// An element that boxes may hold: bf16, f32, or FP8 codes.
pub(crate) trait BoxElement: Element {
    const TYPE: sys::CUtensorMapDataType;
}

impl BoxElement for bf16 {
    const TYPE: sys::CUtensorMapDataType = sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
}

impl BoxElement for f32 {
    const TYPE: sys::CUtensorMapDataType = sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
}

impl BoxElement for u8 {
    const TYPE: sys::CUtensorMapDataType = sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

/// How the copy engine finds boxes of a matrix, laid out in shared memory as the kernels want them: rows of 128, 64 or 32
/// bytes, swizzled over their width. Parts of a box outside of the matrix read as zeros.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(crate) struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// Of the first `rows` rows of `columns` elements, row-major, in boxes of `box_rows` rows (at most 256) by 64 columns.
    /// Rows are multiples of 16 bytes.
    ///
    /// # Panics
    /// If the view is shorter.
    pub fn new<T: BoxElement>(
        matrix: View<'_, T>,
        size: [usize; 2],
        box_rows: usize,
    ) -> Result<Self, CudaError> {
        Self::of_boxes(matrix, size, [box_rows, BOX_COLUMNS])
    }

    /// The same in boxes of whole rows of 64 or 128 bytes.
    ///
    /// # Panics
    /// If the view is shorter.
    pub fn of_rows<T: BoxElement>(
        matrix: View<'_, T>,
        size: [usize; 2],
        box_rows: usize,
    ) -> Result<Self, CudaError> {
        Self::of_boxes(matrix, size, [box_rows, size[1]])
    }

    /// The same in boxes of any size.
    ///
    /// # Panics
    /// If the view is shorter.
    pub fn of_boxes<T: BoxElement>(
        matrix: View<'_, T>,
        [rows, columns]: [usize; 2],
        [box_rows, box_columns]: [usize; 2],
    ) -> Result<Self, CudaError> {
        let swizzle = match box_columns * size_of::<T>() {
            32 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            64 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            _ => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let extent = [box_columns as u32, box_rows as u32];
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
                T::TYPE,
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
