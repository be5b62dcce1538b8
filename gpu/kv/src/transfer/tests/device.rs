//! Device memory that is host memory, and what only stores of a device can bring about.

use parking_lot::Mutex;

use super::{hostile::connect, *};

/// All slabs of this process. The handle of a slab is its number; addresses tell slabs apart.
static SLABS: Mutex<Vec<Arc<HostSlab>>> = Mutex::new(Vec::new());
const SLAB_BITS: u32 = 32;

pub struct HostMemory;

pub struct HostSlab {
    number: u64,
    bytes: Mutex<Vec<u8>>,
}

impl DeviceMemory for HostMemory {
    fn allocate(&self, bytes: u64) -> std::io::Result<Arc<dyn DeviceSlab>> {
        let mut slabs = SLABS.lock();
        let bytes = Mutex::new(vec![0; bytes as usize]);
        let slab = Arc::new(HostSlab { number: slabs.len() as u64, bytes });
        slabs.push(slab.clone());
        Ok(slab)
    }

    fn open(&self, handle: &DeviceHandle) -> std::io::Result<Arc<dyn DeviceSlab>> {
        let slabs = SLABS.lock();
        let slab = slabs.iter().find(|slab| slab.handle() == *handle);
        slab.map(|slab| slab.clone() as Arc<dyn DeviceSlab>)
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    fn room(&self, _: usize) -> std::io::Result<Box<dyn HostRoom>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

impl DeviceSlab for HostSlab {
    fn handle(&self) -> DeviceHandle {
        let mut handle = [0; DeviceHandle::BYTES];
        handle[..8].copy_from_slice(&self.number.to_le_bytes());
        DeviceHandle(handle)
    }

    fn address(&self) -> DeviceAddress {
        DeviceAddress(self.number << SLAB_BITS)
    }

    fn bytes(&self) -> u64 {
        self.bytes.lock().len() as u64
    }

    fn store(&self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.bytes.lock()[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn checksums(&self, spans: &[Span]) -> std::io::Result<Vec<u64>> {
        let bytes = self.bytes.lock();
        let of = |span: &Span| device_checksum(span.seed, &bytes[span.at as usize..][..span.bytes as usize]);
        Ok(spans.iter().map(of).collect())
    }
}

fn slab_of(address: DeviceAddress) -> (Arc<HostSlab>, u64) {
    let at = address.0 & ((1 << SLAB_BITS) - 1);
    (SLABS.lock()[(address.0 >> SLAB_BITS) as usize].clone(), at)
}

/// What lies at an address.
pub fn load(address: DeviceAddress, bytes: u64) -> Vec<u8> {
    let (slab, at) = slab_of(address);
    let all = slab.bytes.lock();
    all[at as usize..][..bytes as usize].to_vec()
}

/// How often a slab is held, this list of all included.
pub fn holders(address: DeviceAddress) -> usize {
    Arc::strong_count(&SLABS.lock()[(address.0 >> SLAB_BITS) as usize])
}

/// Bytes of the slab that an address is in.
pub fn slab_bytes(address: DeviceAddress) -> u64 {
    slab_of(address).0.bytes()
}

/// What a device does for a writer: stores a page in its place and computes its checksum.
fn store(place: Place, page: &[u8]) -> u64 {
    let (slab, at) = slab_of(place.address);
    slab.store(at, page).unwrap();
    device_checksum(place.seed, page)
}

#[test]
fn pages_that_a_device_stores_land_many_at_a_time() {
    let bench = Bench::new(Scheme::Ipc, 4);
    let (grant, mut writer) = bench.open(10);
    let pusher = std::thread::spawn(move || {
        let device = writer.device().unwrap();
        for window in [0..4, 4..8, 8..10] {
            let pages = window.map(PageIndex).map(|index| {
                let place = device.place(index).unwrap().unwrap();
                (index, store(place, &page_of(5, index)))
            });
            let pages: Vec<_> = pages.collect();
            device.stored(&pages).unwrap();
        }
        writer.finish().unwrap();
    });
    let (pages, end) = bench.drain(grant.epoch);
    pusher.join().unwrap();
    assert_eq!(end, GrantEnd::Finished);
    assert_pages(&pages, 5, 10);
    bench.all_free();
}

#[test]
fn a_page_that_changed_in_its_place_does_not_land() {
    let bench = Bench::new(Scheme::Ipc, 2);
    let (grant, mut writer) = bench.open(2);
    let device = writer.device().unwrap();
    let index = PageIndex(0);
    let place = device.place(index).unwrap().unwrap();
    let sum = store(place, &page_of(1, index));
    store(place, &page_of(2, index));
    device.stored(&[(index, sum)]).unwrap();
    assert_eq!(bench.ended(), (grant.epoch, GrantEnd::Corrupt));
}

#[test]
fn slots_of_a_writer_that_vanished_rest_while_its_device_may_still_store() {
    let bench = Bench::new(Scheme::Ipc, 2);
    let grant = bench.receiver.grant(2, "prefill-1").unwrap();
    let socket = connect(Scheme::Ipc, &grant);
    let began = Instant::now();
    drop(socket);
    assert_eq!(bench.ended(), (grant.epoch, GrantEnd::Gone));
    assert_eq!(bench.receiver.counts().quarantined, 2);
    bench.all_free();
    assert!(began.elapsed() >= link(b"secret").teardown);
}

#[test]
fn a_grant_is_of_one_memory() {
    let folder = tempfile::tempdir().unwrap();
    let Transports(mut both) = transports(Scheme::Ipc, link(b"secret"), folder.path());
    both.extend(transports(Scheme::Shm, link(b"secret"), folder.path()).0);
    let config = ReceiverConfig { layout: layout(), others: Vec::new(), slots: 2, slots_per_grant: 2 };
    let receiver = Receiver::start(config, &both, drop).unwrap();
    let mut grant = receiver.grant(2, "prefill-1").unwrap();
    let both = Transports(both);
    let mut first = both.open(&grant, &layout()).unwrap();
    assert!(first.device().is_some(), "the best transport was not taken");
    grant.addresses.remove(0);
    assert!(matches!(both.open(&grant, &layout()), Err(OpenError::Revoked)));
}
