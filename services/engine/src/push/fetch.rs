//! Blocks that leave a device for the host, from where they are written.

use std::sync::mpsc::Receiver;

use kv::transfer::{PageIndex, PageWriter, Place};
use models::Copying;

use super::{
    Progress, Push, PushError, READ_AHEAD,
    rooms::{Lent, Rooms},
};

/// Blocks of a room. One is filled while another is written from.
pub(super) const ROOM_BLOCKS: u32 = READ_AHEAD / 2;

impl Push {
    /// The device stores blocks in page-locked memory, from where they are written, while it stores the next.
    pub(super) fn fetch(
        &self,
        rooms: &Rooms,
        writer: &mut dyn PageWriter,
        progress: &mut Progress,
    ) -> Result<(), PushError> {
        let mut next = None;
        while !progress.is_complete() {
            let fetched = match next.take() {
                Some(fetched) => fetched,
                None => {
                    let due = self.due(progress, ROOM_BLOCKS)?;
                    self.fill(rooms.take()?, due)
                }
            };
            self.pieces.try_iter().for_each(|piece| self.note(piece, progress));
            if let Some(room) = rooms.try_take()? {
                let due = progress.due(READ_AHEAD, ROOM_BLOCKS);
                next = (!due.is_empty()).then(|| self.fill(room, due));
            }
            if self.copied(&fetched.answered)?.is_none() {
                continue;
            }
            let bytes = fetched.room.bytes().chunks_exact(self.layout.page_bytes() as usize);
            for (&page, bytes) in fetched.pages.iter().zip(bytes) {
                writer.write(PageIndex(page), 0, bytes)?;
                progress.wrote(page, self.layout.layers);
            }
        }
        Ok(())
    }

    /// Has the device fill a room with pages, which are no more than it holds.
    fn fill<'a>(&self, room: Lent<'a>, pages: Vec<u32>) -> Fetched<'a> {
        let starts = (0..).step_by(self.layout.page_bytes() as usize);
        let place = |(&page, at)| (page, Place { address: room.address().at(at), seed: 0 });
        let places: Vec<_> = pages.iter().zip(starts).map(place).collect();
        Fetched { answered: self.copy_out(&places), pages, room }
    }
}

/// A room that the device fills.
struct Fetched<'a> {
    pages: Vec<u32>,
    room: Lent<'a>,
    answered: Receiver<Box<dyn Copying>>,
}

impl Drop for Fetched<'_> {
    /// Waits for the device before the room goes to somebody else.
    fn drop(&mut self) {
        drop(self.answered.recv());
    }
}

#[cfg(test)]
mod tests;
