//! Pushes the blocks of one prompt into the slots that decode has lent: layers while they are computed, whole blocks
//! where a layer was left out or the block was cached.

mod fetch;
mod progress;
mod rooms;

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    time::Duration,
};

use kv::{
    PageLayout,
    transfer::{DeviceWriter, Grant, OpenError, PageIndex, PageWriter, Place, Transports, WriteError},
};
use models::Copying;
use scheduler::RunKey;

use crate::{
    device::{COPIED_AT_ONCE, Command, Copy, CopyOut, Device, Full},
    feed::Piece,
};
use progress::Progress;
pub use rooms::Rooms;

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
    /// Where blocks go that leave the device for the host.
    pub rooms: Option<Arc<Rooms>>,
}

#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("{0}")]
    Device(String),
    #[error("page-locked memory: {0}")]
    Room(#[from] io::Error),
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
        } else if let Some(rooms) = &self.rooms {
            self.fetch(rooms, &mut *writer, &mut progress)?;
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
            for page in progress.due(READ_AHEAD, READ_AHEAD) {
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
            let Some(sums) = self.copied(&self.copy_out(&places))? else { continue };
            let stored: Vec<_> =
                places.iter().zip(sums).map(|(&(page, _), sum)| (PageIndex(page), sum)).collect();
            writer.stored(&stored)?;
            places.iter().for_each(|&(page, _)| progress.wrote(page, self.layout.layers));
        }
        Ok(())
    }

    /// Waits for pages that may be fetched; at least one, and no more than `most`.
    fn due(&self, progress: &mut Progress, most: u32) -> Result<Vec<u32>, PushError> {
        loop {
            let due = progress.due(most, most);
            if !due.is_empty() {
                return Ok(due);
            }
            self.note(self.pieces.recv().map_err(|_| PushError::Ended)?, progress);
        }
    }

    /// Where pages are asked for, they come whole and not by the feed.
    fn note(&self, piece: Piece, progress: &mut Progress) {
        match piece {
            Piece::Computed(blocks) => progress.computed(blocks.saturating_sub(self.first)),
            Piece::Missed(block) => progress.missed(block.saturating_sub(self.first)),
            Piece::Layer { .. } | Piece::Page { .. } => {}
        }
    }

    /// Has the device copy pages out, in its own time.
    fn copy_out(&self, places: &[(u32, Place)]) -> Receiver<Box<dyn Copying>> {
        let (answer, answered) = channel();
        let blocks = places.iter().map(|&(page, place)| (self.first + page, place)).collect();
        self.command(Copy::Out(CopyOut { run: self.run, blocks, answer }));
        answered
    }

    /// Waits for pages that the device copies out; their checksums. `None`: they are not there at present.
    fn copied(&self, answered: &Receiver<Box<dyn Copying>>) -> Result<Option<Vec<u64>>, PushError> {
        let Ok(copying) = answered.recv() else { return Ok(None) };
        let sums = self.device.clock.watch(|| copying.wait());
        let sums = sums.map_err(|error| PushError::Device(error.to_string()))?;
        let bytes = sums.len() as u64 * self.layout.page_bytes();
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

#[cfg(test)]
mod preemption;
