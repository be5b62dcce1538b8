//! The paged KV pool.
//!
//! A page holds `page_size` tokens over all layers, so that it is copied and sent as one piece. Within it lie, layer by
//! layer and head by head, the keys and then the values of that head:
//!
//! * keys in groups of 16 positions, in each group element by element: `[group][element][position]`, so that one
//!   vector holds an element of 16 keys and a score needs no sum across lanes;
//! * values position by position, each padded to whole vectors.

use half::{bf16, f16};

use crate::{
    memory::Region,
    simd::{LANES, Simd},
};

/// Positions of a group of keys.
pub(crate) const GROUP: usize = LANES;

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvDtype {
    #[default]
    F16,
    Bf16,
    F32,
}

impl KvDtype {
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// A stored element.
pub(crate) trait Element: Copy + 'static {
    fn round(value: f32) -> Self;

    /// Reads 16 of them.
    ///
    /// # Safety
    /// That of [`Simd`].
    unsafe fn load<V: Simd>(from: *const Self) -> V::F;
}

impl Element for f16 {
    #[inline(always)]
    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const Self) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(from.cast()) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn round(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const Self) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(from.cast()) }
    }
}

impl Element for f32 {
    #[inline(always)]
    fn round(value: f32) -> Self {
        value
    }

    #[inline(always)]
    unsafe fn load<V: Simd>(from: *const Self) -> V::F {
        // SAFETY: the caller's promise.
        unsafe { V::load(from) }
    }
}

/// Shape of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageShape {
    /// A multiple of [`GROUP`].
    pub page_size: usize,
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub dtype: KvDtype,
}

impl PageShape {
    /// Elements of a value, padding included.
    pub fn value_stride(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Elements of the keys of one head in a page.
    pub fn key_elements(&self) -> usize {
        self.page_size * self.head_dim
    }

    /// Elements of keys and values of one head in a page.
    fn head_elements(&self) -> usize {
        self.page_size * (self.head_dim + self.value_stride())
    }

    fn layer_bytes(&self) -> usize {
        self.kv_heads * self.head_elements() * self.dtype.bytes()
    }

    pub fn page_bytes(&self) -> usize {
        self.layers * self.layer_bytes()
    }

    /// Where a head of a layer begins in a page, in bytes.
    pub fn head_offset(&self, layer: usize, head: usize) -> usize {
        layer * self.layer_bytes() + head * self.head_elements() * self.dtype.bytes()
    }
}

/// All pages.
#[derive(Debug)]
pub(crate) struct KvPool {
    region: Region,
    shape: PageShape,
    pages: usize,
}

impl KvPool {
    /// Maps `pages` pages; none costs anything until it is written.
    pub fn new(shape: PageShape, pages: usize) -> std::io::Result<Self> {
        Ok(Self { region: Region::map(shape.page_bytes() * pages)?, shape, pages })
    }

    pub fn shape(&self) -> &PageShape {
        &self.shape
    }

    /// One head of one layer over all pages.
    pub fn head<E: Element>(&self, layer: usize, head: usize) -> KvHead<E> {
        assert!(
            layer < self.shape.layers
                && head < self.shape.kv_heads
                && size_of::<E>() == self.shape.dtype.bytes()
        );
        KvHead {
            // SAFETY: the offset lies in the first page.
            start: unsafe { self.region.start().add(self.shape.head_offset(layer, head)).cast() },
            page_stride: self.shape.page_bytes() / size_of::<E>(),
            pages: self.pages,
            shape: self.shape,
        }
    }

    /// Copies one layer of a page.
    ///
    /// # Safety
    /// Nobody uses this layer of the two pages meanwhile.
    pub unsafe fn copy_layer(&self, layer: usize, from: usize, to: usize) {
        assert!(layer < self.shape.layers && from < self.pages && to < self.pages);
        let at = |page: usize| page * self.shape.page_bytes() + self.shape.head_offset(layer, 0);
        // SAFETY: both ranges lie in the region, and the caller keeps others away; equal pages overlap exactly.
        unsafe {
            let start = self.region.start();
            std::ptr::copy(start.add(at(from)), start.add(at(to)), self.shape.layer_bytes());
        }
    }
}

/// Addresses of the keys and values of one head of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KvHead<E> {
    start: *mut E,
    /// Elements from a page to the next.
    page_stride: usize,
    pages: usize,
    shape: PageShape,
}

impl<E: Element> KvHead<E> {
    /// The keys of the group that begins at `position`, `[element][16]`, for a sequence with page table `pages`.
    #[inline(always)]
    pub fn keys(&self, pages: &[u32], position: usize) -> *mut E {
        let page = pages[position / self.shape.page_size] as usize;
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let group = position % self.shape.page_size / GROUP;
        // SAFETY: page and group lie in the region.
        unsafe { self.start.add(page * self.page_stride + group * GROUP * self.shape.head_dim) }
    }

    /// The value of `position`; those of the positions after it in its page follow.
    #[inline(always)]
    pub fn values(&self, pages: &[u32], position: usize) -> *mut E {
        let page = pages[position / self.shape.page_size] as usize;
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let row = position % self.shape.page_size * self.shape.value_stride();
        // SAFETY: page and row lie in the region.
        unsafe { self.start.add(page * self.page_stride + self.shape.key_elements() + row) }
    }

    /// Stores the key and value of a position.
    ///
    /// # Safety
    /// Nobody reads or writes this position's key or value meanwhile.
    #[inline]
    pub unsafe fn store(&self, pages: &[u32], position: usize, key: &[f32], value: &[f32]) {
        assert!(key.len() == self.shape.head_dim && value.len() == self.shape.head_dim);
        let lane = position % GROUP;
        let keys = self.keys(pages, position - lane);
        let values = self.values(pages, position);
        for (i, (&key, &value)) in key.iter().zip(value).enumerate() {
            // SAFETY: `i` is below the number of elements of a key and of a value.
            unsafe {
                keys.add(i * GROUP + lane).write(E::round(key));
                values.add(i).write(E::round(value));
            }
        }
    }
}
