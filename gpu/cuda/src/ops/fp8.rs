use formats::fp8::SCALE_BLOCK;
use half::bf16;

use super::{check, check_len};
use crate::{
    Buffer, CudaError, Device, View,
    launch::{Shape, arguments},
};

/// A weight matrix [n, k] of FP8 codes and scales, packed as the products read it (`fp8.cu`): an element stands for the
/// bf16 nearest to its code times its scale.
#[derive(Debug)]
pub struct Fp8Matrix {
    /// [n, k], runs of 16 codes rearranged.
    codes: Buffer<u8>,
    /// [n / 8, ceil(k / 128), even and odd rows]
    scales: Buffer<u32>,
    n: usize,
    k: usize,
    /// Whether of any [`GROUP`] rows the even ones share their scales, and the odd ones.
    grouped: bool,
}

/// Rows that share two scales a block where parts begin at multiples of it.
pub(super) const GROUP: usize = 64;

/// What a product reads of an [`Fp8Matrix`].
#[derive(Debug, Clone, Copy)]
pub struct Fp8View<'a> {
    pub(super) codes: View<'a, u8>,
    pub(super) scales: View<'a, u32>,
    pub(super) grouped: bool,
    /// At least [n, k]: where products of many rows may unpack the weights, or leave codes of rows as well.
    pub(super) room: Option<View<'a, bf16>>,
}

/// The weights of a product, [n, k]. FP8 gives the bits of the bf16 that it stands for, and needs k to be a multiple
/// of 16.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    Bf16(View<'a, bf16>),
    Fp8(Fp8View<'a>),
}

impl<'a> From<View<'a, bf16>> for Weights<'a> {
    fn from(view: View<'a, bf16>) -> Self {
        Self::Bf16(view)
    }
}

/// Rows of a matrix as checkpoints have them.
#[derive(Debug, Clone, Copy)]
pub struct Fp8Rows<'a> {
    /// [rows, k]
    pub codes: View<'a, u8>,
    /// [ceil(rows / 128), ceil(k / 128)], each at least 0 and below 256.
    pub scales: View<'a, f32>,
    pub rows: usize,
    /// Row of the matrix that the first one becomes, a multiple of 8, or 1 more where rows alternate.
    pub first: usize,
    /// 1, or 2 to leave every other row to another part.
    pub step: usize,
}

impl<'a> Fp8View<'a> {
    /// With room for [n, k] elements, which products of many rows use: they overwrite it.
    #[must_use]
    pub fn with_room(self, room: Option<View<'a, bf16>>) -> Self {
        Self { room, ..self }
    }

    pub(super) fn check(&self, n: usize, k: usize) -> Result<(), CudaError> {
        check(k.is_multiple_of(16), || format!("FP8 weights of {n} x {k}"))?;
        check_len("codes", self.codes, n * k)?;
        check_len("scales", self.scales, n / 4 * k.div_ceil(SCALE_BLOCK))?;
        self.room.map_or(Ok(()), |room| check_len("room", room, n * k))
    }

    /// Fills `room` [n, k].
    pub(super) fn unpack(
        &self,
        device: &Device,
        room: View<'_, bf16>,
        [n, k]: [usize; 2],
    ) -> Result<(), CudaError> {
        let runs = n * k / 16;
        let arguments = arguments![room, self.codes, self.scales, runs as u64, k as i32];
        let shape = Shape::new([runs.div_ceil(256) as u32, 1, 1], 256);
        // SAFETY: signature of fp8_unpack; lengths checked by `check`.
        unsafe { device.launch("fp8_unpack", shape, arguments) }
    }
}

impl Fp8Matrix {
    /// Room for n rows of k columns; its content is undefined until it is written.
    ///
    /// # Errors
    /// If k is no multiple of 16 or n none of 8, or memory is short.
    pub fn new(device: &Device, n: usize, k: usize) -> Result<Self, CudaError> {
        check(n.is_multiple_of(8) && k.is_multiple_of(16), || format!("FP8 weights of {n} x {k}"))?;
        let codes = device.allocate(n * k)?;
        let scales = device.allocate(n / 4 * k.div_ceil(SCALE_BLOCK))?;
        Ok(Self { codes, scales, n, k, grouped: true })
    }

    pub fn view(&self) -> Fp8View<'_> {
        let (codes, scales) = (self.codes.view(), self.scales.view());
        Fp8View { codes, scales, grouped: self.grouped, room: None }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.n * self.k
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that a product reads.
    pub fn bytes(&self) -> usize {
        self.codes.view().bytes() + self.scales.view().bytes()
    }

    /// Packs rows of a checkpoint; `faults` [1] counts 16-byte runs that hold a NaN.
    pub fn pack(
        &mut self,
        device: &Device,
        part: Fp8Rows<'_>,
        faults: View<'_, u32>,
    ) -> Result<(), CudaError> {
        let Fp8Rows { codes, scales, rows, first, step } = part;
        let last = first + step * rows.saturating_sub(1);
        check(matches!(step, 1 | 2) && first % 8 < step && last < self.n, || {
            format!("rows {first}, {}, … {last} of {}", first + step, self.n)
        })?;
        check_len("codes", codes, rows * self.k)?;
        check_len("scales", scales, rows.div_ceil(SCALE_BLOCK) * self.k.div_ceil(SCALE_BLOCK))?;
        check_len("faults", faults, 1)?;
        self.grouped &= first % GROUP < step;
        let runs = rows * self.k / 16;
        let arguments = arguments![
            self.codes.view(),
            self.scales.view(),
            faults,
            codes,
            scales,
            runs as u64,
            self.k as i32,
            first as i32,
            step as i32,
        ];
        let shape = Shape::new([runs.div_ceil(256) as u32, 1, 1], 256).alone();
        // SAFETY: signature of fp8_pack; rows and lengths checked.
        unsafe { device.launch("fp8_pack", shape, arguments) }
    }

    /// Quantises weights [n, k], with two scales for every [`GROUP`] rows by 128 columns.
    pub fn quantise(&self, device: &Device, weights: View<'_, bf16>) -> Result<(), CudaError> {
        check_len("weights", weights, self.n * self.k)?;
        let blocks = 2 * self.n.div_ceil(GROUP) * self.k.div_ceil(SCALE_BLOCK);
        let arguments =
            arguments![self.codes.view(), self.scales.view(), weights, self.n as i32, self.k as i32];
        let shape = Shape::new([blocks as u32, 1, 1], 256).alone();
        // SAFETY: signature of fp8_quantise; lengths checked.
        unsafe { device.launch("fp8_quantise", shape, arguments) }
    }
}
