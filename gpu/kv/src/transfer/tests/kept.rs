//! Receivers with slots in device memory, and writers that keep slots mapped.

use super::{device::HostMemory, *};

/// A device that is lost after its memory was set aside.
struct Lost;

impl DeviceMemory for Lost {
    fn allocate(&self, bytes: u64) -> std::io::Result<Arc<dyn DeviceSlab>> {
        Ok(Arc::new(LostSlab(HostMemory.allocate(bytes)?)))
    }

    fn open(&self, _: &DeviceHandle) -> std::io::Result<Arc<dyn DeviceSlab>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }

    fn room(&self, _: usize) -> std::io::Result<Box<dyn HostRoom>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

struct LostSlab(Arc<dyn DeviceSlab>);

impl DeviceSlab for LostSlab {
    fn handle(&self) -> DeviceHandle {
        self.0.handle()
    }

    fn address(&self) -> DeviceAddress {
        self.0.address()
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn store(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::Error::other("the device is lost"))
    }

    fn checksums(&self, _: &[Span]) -> std::io::Result<Vec<u64>> {
        Err(std::io::Error::other("the device is lost"))
    }
}

/// Pushes pages into slots of their own, and takes them all.
fn landed(bench: &Bench, seed: u64, pages: u32) -> Vec<LandedPage> {
    let (_, mut writer) = bench.open(pages);
    for index in (0..pages).map(PageIndex) {
        writer.write(index, 0, &page_of(seed, index)).unwrap();
    }
    writer.finish().unwrap();
    let landed = (0..pages).map(|_| bench.landed()).collect();
    assert_eq!(bench.ended().1, GrantEnd::Finished);
    landed
}

#[test]
fn pages_that_land_on_the_host_are_found_in_device_memory() {
    for scheme in [Scheme::Shm, Scheme::Tcp] {
        let bench = Bench::new(scheme, 4);
        bench.receiver.keep_in(&HostMemory).unwrap();
        for seed in 1..4 {
            for page in landed(&bench, seed, 4) {
                let address = page.address().unwrap_or_else(|| panic!("on the host, over {scheme:?}"));
                let bytes = device::load(address, layout().page_bytes());
                assert!(bytes == page_of(seed, page.index()), "page {} over {scheme:?}", page.index().0);
            }
            bench.all_free();
        }
    }
}

#[test]
fn pages_that_a_device_does_not_take_stay_on_the_host() {
    let bench = Bench::new(Scheme::Tcp, 2);
    bench.receiver.keep_in(&Lost).unwrap();
    for page in landed(&bench, 1, 2) {
        assert_eq!(page.address(), None);
        assert!(page.bytes() == page_of(1, page.index()));
    }
}

#[test]
fn memory_of_a_receiver_that_is_forgotten_is_let_go_and_mapped_again_if_it_comes_back() {
    for scheme in ALL {
        let bench = Bench::new(scheme, 3);
        let addresses = bench.receiver.grant(1, "prefill-1").unwrap().addresses;
        let pages = landed(&bench, 1, 1);
        let held = || pages[0].address().map(device::holders);
        let mapped = held();
        bench.transports.forget(&addresses);
        assert_eq!(held(), mapped.map(|holders| holders - 1), "over {scheme:?}");
        assert_eq!(landed(&bench, 2, 1).len(), 1);
        assert_eq!(held(), mapped, "over {scheme:?}");
    }
}
