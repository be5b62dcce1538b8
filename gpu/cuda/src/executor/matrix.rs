use half::bf16;
use models::{DType, Matrix, ModelError, WeightId};

use crate::{
    Buffer, CudaError, Device, View, WeightFormat,
    ops::{Fp8Matrix, Fp8Rows, Weights},
};

/// A matrix of a layer as its product reads it.
#[derive(Debug)]
pub(super) enum LayerMatrix {
    Bf16(Buffer<bf16>),
    Fp8(Fp8Matrix),
}

/// How the parts of a matrix share its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    /// One after the other.
    Stacked,
    /// Two, row by row in turn.
    Interleaved,
}

impl LayerMatrix {
    /// Of elements [n, k] that are on the device, quantised if `format` says so.
    pub fn new(
        device: &Device,
        elements: Buffer<bf16>,
        [n, k]: [usize; 2],
        format: WeightFormat,
    ) -> Result<Self, CudaError> {
        if format == WeightFormat::AsStored {
            return Ok(Self::Bf16(elements));
        }
        let matrix = Fp8Matrix::new(device, n, k)?;
        matrix.quantise(device, elements.view())?;
        Ok(Self::Fp8(matrix))
    }

    /// Of parts that their file holds in FP8 already; `None` if one is of another type.
    ///
    /// # Errors
    /// If the sizes are not those that FP8 products take, or a part holds a NaN.
    pub fn of_codes(
        device: &Device,
        parts: &[(WeightId, Matrix<'_>)],
        order: Parts,
    ) -> Result<Option<Self>, CudaError> {
        if !parts.iter().all(|(_, part)| part.dtype == DType::F8E4M3) {
            return Ok(None);
        }
        let n = parts.iter().map(|(_, part)| part.rows).sum();
        let mut matrix = Fp8Matrix::new(device, n, parts.first().map_or(0, |(_, part)| part.cols))?;
        let mut row = 0;
        for (number, (id, part)) in parts.iter().enumerate() {
            let (first, step) = match order {
                Parts::Stacked => (row, 1),
                Parts::Interleaved => (number, parts.len()),
            };
            row += part.rows;
            let codes = device.upload(&part.data)?;
            let scales = device.upload(part.scales.as_ref().map_or(&[][..], |scales| &scales.values))?;
            let faults = device.upload(&[0u32])?;
            let (codes, scales) = (codes.view(), scales.view());
            matrix.pack(device, Fp8Rows { codes, scales, rows: part.rows, first, step }, faults.view())?;
            if device.read(faults.view())? != [0] {
                return Err(ModelError::NotANumber(*id).into());
            }
        }
        Ok(Some(Self::Fp8(matrix)))
    }

    pub fn is_fp8(&self) -> bool {
        matches!(self, Self::Fp8(_))
    }

    /// `room` is for products that unpack the matrix.
    pub fn view<'a>(&'a self, room: Option<View<'a, bf16>>) -> Weights<'a> {
        match self {
            Self::Bf16(elements) => Weights::Bf16(elements.view()),
            Self::Fp8(matrix) => Weights::Fp8(matrix.view().with_room(room)),
        }
    }

    /// Elements of the matrix unpacked, of one in FP8.
    pub fn room(&self) -> usize {
        match self {
            Self::Bf16(_) => 0,
            Self::Fp8(matrix) => matrix.len(),
        }
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Bf16(elements) => elements.view().bytes(),
            Self::Fp8(matrix) => matrix.bytes(),
        }
    }
}
