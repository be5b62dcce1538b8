#[cfg(test)]
mod tests;

/// A page of KV memory: `page_size` tokens over all layers. Numbered from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

impl PageId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

/// Counts the references to each page of a fixed set and hands out the free ones.
///
/// A page is free exactly while it has no reference. The pool never grows and allocates nothing after `new`. The
/// page freed last is handed out first: its memory is the most likely to be in a device cache.
#[derive(Debug, Clone)]
pub struct PagePool {
    references: Vec<u32>,
    free: Vec<PageId>,
}

impl PagePool {
    /// A pool of pages `0..capacity`, all free; the lowest are handed out first.
    pub fn new(capacity: u32) -> Self {
        Self { references: vec![0; capacity as usize], free: (0..capacity).rev().map(PageId).collect() }
    }

    pub fn capacity(&self) -> u32 {
        self.references.len() as u32
    }

    pub fn free(&self) -> u32 {
        self.free.len() as u32
    }

    pub fn used(&self) -> u32 {
        self.capacity() - self.free()
    }

    /// References held on `page`.
    ///
    /// # Panics
    /// If the page is not of this pool, as all methods that take a page.
    pub fn references(&self, page: PageId) -> u32 {
        self.references[page.index()]
    }

    /// Hands out a free page with one reference.
    pub fn allocate(&mut self) -> Option<PageId> {
        let page = self.free.pop()?;
        self.references[page.index()] = 1;
        Some(page)
    }

    /// Adds a reference to a page in use.
    ///
    /// # Panics
    /// If the page is free: whoever names it has lost it already.
    pub fn retain(&mut self, page: PageId) {
        let references = &mut self.references[page.index()];
        assert!(*references > 0, "retained the free page {}", page.0);
        *references += 1;
    }

    /// Drops a reference and returns how many are left; at 0 the page is free.
    ///
    /// # Panics
    /// If the page is free already.
    pub fn release(&mut self, page: PageId) -> u32 {
        let references = &mut self.references[page.index()];
        assert!(*references > 0, "released the free page {}", page.0);
        *references -= 1;
        if *references == 0 {
            self.free.push(page);
        }
        *references
    }

    /// The free pages, in no order that means anything.
    pub fn free_pages(&self) -> &[PageId] {
        &self.free
    }

    /// Verifies that the free list holds every page without a reference, once.
    ///
    /// # Errors
    /// The first page that is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let mut listed = vec![false; self.references.len()];
        for page in &self.free {
            if self.references[page.index()] != 0 {
                return Err(format!("page {} is in the free list and has references", page.0));
            }
            if std::mem::replace(&mut listed[page.index()], true) {
                return Err(format!("page {} is twice in the free list", page.0));
            }
        }
        match listed.iter().zip(&self.references).position(|(listed, references)| !listed && *references == 0)
        {
            Some(page) => Err(format!("page {page} is lost: no reference, not in the free list")),
            None => Ok(()),
        }
    }
}
