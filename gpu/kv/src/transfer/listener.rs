use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::net::{self, Shutdown, SocketFlags};

use super::{Address, LinkConfig, Listening, SlotArena, bodies::Bodies, connection, socket::Socket};

/// Writers that one listener serves, each on a thread. Further ones are hung up on.
const MAX_CONNECTIONS: usize = 512;
/// Before the next try when no connection can be accepted, for want of descriptors or threads.
const SHORT_OF_RESOURCES: Duration = Duration::from_millis(20);

/// Accepts connections on a thread of its own and serves each on another.
pub(super) struct Listener {
    address: Address,
    bodies: Bodies,
    listening: Arc<OwnedFd>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub fn start(
        address: Address,
        listening: OwnedFd,
        arena: Arc<SlotArena>,
        link: LinkConfig,
        bodies: Bodies,
    ) -> io::Result<Self> {
        let (listening, stopping) = (Arc::new(listening), Arc::new(AtomicBool::new(false)));
        let (accepting, stop, link) = (listening.clone(), stopping.clone(), Arc::new(link));
        let seats = Arc::new(());
        let thread = thread::Builder::new().name("kv-accept".to_owned()).spawn(move || {
            loop {
                let accepted = net::accept_with(&accepting, SocketFlags::CLOEXEC);
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(socket), true) = (accepted, Arc::strong_count(&seats) <= MAX_CONNECTIONS) else {
                    thread::sleep(SHORT_OF_RESOURCES);
                    continue;
                };
                let (arena, link, seat) = (arena.clone(), link.clone(), seats.clone());
                let spawned = thread::Builder::new().name("kv-receive".to_owned()).spawn(move || {
                    connection::serve(&Socket::from(socket), &arena, &link, bodies);
                    drop(seat);
                });
                if let Err(error) = spawned {
                    tracing::warn!(%error, "kv writer refused: no thread");
                }
            }
        })?;
        Ok(Self { address, bodies, listening, stopping, thread: Some(thread) })
    }
}

impl Listening for Listener {
    fn address(&self) -> Address {
        self.address.clone()
    }

    fn in_device_memory(&self) -> bool {
        self.bodies == Bodies::Device
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = net::shutdown(&self.listening, Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
