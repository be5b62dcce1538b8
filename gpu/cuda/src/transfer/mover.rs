use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaStream, result, sys::CUevent_flags};
use models::{Copying, ExecutorError, PageMove};
use parking_lot::Mutex;

use crate::{
    Buffer, CudaError, Device, PinnedBuffer, View,
    launch::{Shape, arguments, start},
};

/// Pages that one call moves at most.
pub(crate) const MOVES: usize = 64;
/// Calls that may be under way at once. What more there is goes together in a later call.
const ROOMS: usize = 32;
/// Blocks that share a layer of a page.
const BLOCKS: u32 = 2;
/// Above all steps: a push is short, and another engine waits for it.
const PRIORITY: i32 = -5;

/// As the kernel reads it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Move {
    place: u64,
    seed: u64,
    page: u64,
    unused: u64,
}

/// A pool of pages: [layers, pages, layer_bytes].
#[derive(Debug, Clone, Copy)]
pub(crate) struct PagePool<'a> {
    pub bytes: View<'a, u8>,
    pub layers: usize,
    pub layer_bytes: usize,
}

/// Moves whole pages between the pool and places elsewhere, without stopping the device thread.
#[derive(Debug)]
pub(crate) struct Mover {
    context: Arc<CudaContext>,
    /// Pushes do not wait for steps under way: what they read was computed before.
    aside: Arc<CudaStream>,
    out: CudaFunction,
    into: CudaFunction,
    /// All are there from the start: setting memory aside may wait for steps.
    spare: Arc<Mutex<Vec<Room>>>,
}

/// What one call needs until the device has done it.
#[derive(Debug)]
struct Room {
    moves: PinnedBuffer<Move>,
    sums: Buffer<u64>,
    read: PinnedBuffer<u64>,
    done: CudaEvent,
}

impl Room {
    fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        Ok(Self {
            moves: PinnedBuffer::new(context, MOVES)?,
            sums: Buffer::new(context, MOVES)?,
            read: PinnedBuffer::new(context, MOVES)?,
            done: context.new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING))?,
        })
    }
}

impl Mover {
    pub fn new(device: &Device) -> Result<Self, CudaError> {
        let context = device.context().clone();
        let rooms = (0..ROOMS).map(|_| Room::new(&context)).collect::<Result<_, _>>()?;
        Ok(Self {
            aside: context.new_stream_with_priority(PRIORITY)?,
            out: device.kernels().get("pages_out").clone(),
            into: device.kernels().get("pages_in").clone(),
            spare: Arc::new(Mutex::new(rooms)),
            context,
        })
    }

    /// Whether another call can be under way.
    pub fn has_room(&self) -> bool {
        !self.spare.lock().is_empty()
    }

    /// Starts to copy pages of steps that have ended to their places. Steps started later wait for it.
    pub fn push(&self, device: &Device, pool: PagePool<'_>, moves: &[PageMove]) -> Result<Moving, CudaError> {
        let moving = self.start(&self.aside, &self.out, pool, moves)?;
        device.stream().wait(moving.done())?;
        Ok(moving)
    }

    /// Starts to fill pages from their places, in the order of steps.
    pub fn pull(&self, device: &Device, pool: PagePool<'_>, moves: &[PageMove]) -> Result<Moving, CudaError> {
        self.start(device.stream(), &self.into, pool, moves)
    }

    fn start(
        &self,
        stream: &CudaStream,
        function: &CudaFunction,
        pool: PagePool<'_>,
        moves: &[PageMove],
    ) -> Result<Moving, CudaError> {
        if moves.len() > MOVES || !pool.layer_bytes.is_multiple_of(16) {
            let (count, bytes) = (moves.len(), pool.layer_bytes);
            return Err(CudaError::Shape(format!("{count} pages at once, layers of {bytes} bytes")));
        }
        let spare = self.spare.lock().pop();
        let mut room = spare.ok_or_else(|| CudaError::Shape(format!("{ROOMS} calls are under way")))?;
        for (to, from) in room.moves.as_mut_slice().iter_mut().zip(moves) {
            *to = Move { place: from.address, seed: from.seed, page: from.page.into(), unused: 0 };
        }
        let part = pool.layer_bytes / 16;
        let stride = pool.bytes.len() / pool.layers / 16;
        let grid = [BLOCKS, pool.layers as u32, moves.len() as u32];
        let arguments =
            arguments![pool.bytes, room.moves.address(), room.sums.view(), part as u64, stride as u64];
        self.context.bind_to_thread()?;
        // SAFETY: the sums are in bounds, and the room lives until the event after all of this has passed. Pages are in
        // the pool (checked by the caller); places are trusted.
        unsafe {
            let sums = room.sums.view();
            result::memset_d8_async(sums.address(), 0, sums.bytes(), stream.cu_stream())?;
            start(function, stream, Shape::new(grid, 256).alone(), &[(); 0], arguments)?;
            let read = &mut room.read.as_mut_slice()[..moves.len()];
            result::memcpy_dtoh_async(read, sums.address(), stream.cu_stream())?;
        }
        room.done.record(stream)?;
        Ok(Moving { room: Some(room), count: moves.len(), spare: self.spare.clone() })
    }
}

/// Pages on their way.
#[derive(Debug)]
pub(crate) struct Moving {
    room: Option<Room>,
    count: usize,
    spare: Arc<Mutex<Vec<Room>>>,
}

impl Moving {
    fn done(&self) -> &CudaEvent {
        &self.room.as_ref().expect("there until it is dropped").done
    }
}

impl Copying for Moving {
    fn is_done(&self) -> bool {
        // An error shows when it is waited for.
        !matches!(self.done().try_is_complete(), Ok(false))
    }

    fn wait(self: Box<Self>) -> Result<Vec<u64>, ExecutorError> {
        self.done().synchronize().map_err(CudaError::from)?;
        let room = self.room.as_ref().expect("there until it is dropped");
        Ok(room.read.as_slice()[..self.count].to_vec())
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        if let Some(room) = self.room.take() {
            // The device may still read and write what is in it.
            match room.done.synchronize() {
                Ok(()) => self.spare.lock().push(room),
                Err(error) => tracing::error!(%error, "pages were not moved"),
            }
        }
    }
}
