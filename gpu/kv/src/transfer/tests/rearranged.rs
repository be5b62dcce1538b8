//! Writers whose pages are laid out otherwise than the receiver's.

use super::*;
use crate::{Arrangement, KvDtype, Order, Rearrangement};

fn layout_of(order: Order, dtype: KvDtype) -> PageLayout {
    let arrangement = Arrangement { order, dtype, kv_heads: 2, head_dim: 24, turning: 16 };
    let layer_bytes = arrangement.layer_bytes(16) as u32;
    let (revision, name) = ("r1".to_owned(), arrangement.to_string());
    PageLayout { revision, name, page_size: 16, layers: LAYERS, layer_bytes }
}

fn ours() -> PageLayout {
    layout_of(Order::Grouped, KvDtype::F16)
}

/// A page of theirs: numbers.
fn page(layout: &PageLayout, index: PageIndex) -> Vec<u8> {
    let f16 = |at: usize| ((at * 31 + index.0 as usize * 7) % 0x7c00) as u16;
    let page: Vec<u8> = (0..ours().page_bytes() as usize / 2).flat_map(|at| f16(at).to_le_bytes()).collect();
    Rearrangement::new(&ours(), layout).unwrap().page(&page)
}

fn receiver(transports: &Transports) -> (Receiver, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel();
    let config = ReceiverConfig { layout: ours(), others: ours().others(), slots: 3, slots_per_grant: 3 };
    let receiver = Receiver::start(config, &transports.0, move |event| drop(sender.send(event))).unwrap();
    (receiver, events)
}

#[test]
fn their_pages_land_as_ours_whatever_their_size() {
    for scheme in [Scheme::Shm, Scheme::Tcp] {
        let folder = tempfile::tempdir().unwrap();
        let transports = transports(scheme, link(b"secret"), folder.path());
        let (receiver, events) = receiver(&transports);
        // Larger than a page of ours, and of another type; then ours, in the same slots.
        let theirs = [(Order::Rows { width: 64 }, KvDtype::F32), (Order::Rows { width: 128 }, KvDtype::Bf16)];
        for theirs in theirs.map(|(order, dtype)| layout_of(order, dtype)).into_iter().chain([ours()]) {
            let grant = receiver.grant_of(&theirs.to_string(), 8, "prefill-1").unwrap();
            let mut writer = transports.open(&grant, &theirs).unwrap();
            let rearrangement = Rearrangement::new(&theirs, &ours()).unwrap();
            let expected: Vec<_> =
                (0..8).map(|index| rearrangement.page(&page(&theirs, PageIndex(index)))).collect();
            let pusher = std::thread::spawn(move || {
                for index in (0..8).map(PageIndex) {
                    let bytes = page(&theirs, index);
                    let (first, rest) = bytes.split_at(theirs.layer_bytes as usize);
                    writer.write(index, 1, rest).unwrap();
                    writer.write(index, 0, first).unwrap();
                }
                writer.finish().unwrap();
            });
            let mut landed = 0;
            while let Event::Landed(got) = events.recv_timeout(PATIENCE).unwrap() {
                assert!(got.bytes() == expected[got.index().0 as usize], "page {}", got.index().0);
                landed += 1;
            }
            pusher.join().unwrap();
            assert_eq!(landed, 8);
        }
    }
}

#[test]
fn what_lands_in_device_memory_is_never_of_another_layout() {
    let folder = tempfile::tempdir().unwrap();
    let Transports(mut both) = transports(Scheme::Ipc, link(b"secret"), folder.path());
    both.extend(transports(Scheme::Shm, link(b"secret"), folder.path()).0);
    let both = Transports(both);
    let (receiver, _events) = receiver(&both);
    let device = receiver.grant(1, "prefill-1").unwrap();
    assert!(both.open(&device, &ours()).unwrap().device().is_some());
    let theirs = layout_of(Order::Rows { width: 64 }, KvDtype::Bf16);
    let mut grant = receiver.grant_of(&theirs.to_string(), 1, "prefill-1").unwrap();
    assert!(both.open(&grant, &theirs).unwrap().device().is_none());
    // A writer that insists.
    grant.addresses = device.addresses;
    assert!(matches!(both.open(&grant, &theirs), Err(OpenError::Revoked)));
}

#[test]
fn device_memory_is_set_aside_for_pages_of_ours_alone() {
    let folder = tempfile::tempdir().unwrap();
    let transports = transports(Scheme::Ipc, link(b"secret"), folder.path());
    let (receiver, events) = receiver(&transports);
    let grant = receiver.grant(3, "prefill-1").unwrap();
    assert!(grant.slot_bytes > ours().page_bytes(), "pages of other layouts are larger");
    let mut writer = transports.open(&grant, &ours()).unwrap();
    for index in (0..3).map(PageIndex) {
        writer.write(index, 0, &page(&ours(), index)).unwrap();
    }
    for _ in 0..3 {
        let Event::Landed(got) = events.recv_timeout(PATIENCE).unwrap() else { panic!("no page landed") };
        let address = got.address().unwrap();
        assert!(device::load(address, ours().page_bytes()) == page(&ours(), got.index()));
        assert_eq!(device::slab_bytes(address), 3 * ours().page_bytes());
    }
}

#[test]
fn what_lands_on_the_host_goes_to_device_memory_as_ours() {
    let folder = tempfile::tempdir().unwrap();
    let transports = transports(Scheme::Tcp, link(b"secret"), folder.path());
    let (receiver, events) = receiver(&transports);
    receiver.keep_in(&device::HostMemory).unwrap();
    let theirs = layout_of(Order::Rows { width: 64 }, KvDtype::F32);
    let grant = receiver.grant_of(&theirs.to_string(), 3, "prefill-1").unwrap();
    let mut writer = transports.open(&grant, &theirs).unwrap();
    for index in (0..3).map(PageIndex) {
        writer.write(index, 0, &page(&theirs, index)).unwrap();
    }
    let rearrangement = Rearrangement::new(&theirs, &ours()).unwrap();
    for _ in 0..3 {
        let Event::Landed(got) = events.recv_timeout(PATIENCE).unwrap() else { panic!("no page landed") };
        let bytes = device::load(got.address().unwrap(), ours().page_bytes());
        assert!(bytes == rearrangement.page(&page(&theirs, got.index())), "page {}", got.index().0);
    }
}

#[test]
fn layouts_that_are_not_taken_are_refused_with_both_values() {
    let folder = tempfile::tempdir().unwrap();
    let transports = transports(Scheme::Tcp, link(b"secret"), folder.path());
    let (receiver, _events) = receiver(&transports);
    assert_eq!(receiver.grant_of("r1", 1, "prefill-1"), Err(GrantError::Layout));
    let [granted, pushed] = [KvDtype::Bf16, KvDtype::F32].map(|dtype| layout_of(Order::Grouped, dtype));
    let grant = receiver.grant_of(&granted.to_string(), 1, "prefill-1").unwrap();
    let message = transports.open(&grant, &pushed).err().unwrap().to_string();
    assert!(message.contains("bf16 2x24") && message.contains("f32 2x24"), "{message}");

    let stranger = PageLayout { name: "sim".to_owned(), ..ours() };
    let config = ReceiverConfig { layout: ours(), others: vec![stranger], slots: 1, slots_per_grant: 1 };
    let message = Receiver::start(config, &transports.0, drop).err().unwrap().to_string();
    assert!(message.contains("f16 2x24") && message.contains("sim"), "{message}");
}
