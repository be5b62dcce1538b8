//! Pushes the blocks of one prompt into the slots that decode has lent: layers while they are computed, whole blocks
//! where a layer was left out or the block was cached.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use kv::{
    PageLayout,
    transfer::{
        DeviceMemory, DeviceWriter, Grant, OpenError, PageIndex, PageWriter, Place, Transports, WriteError,
    },
};
use scheduler::RunKey;

use crate::{
    device::{COPIED_AT_ONCE, Command, Copy, CopyOut, Device, Full},
    feed::Piece,
};

/// Blocks that are read ahead of the push.
const READ_AHEAD: u32 = 8;
/// Pause before blocks are asked for again when the device's intake is full.
const ASK_AGAIN: Duration = Duration::from_millis(2);

pub struct Push {
    pub run: RunKey,
    /// The block that is page 0 of the grant.
    pub first: u32,
    pub grant: Grant,
    pub layout: PageLayout,
    pub pieces: Receiver<Piece>,
    pub device: Device,
    pub transports: Arc<Transports>,
}

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{0}")]
    Device(String),
    #[error("the feed of blocks has ended")]
    Ended,
}

impl Push {
    /// Pushes until every block has landed. Blocks its thread; the writer is closed when it returns.
    ///
    /// # Errors
    /// If the grant cannot be opened or written to any more, or the feed of blocks has ended.
    pub fn run(self) -> Result<(), PushError> {
        let mut writer = self.transports.open(&self.grant, &self.layout)?;
        let mut progress = Progress::new(self.grant.pages, self.layout.layers, writer.window());
        if let Some(device) = writer.device() {
            self.store(device, &mut progress)?;
        } else if let Some(memory) = &self.device.memory {
            self.fetch(&**memory, &mut *writer, &mut progress)?;
        } else {
            self.feed(&mut *writer, &mut progress)?;
        }
        Ok(writer.finish()?)
    }

    /// Layers as they are computed, whole blocks where one was left out.
    fn feed(&self, writer: &mut dyn PageWriter, progress: &mut Progress) -> Result<(), PushError> {
        while !progress.is_complete() {
            let piece = self.pieces.recv().map_err(|_| PushError::Ended)?;
            self.take(piece, writer, progress)?;
            for page in progress.due(READ_AHEAD) {
                self.command(Copy::Read { run: self.run, block: self.first + page });
            }
        }
        Ok(())
    }

    /// The device stores blocks where they belong.
    fn store(&self, writer: &mut dyn DeviceWriter, progress: &mut Progress) -> Result<(), PushError> {
        while !progress.is_complete() {
            let mut places = Vec::new();
            for page in self.due(progress, COPIED_AT_ONCE)? {
                let place = writer.place(PageIndex(page))?.ok_or(PushError::Ended)?;
                places.push((page, place));
            }
            let Some(sums) = self.copy_out(&places)? else { continue };
            let stored: Vec<_> =
                places.iter().zip(sums).map(|(&(page, _), sum)| (PageIndex(page), sum)).collect();
            writer.stored(&stored)?;
            places.iter().for_each(|&(page, _)| progress.wrote(page, self.layout.layers));
        }
        Ok(())
    }

    /// The device stores blocks in page-locked memory, from where they are written.
    fn fetch(
        &self,
        memory: &dyn DeviceMemory,
        writer: &mut dyn PageWriter,
        progress: &mut Progress,
    ) -> Result<(), PushError> {
        let page_bytes = self.layout.page_bytes() as usize;
        let room = memory.room(READ_AHEAD as usize * page_bytes);
        let room = room.map_err(|error| PushError::Device(error.to_string()))?;
        while !progress.is_complete() {
            let pages = self.due(progress, READ_AHEAD)?;
            let starts = (0..).step_by(page_bytes);
            let place =
                |(&page, at): (&u32, usize)| (page, Place { address: room.address().at(at as u64), seed: 0 });
            let places: Vec<_> = pages.iter().zip(starts).map(place).collect();
            if self.copy_out(&places)?.is_none() {
                continue;
            }
            for (page, bytes) in pages.into_iter().zip(room.bytes().chunks_exact(page_bytes)) {
                writer.write(PageIndex(page), 0, bytes)?;
                progress.wrote(page, self.layout.layers);
            }
        }
        Ok(())
    }

    /// Waits for pages that may be fetched; at least one.
    fn due(&self, progress: &mut Progress, ahead: u32) -> Result<Vec<u32>, PushError> {
        loop {
            let due = progress.due(ahead);
            if !due.is_empty() {
                return Ok(due);
            }
            match self.pieces.recv().map_err(|_| PushError::Ended)? {
                Piece::Computed(blocks) => progress.computed(blocks.saturating_sub(self.first)),
                Piece::Missed(block) => progress.missed(block.saturating_sub(self.first)),
                Piece::Layer { .. } | Piece::Page { .. } => {}
            }
        }
    }

    /// Has the device copy pages out, and waits for it; their checksums. `None`: they are not there at present.
    fn copy_out(&self, places: &[(u32, Place)]) -> Result<Option<Vec<u64>>, PushError> {
        let (answer, answered) = channel();
        let blocks = places.iter().map(|&(page, place)| (self.first + page, place)).collect();
        self.command(Copy::Out(CopyOut { run: self.run, blocks, answer }));
        let Ok(copying) = answered.recv() else { return Ok(None) };
        let sums = self.device.clock.watch(|| copying.wait());
        let sums = sums.map_err(|error| PushError::Device(error.to_string()))?;
        let bytes = places.len() as u64 * self.layout.page_bytes();
        metrics::counter!("stator_kv_transfer_bytes_total", "direction" => "out").increment(bytes);
        Ok(Some(sums))
    }

    fn take(
        &self,
        piece: Piece,
        writer: &mut dyn PageWriter,
        progress: &mut Progress,
    ) -> Result<(), WriteError> {
        let bytes = match piece {
            Piece::Layer { block, layer, bytes } => {
                let Some(page) = self.page(block).filter(|page| progress.may_write(*page, layer)) else {
                    return Ok(());
                };
                writer.write(PageIndex(page), layer, &bytes)?;
                progress.wrote(page, layer + 1);
                bytes.len()
            }
            Piece::Page { block, bytes } => {
                let Some(page) = self.page(block) else { return Ok(()) };
                writer.write(PageIndex(page), 0, &bytes)?;
                progress.wrote(page, self.layout.layers);
                bytes.len()
            }
            Piece::Computed(blocks) => {
                progress.computed(blocks.saturating_sub(self.first));
                0
            }
            Piece::Missed(block) => {
                progress.missed(block.saturating_sub(self.first));
                0
            }
        };
        metrics::counter!("stator_kv_transfer_bytes_total", "direction" => "out").increment(bytes as u64);
        Ok(())
    }

    fn page(&self, block: u32) -> Option<u32> {
        block.checked_sub(self.first).filter(|page| *page < self.grant.pages)
    }

    fn command(&self, copy: Copy) {
        let mut command = Command::Copy(copy);
        while let Err(Full(refused)) = self.device.command(command) {
            command = refused;
            std::thread::sleep(ASK_AGAIN);
        }
    }
}

/// Which pages of a grant have been written, and which are to be read for that.
#[derive(Debug)]
struct Progress {
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
    fn new(pages: u32, layers: u32, window: u32) -> Self {
        Self { written: vec![0; pages as usize], layers, window, complete: 0, computed: 0, asked: 0 }
    }

    fn is_complete(&self) -> bool {
        self.complete as usize == self.written.len()
    }

    /// A layer may be written if it is the next of its page and the page's slot is free of earlier pages.
    fn may_write(&self, page: u32, layer: u32) -> bool {
        self.written[page as usize] == layer && page < self.complete + self.window
    }

    fn wrote(&mut self, page: u32, layers: u32) {
        let written = &mut self.written[page as usize];
        *written = layers.max(*written);
        while self.written.get(self.complete as usize).is_some_and(|written| *written == self.layers) {
            self.complete += 1;
        }
    }

    fn computed(&mut self, pages: u32) {
        self.computed = self.computed.max(pages.min(self.written.len() as u32));
    }

    /// From this page on none is there at present: they are asked for again once they are computed.
    fn missed(&mut self, page: u32) {
        self.computed = self.computed.min(page);
        self.asked = self.asked.min(page);
    }

    /// Pages that are computed, may be written, and are not complete, so that they must be fetched; each once, and no
    /// more than `ahead` beyond those that are complete.
    fn due(&mut self, ahead: u32) -> Vec<u32> {
        let end = self.computed.min(self.complete + self.window.min(ahead));
        let pages = self.asked.max(self.complete)..end;
        self.asked = self.asked.max(end);
        pages.filter(|page| self.written[*page as usize] < self.layers).collect()
    }
}

#[cfg(test)]
mod preemption;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_came_in_full_need_no_read() {
        let mut progress = Progress::new(2, 2, 4);
        for (page, layer) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            assert!(progress.may_write(page, layer));
            progress.wrote(page, layer + 1);
        }
        progress.computed(2);
        assert!(progress.is_complete());
        assert!(progress.due(READ_AHEAD).is_empty());
    }

    #[test]
    fn a_page_that_lacks_a_layer_or_was_cached_is_read_once() {
        let mut progress = Progress::new(3, 2, 4);
        progress.computed(1);
        assert_eq!(progress.due(READ_AHEAD), [0], "cached");
        progress.wrote(1, 1);
        assert!(!progress.may_write(1, 0), "written before");
        assert!(!progress.may_write(2, 1), "the layer before was left out");
        progress.computed(3);
        assert_eq!(progress.due(READ_AHEAD), [1, 2]);
        assert!(progress.due(READ_AHEAD).is_empty());
        for page in 0..3 {
            progress.wrote(page, 2);
        }
        assert!(progress.is_complete());
    }

    #[test]
    fn pages_that_were_missed_are_asked_for_again_once_they_are_computed() {
        let mut progress = Progress::new(4, 2, 4);
        progress.computed(3);
        assert_eq!(progress.due(READ_AHEAD), [0, 1, 2]);
        progress.wrote(0, 2);
        progress.missed(1);
        progress.missed(2);
        assert!(progress.due(READ_AHEAD).is_empty(), "they are not there");
        progress.computed(2);
        assert_eq!(progress.due(READ_AHEAD), [1]);
        progress.wrote(1, 2);
        progress.computed(4);
        assert_eq!(progress.due(READ_AHEAD), [2, 3]);
    }

    #[test]
    fn pages_beyond_the_window_wait_for_those_before_them() {
        let mut progress = Progress::new(5, 1, 2);
        assert!(progress.may_write(1, 0) && !progress.may_write(2, 0));
        progress.computed(5);
        assert_eq!(progress.due(READ_AHEAD), [0, 1]);
        progress.wrote(0, 1);
        assert_eq!(progress.due(READ_AHEAD), [2]);
        progress.wrote(1, 1);
        progress.wrote(2, 1);
        assert_eq!(progress.due(READ_AHEAD), [3, 4]);
    }
}
