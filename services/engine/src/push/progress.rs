/// Which pages of a grant have been written, and which are to be read for that.
#[derive(Debug)]
pub(super) struct Progress {
    /// Leading layers written, by page.
    written: Vec<u32>,
    layers: u32,
    window: u32,
    /// Leading pages that are written in full.
    complete: u32,
    /// Leading pages that are computed.
    computed: u32,
    /// Leading pages that were asked for and have come or will, or need not be.
    asked: u32,
}

impl Progress {
    pub fn new(pages: u32, layers: u32, window: u32) -> Self {
        Self { written: vec![0; pages as usize], layers, window, complete: 0, computed: 0, asked: 0 }
    }

    pub fn is_complete(&self) -> bool {
        self.complete as usize == self.written.len()
    }

    /// A layer may be written if it is the next of its page and the page's slot is free of earlier pages.
    pub fn may_write(&self, page: u32, layer: u32) -> bool {
        self.written[page as usize] == layer && page < self.complete + self.window
    }

    pub fn wrote(&mut self, page: u32, layers: u32) {
        let written = &mut self.written[page as usize];
        *written = layers.max(*written);
        while self.written.get(self.complete as usize).is_some_and(|written| *written == self.layers) {
            self.complete += 1;
        }
    }

    pub fn computed(&mut self, pages: u32) {
        self.computed = self.computed.max(pages.min(self.written.len() as u32));
    }

    /// From this page on none is there at present: they are asked for again once they are computed.
    pub fn missed(&mut self, page: u32) {
        self.computed = self.computed.min(page);
        self.asked = self.asked.min(page);
    }

    /// Pages that are computed, may be written, and are not complete, so that they must be fetched; each once, no more
    /// than `ahead` beyond those that are complete, and no more than `most`.
    pub fn due(&mut self, ahead: u32, most: u32) -> Vec<u32> {
        let first = self.asked.max(self.complete);
        let end = self.computed.min(self.complete + self.window.min(ahead)).min(first + most);
        let pages = first..end;
        self.asked = self.asked.max(end);
        pages.filter(|page| self.written[*page as usize] < self.layers).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::READ_AHEAD, *};

    #[test]
    fn layers_that_came_in_full_need_no_read() {
        let mut progress = Progress::new(2, 2, 4);
        for (page, layer) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            assert!(progress.may_write(page, layer));
            progress.wrote(page, layer + 1);
        }
        progress.computed(2);
        assert!(progress.is_complete());
        assert!(progress.due(READ_AHEAD, READ_AHEAD).is_empty());
    }

    #[test]
    fn a_page_that_lacks_a_layer_or_was_cached_is_read_once() {
        let mut progress = Progress::new(3, 2, 4);
        progress.computed(1);
        assert_eq!(progress.due(READ_AHEAD, READ_AHEAD), [0], "cached");
        progress.wrote(1, 1);
        assert!(!progress.may_write(1, 0), "written before");
        assert!(!progress.may_write(2, 1), "the layer before was left out");
        progress.computed(3);
        assert_eq!(progress.due(READ_AHEAD, READ_AHEAD), [1, 2]);
        assert!(progress.due(READ_AHEAD, READ_AHEAD).is_empty());
        for page in 0..3 {
            progress.wrote(page, 2);
        }
        assert!(progress.is_complete());
    }

    #[test]
    fn pages_that_were_missed_are_asked_for_again_once_they_are_computed() {
        let mut progress = Progress::new(4, 2, 4);
        progress.computed(3);
        assert_eq!(progress.due(READ_AHEAD, READ_AHEAD), [0, 1, 2]);
        progress.wrote(0, 2);
        progress.missed(1);
        progress.missed(2);
        assert!(progress.due(READ_AHEAD, READ_AHEAD).is_empty(), "they are not there");
        progress.computed(2);
        assert_eq!(progress.due(READ_AHEAD, READ_AHEAD), [1]);
        progress.wrote(1, 2);
        progress.computed(4);
        assert_eq!(progress.due(READ_AHEAD, READ_AHEAD), [2, 3]);
    }

    #[test]
    fn what_there_is_no_room_for_is_due_later() {
        let mut progress = Progress::new(9, 1, 9);
        progress.computed(7);
        assert_eq!(progress.due(6, 4), [0, 1, 2, 3]);
        assert_eq!(progress.due(6, 4), [4, 5]);
        progress.missed(0);
        progress.computed(9);
        assert_eq!(progress.due(6, 4), [0, 1, 2, 3]);
    }

    #[test]
    fn pages_beyond_the_window_wait_for_those_before_them() {
        let mut progress = Progress::new(5, 1, 2);
        assert!(progress.may_write(1, 0) && !progress.may_write(2, 0));
        progress.computed(5);
        assert_eq!(progress.due(READ_AHEAD, READ_AHEAD), [0, 1]);
        progress.wrote(0, 1);
        assert_eq!(progress.due(READ_AHEAD, READ_AHEAD), [2]);
        progress.wrote(1, 1);
        progress.wrote(2, 1);
        assert_eq!(progress.due(READ_AHEAD, READ_AHEAD), [3, 4]);
    }
}
