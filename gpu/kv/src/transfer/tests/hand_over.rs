use std::thread;

use proptest::prelude::*;

use super::*;

#[test]
fn a_grant_larger_than_its_window_arrives_whole() {
    for scheme in ALL {
        let bench = Bench::new(scheme, 4);
        let (grant, mut writer) = bench.open(50);
        assert_eq!(writer.window(), 4);
        let pusher = thread::spawn(move || {
            for index in (0..50).map(PageIndex) {
                writer.write(index, 0, &page_of(1, index)).unwrap();
            }
            writer.finish().unwrap();
        });
        let (pages, end) = bench.drain(grant.epoch);
        pusher.join().unwrap();
        assert_eq!(end, GrantEnd::Finished);
        assert_pages(&pages, 1, 50);
        bench.all_free();
    }
}

#[test]
fn several_grants_at_once_keep_apart() {
    for scheme in ALL {
        let folder = tempfile::tempdir().unwrap();
        let transports = Arc::new(transports(scheme, link(b"secret"), folder.path()));
        let (sender, events) = mpsc::channel();
        let config = ReceiverConfig { layout: layout(), others: Vec::new(), slots: 8, slots_per_grant: 2 };
        let receiver = Receiver::start(config, &transports.0, move |event| drop(sender.send(event))).unwrap();
        let grants: Vec<Grant> = (0..4).map(|_| receiver.grant(20, "prefill-1").unwrap()).collect();
        assert_eq!(receiver.grant(1, "prefill-1"), Err(GrantError::NoSlots));
        let pushers = grants.iter().cloned().map(|grant| {
            let transports = transports.clone();
            thread::spawn(move || {
                let mut writer = transports.open(&grant, &layout()).unwrap();
                for index in (0..20).map(PageIndex) {
                    writer.write(index, 0, &page_of(grant.epoch.0 >> 32, index)).unwrap();
                }
                writer.finish().unwrap();
            })
        });
        let pushers: Vec<_> = pushers.collect();
        let (mut landed, mut finished) = (0, 0);
        while finished < grants.len() {
            match events.recv_timeout(PATIENCE).unwrap() {
                Event::Landed(page) => {
                    assert!(bytes(&page) == page_of(page.epoch().0 >> 32, page.index()));
                    landed += 1;
                }
                Event::Ended { end, .. } => {
                    assert_eq!(end, GrantEnd::Finished);
                    finished += 1;
                }
            }
        }
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
        assert_eq!((landed, receiver.counts().free), (80, 8));
    }
}

#[test]
fn a_page_that_nobody_takes_holds_the_writer_back() {
    for scheme in ALL {
        let patient = link(b"secret");
        let bench = Bench::with(scheme, 1, LinkConfig { stall: Duration::from_millis(50), ..patient });
        let (_, mut writer) = bench.open(2);
        writer.write(PageIndex(0), 0, &page_of(1, PageIndex(0))).unwrap();
        let held = bench.landed();
        let refused = writer.write(PageIndex(1), 0, &page_of(1, PageIndex(1)));
        assert!(matches!(refused, Err(WriteError::Stalled(_))), "{refused:?}");
        assert!(bytes(&held) == page_of(1, PageIndex(0)));

        drop((held, writer));
        bench.all_free();
    }
}

#[test]
fn a_page_past_the_window_is_out_of_turn_until_the_earlier_one_is_complete() {
    for scheme in ALL {
        let bench = Bench::new(scheme, 2);
        let (_, mut writer) = bench.open(9);
        writer.write(PageIndex(0), 0, &layer_of(1, PageIndex(0), 0)).unwrap();
        for index in [2, 3, 8].map(PageIndex) {
            let refused = writer.write(index, 0, &layer_of(1, index, 0));
            assert!(matches!(refused, Err(WriteError::OutOfTurn { .. })), "{refused:?}");
        }
        let rest: Vec<u8> = (1..LAYERS).flat_map(|layer| layer_of(1, PageIndex(0), layer)).collect();
        writer.write(PageIndex(0), 1, &rest).unwrap();
        drop(bench.landed());
        writer.write(PageIndex(2), 0, &page_of(1, PageIndex(2))).unwrap();
        assert!(bytes(&bench.landed()) == page_of(1, PageIndex(2)));
    }
}

#[test]
fn a_writer_without_the_key_is_refused() {
    for scheme in ALL {
        let bench = Bench::new(scheme, 2);
        let grant = bench.receiver.grant(2, "prefill-1").unwrap();
        let stranger = transports(scheme, link(b"another secret"), bench._folder.path());
        assert!(matches!(stranger.open(&grant, &layout()), Err(OpenError::NotTrusted)));
        assert!(bench.transports.open(&grant, &layout()).is_ok(), "the grant did not survive the stranger");
    }
}

#[test]
fn pages_laid_out_otherwise_are_refused_with_both_values() {
    let bench = Bench::new(Scheme::Tcp, 2);
    let grant = bench.receiver.grant(2, "prefill-1").unwrap();
    let theirs = PageLayout { revision: "r2".to_owned(), ..layout() };
    let message = bench.transports.open(&grant, &theirs).err().unwrap().to_string();
    assert!(message.contains("revision r1") && message.contains("revision r2"), "{message}");
}

#[test]
fn an_address_out_of_reach_is_passed_over() {
    let bench = Bench::new(Scheme::Tcp, 2);
    let mut grant = bench.receiver.grant(2, "prefill-1").unwrap();
    let unreachable = ["nixl:agent", "shm:/nowhere/kv.sock", "tcp://nonsense"];
    grant.addresses.splice(0..0, unreachable.map(|address| Address(address.to_owned())));
    let Transports(mut known) = transports(Scheme::Shm, link(b"secret"), bench._folder.path());
    known.extend(transports(Scheme::Tcp, link(b"secret"), bench._folder.path()).0);
    let mut writer = Transports(known).open(&grant, &layout()).unwrap();
    writer.write(PageIndex(1), 0, &page_of(1, PageIndex(1))).unwrap();
    assert_eq!(bench.landed().index(), PageIndex(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn layers_in_any_order_and_number_land_once(
        scheme in prop::sample::select(ALL.to_vec()),
        mut order in Just((0..4u32).flat_map(|page| (0..LAYERS).map(move |layer| (page, layer))).collect::<Vec<_>>())
            .prop_shuffle(),
        again in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        for index in again {
            let twice = *index.get(&order);
            order.push(twice);
        }
        let bench = Bench::new(scheme, 4);
        let (grant, mut writer) = bench.open(4);
        for (page, layer) in order {
            writer.write(PageIndex(page), layer, &layer_of(7, PageIndex(page), layer)).unwrap();
        }
        writer.finish().unwrap();
        let (pages, end) = bench.drain(grant.epoch);
        prop_assert_eq!(end, GrantEnd::Finished);
        assert_pages(&pages, 7, 4);
        bench.all_free();
    }
}
