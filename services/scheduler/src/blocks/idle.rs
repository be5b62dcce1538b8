use kv::PageId;

/// No page: the end of a chain.
const NONE: u32 = u32::MAX;

/// Pages in the order in which they became idle, each at most once: a doubly linked list in arrays, so that every
/// operation takes constant time and none allocates.
#[derive(Debug)]
pub(super) struct IdleList {
    links: Vec<Link>,
    oldest: u32,
    newest: u32,
    len: u32,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
}

impl IdleList {
    pub fn new(pages: u32) -> Self {
        let link = Link { older: NONE, newer: NONE };
        Self { links: vec![link; pages as usize], oldest: NONE, newest: NONE, len: 0 }
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn push_newest(&mut self, page: PageId) {
        self.links[page.0 as usize] = Link { older: self.newest, newer: NONE };
        match self.newest {
            NONE => self.oldest = page.0,
            newest => self.links[newest as usize].newer = page.0,
        }
        self.newest = page.0;
        self.len += 1;
    }

    pub fn pop_oldest(&mut self) -> Option<PageId> {
        let page = (self.oldest != NONE).then_some(PageId(self.oldest))?;
        self.remove(page);
        Some(page)
    }

    /// The page must be in the list.
    pub fn remove(&mut self, page: PageId) {
        let Link { older, newer } = self.links[page.0 as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        self.len -= 1;
    }

    /// From the oldest on.
    pub fn iter(&self) -> impl Iterator<Item = PageId> {
        let mut next = self.oldest;
        std::iter::from_fn(move || {
            let page = (next != NONE).then_some(PageId(next))?;
            next = self.links[next as usize].newer;
            Some(page)
        })
    }
}
