//! Page-locked memory that pushes take turns with.

use std::{io, sync::Arc};

use kv::{
    PageLayout,
    transfer::{DeviceAddress, DeviceMemory, HostRoom},
};
use parking_lot::{Condvar, Mutex};

use super::fetch::ROOM_BLOCKS;

/// Rooms for a few blocks each, made as they are needed.
pub struct Rooms {
    memory: Arc<dyn DeviceMemory>,
    room_bytes: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    spare: Vec<Box<dyn HostRoom>>,
    made: usize,
}

impl Rooms {
    /// Rooms of a process, however many pushes there are: they are never given back to the system.
    pub(super) const MOST: usize = 16;

    pub fn new(memory: Arc<dyn DeviceMemory>, layout: &PageLayout) -> Self {
        let room_bytes = ROOM_BLOCKS as usize * layout.page_bytes() as usize;
        Self { memory, room_bytes, state: Mutex::default(), returned: Condvar::new() }
    }

    /// A room; waits while all are lent. Not for those who hold one: they might wait for each other.
    ///
    /// # Errors
    /// If the memory for it cannot be had.
    pub(super) fn take(&self) -> io::Result<Lent<'_>> {
        let mut state = self.state.lock();
        loop {
            if let Some(room) = self.find(&mut state)? {
                return Ok(room);
            }
            self.returned.wait(&mut state);
        }
    }

    /// A room, unless all are lent.
    ///
    /// # Errors
    /// If the memory for it cannot be had.
    pub(super) fn try_take(&self) -> io::Result<Option<Lent<'_>>> {
        self.find(&mut self.state.lock())
    }

    fn find(&self, state: &mut State) -> io::Result<Option<Lent<'_>>> {
        let room = match state.spare.pop() {
            Some(room) => room,
            None if state.made == Self::MOST => return Ok(None),
            None => {
                let room = self.memory.room(self.room_bytes)?;
                state.made += 1;
                room
            }
        };
        Ok(Some(Lent { rooms: self, room: Some(room) }))
    }
}

/// A room until it is dropped.
pub(super) struct Lent<'a> {
    rooms: &'a Rooms,
    room: Option<Box<dyn HostRoom>>,
}

impl Lent<'_> {
    fn room(&self) -> &dyn HostRoom {
        self.room.as_deref().expect("there until it is dropped")
    }

    pub fn address(&self) -> DeviceAddress {
        self.room().address()
    }

    pub fn bytes(&self) -> &[u8] {
        self.room().bytes()
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.rooms.state.lock().spare.extend(self.room.take());
        self.rooms.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use kv::transfer::{DeviceHandle, DeviceSlab};

    use super::*;

    /// Counts what was asked of it.
    #[derive(Default)]
    struct Counted(AtomicUsize);

    struct Nowhere;

    impl HostRoom for Nowhere {
        fn address(&self) -> DeviceAddress {
            DeviceAddress(0)
        }

        fn bytes(&self) -> &[u8] {
            &[]
        }
    }

    impl DeviceMemory for Counted {
        fn allocate(&self, _: u64) -> io::Result<Arc<dyn DeviceSlab>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn open(&self, _: &DeviceHandle) -> io::Result<Arc<dyn DeviceSlab>> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn room(&self, _: usize) -> io::Result<Box<dyn HostRoom>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Box::new(Nowhere))
        }
    }

    fn rooms() -> (Arc<Counted>, Rooms) {
        let name = || "r".to_owned();
        let layout = PageLayout { revision: name(), name: name(), page_size: 16, layers: 1, layer_bytes: 64 };
        let memory = Arc::new(Counted::default());
        (memory.clone(), Rooms::new(memory, &layout))
    }

    #[test]
    fn rooms_are_made_as_they_are_needed_up_to_the_most_and_lent_again() {
        let (memory, rooms) = rooms();
        let made = || memory.0.load(Ordering::Relaxed);
        for _ in 0..3 {
            drop(rooms.take().unwrap());
        }
        assert_eq!(made(), 1);
        let mut lent: Vec<_> = (0..Rooms::MOST).map(|_| rooms.take().unwrap()).collect();
        assert!(rooms.try_take().unwrap().is_none());
        lent.pop();
        assert!(rooms.try_take().unwrap().is_some());
        assert_eq!(made(), Rooms::MOST);
    }

    #[test]
    fn who_finds_all_rooms_lent_gets_the_next_that_comes_back() {
        let (_, rooms) = rooms();
        let lent: Vec<_> = (0..Rooms::MOST).map(|_| rooms.take().unwrap()).collect();
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..2).map(|_| scope.spawn(|| rooms.take().is_ok())).collect();
            drop(lent);
            assert!(waiting.into_iter().all(|waited| waited.join().unwrap()));
        });
    }
}
