//! Receivers that cannot listen on every transport.

use std::{net::TcpListener, os::unix::fs::PermissionsExt, path::Path, sync::Weak};

use parking_lot::Mutex;

use super::{device::HostMemory, *};

/// A device whose memory other processes cannot reach.
struct Unshared;

impl DeviceMemory for Unshared {
    fn allocate(&self, _: u64) -> std::io::Result<Arc<dyn DeviceSlab>> {
        Err(std::io::Error::other("the driver does not share it"))
    }

    fn open(&self, _: &DeviceHandle) -> std::io::Result<Arc<dyn DeviceSlab>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn room(&self, _: usize) -> std::io::Result<Box<dyn HostRoom>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// Knows what it has set aside.
#[derive(Default)]
struct Watched(Mutex<Vec<Weak<dyn DeviceSlab>>>);

impl DeviceMemory for Watched {
    fn allocate(&self, bytes: u64) -> std::io::Result<Arc<dyn DeviceSlab>> {
        let slab = HostMemory.allocate(bytes)?;
        self.0.lock().push(Arc::downgrade(&slab));
        Ok(slab)
    }

    fn open(&self, handle: &DeviceHandle) -> std::io::Result<Arc<dyn DeviceSlab>> {
        HostMemory.open(handle)
    }

    fn room(&self, bytes: usize) -> std::io::Result<Box<dyn HostRoom>> {
        HostMemory.room(bytes)
    }
}

fn ipc(folder: &Path, memory: Arc<dyn DeviceMemory>) -> Box<dyn KvTransport> {
    Box::new(IpcTransport::new(link(b"secret"), folder, memory))
}

fn shm(folder: &Path) -> Box<dyn KvTransport> {
    Box::new(ShmTransport::new(link(b"secret"), folder))
}

fn tcp(port: u16) -> Box<dyn KvTransport> {
    Box::new(TcpTransport::new(link(b"secret"), ([127, 0, 0, 1], port).into(), 1))
}

/// A folder that others may enter.
fn shared_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn start(transports: &[Box<dyn KvTransport>]) -> Result<Receiver, StartError> {
    let config = ReceiverConfig { layout: layout(), others: Vec::new(), slots: 2, slots_per_grant: 2 };
    Receiver::start(config, transports, drop)
}

/// Schemes that a receiver on these transports can be reached by.
fn schemes(transports: &[Box<dyn KvTransport>]) -> Vec<String> {
    let grant = start(transports).unwrap().grant(1, "prefill-1").unwrap();
    grant.addresses.iter().map(|address| address.split().0.to_owned()).collect()
}

#[test]
fn what_cannot_be_listened_on_is_left_to_those_behind_it() {
    let (own, others) = (tempfile::tempdir().unwrap(), shared_folder());
    let own = own.path().join("kv");
    assert_eq!(schemes(&[ipc(&own, Arc::new(HostMemory)), shm(&own), tcp(0)]), ["cuda-ipc", "shm", "tcp"]);
    assert_eq!(schemes(&[ipc(&own, Arc::new(Unshared)), shm(&own), tcp(0)]), ["shm", "tcp"]);
    let open = others.path();
    assert_eq!(schemes(&[ipc(open, Arc::new(HostMemory)), shm(open), tcp(0)]), ["tcp"]);
}

#[test]
fn the_last_must_listen() {
    let others = shared_folder();
    let refused = |transports: &[_]| start(transports).err().expect("an error").to_string();
    let error = refused(&[ipc(others.path(), Arc::new(Unshared))]);
    assert!(error.contains("cuda-ipc") && error.contains("does not share"), "{error}");
    let error = refused(&[shm(others.path())]);
    assert!(error.contains("shm") && error.contains("open to other users"), "{error}");
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let own = tempfile::tempdir().unwrap();
    let error = refused(&[shm(&own.path().join("kv")), tcp(taken.local_addr().unwrap().port())]);
    assert!(error.contains("tcp") && error.contains("in use"), "{error}");
}

#[test]
fn device_memory_that_no_writer_can_ask_for_is_given_back() {
    let (memory, others) = (Arc::new(Watched::default()), shared_folder());
    let receiver = start(&[ipc(others.path(), memory.clone()), tcp(0)]).unwrap();
    // The host's list of slabs keeps each.
    let holders: Vec<usize> = memory.0.lock().iter().map(Weak::strong_count).collect();
    assert_eq!(holders, [1]);
    drop(receiver);
}
