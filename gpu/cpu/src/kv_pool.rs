//! The paged KV pool.
//!
//! A page holds `page_size` tokens over all layers, so that it is copied and sent as one piece. A layer is laid out as
//! [`Order::Grouped`] says: one vector holds an element of 16 keys, so that a score needs no sum across lanes, and a value
//! is whole vectors.

use std::{mem::MaybeUninit, sync::Arc};

use kv::{Arrangement, KvDtype, Order};

use crate::{
    memory::Region,
    simd::{LANES, Simd},
};

mod ahead;
mod element;

use ahead::Ahead;

pub(crate) use element::Element;

/// Positions of a group of keys: a vector.
pub(crate) const GROUP: usize = LANES;
const _: () = assert!(GROUP == kv::GROUP);

/// Shape of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageShape {
    /// A power of two, at least [`GROUP`].
    pub page_size: usize,
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Elements of a key that turn.
    pub turning: usize,
    pub dtype: KvDtype,
}

impl PageShape {
    /// Where keys and values are in a layer.
    pub fn arrangement(&self) -> Arrangement {
        Arrangement {
            order: Order::Grouped,
            dtype: self.dtype,
            kv_heads: self.kv_heads as u32,
            head_dim: self.head_dim as u32,
            turning: self.turning as u32,
        }
    }

    /// Elements of a value, padding included.
    pub fn value_stride(&self) -> usize {
        self.arrangement().value_stride()
    }

    /// Elements of keys and values of one head in a page.
    fn head_elements(&self) -> usize {
        self.page_size * (self.head_dim + self.value_stride())
    }

    pub fn layer_bytes(&self) -> usize {
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
    region: Arc<Region>,
    ahead: Ahead,
    shape: PageShape,
    pages: usize,
}

impl KvPool {
    /// Maps `pages` pages. They take memory once they are used, or about to be.
    pub fn new(shape: PageShape, pages: usize) -> std::io::Result<Self> {
        let len = shape.page_bytes() * pages;
        let region = Arc::new(Region::map(len)?);
        Ok(Self { ahead: Ahead::start(region.clone(), len), region, shape, pages })
    }

    /// Notes that this page is in use. Pages are best used from the first on: the next ones are made ready.
    pub fn uses(&self, page: u32) {
        self.ahead.used((page as usize + 1) * self.shape.page_bytes());
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
            page_shift: self.shape.page_size.trailing_zeros(),
            head_dim: self.shape.head_dim,
            value_stride: self.shape.value_stride(),
        }
    }

    /// One layer of a page.
    ///
    /// # Safety
    /// Nobody writes to it while the slice lives.
    pub unsafe fn layer(&self, page: usize, layer: usize) -> &[u8] {
        assert!(layer < self.shape.layers && page < self.pages);
        let at = page * self.shape.page_bytes() + self.shape.head_offset(layer, 0);
        // SAFETY: the range lies in the region, which was zeroed when it was mapped.
        unsafe { std::slice::from_raw_parts(self.region.start().add(at), self.shape.layer_bytes()) }
    }

    /// A whole page.
    ///
    /// # Safety
    /// Nobody uses it while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the region is shared memory")]
    pub unsafe fn page_mut(&self, page: usize) -> &mut [u8] {
        assert!(page < self.pages);
        let bytes = self.shape.page_bytes();
        // SAFETY: the range lies in the region, which was zeroed when it was mapped.
        unsafe { std::slice::from_raw_parts_mut(self.region.start().add(page * bytes), bytes) }
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
    /// Logarithm of the page size.
    page_shift: u32,
    head_dim: usize,
    value_stride: usize,
}

impl<E: Element> KvHead<E> {
    /// Where the page of a position begins, and the position's place in it.
    #[inline(always)]
    fn page(&self, pages: &[u32], position: usize) -> (*mut E, usize) {
        let page = pages[position >> self.page_shift] as usize;
        assert!(page < self.pages, "page {page} of {}", self.pages);
        // SAFETY: the page lies in the region.
        let start = unsafe { self.start.add(page * self.page_stride) };
        (start, position & ((1 << self.page_shift) - 1))
    }

    /// The keys of the group that begins at `position`, `[element][16]`, and its values, `[position][value_stride]`,
    /// for a sequence with page table `pages`.
    #[inline(always)]
    pub fn group(&self, pages: &[u32], position: usize) -> (*mut E, *mut E) {
        let (page, place) = self.page(pages, position);
        // SAFETY: keys and values of the page lie one after the other, and the place is in the page.
        unsafe {
            let values = page.add(self.head_dim << self.page_shift);
            (page.add(place * self.head_dim), values.add(place * self.value_stride))
        }
    }

    /// Stores the key and value of a position; both are padded to `value_stride` elements.
    ///
    /// # Safety
    /// That of [`Simd`]; nobody reads or writes this position's key or value meanwhile.
    #[inline(always)]
    pub unsafe fn store<V: Simd>(&self, pages: &[u32], position: usize, key: &[f32], value: &[f32]) {
        assert!(key.len() == self.value_stride && value.len() == self.value_stride);
        let lane = position % GROUP;
        let (keys, values) = self.group(pages, position - lane);
        let mut i = 0;
        while i < self.value_stride {
            // SAFETY: the caller's promise; elements stay below the head's.
            unsafe {
                let mut rounded = [const { MaybeUninit::<E>::uninit() }; LANES];
                E::store::<V>(V::load(key.as_ptr().add(i)), rounded.as_mut_ptr().cast());
                E::store::<V>(V::load(value.as_ptr().add(i)), values.add(lane * self.value_stride + i));
                let mut element = i;
                while element < self.head_dim.min(i + LANES) {
                    keys.add(element * GROUP + lane)
                        .write(rounded.as_ptr().add(element - i).cast::<E>().read());
                    element += 1;
                }
            }
            i += LANES;
        }
    }
}

#[cfg(test)]
mod tests;
