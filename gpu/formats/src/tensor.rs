use crate::DType;

/// A stored tensor, borrowed from its file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    pub dtype: DType,
    /// Outermost dimension first; the last one is contiguous.
    pub shape: &'a [usize],
    /// Not necessarily aligned for its type.
    pub data: &'a [u8],
}

/// Bytes of a tensor of this shape; `None` if a row is not a whole number of blocks or the size overflows.
pub(crate) fn tensor_bytes(dtype: DType, shape: &[usize]) -> Option<usize> {
    let (&cols, rows) = shape.split_last().unwrap_or((&1, &[]));
    rows.iter().try_fold(dtype.row_bytes(cols)?, |bytes, &n| bytes.checked_mul(n))
}
