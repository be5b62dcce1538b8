use super::*;

#[test]
fn a_writer_that_wakes_after_its_grant_was_revoked_spoils_nothing() {
    for scheme in ALL {
        let bench = Bench::new(scheme, 2);
        let (old, mut paused) = bench.open(2);
        paused.write(PageIndex(0), 0, &layer_of(1, PageIndex(0), 0)).unwrap();
        bench.receiver.revoke(old.epoch);
        if scheme != Scheme::Tcp {
            // It maps the slots: nobody else gets them while it has not closed.
            let quarantined = SlotCounts { quarantined: 2, ..SlotCounts::default() };
            bench.settles_at(quarantined);
            assert_eq!(bench.receiver.grant(1, "prefill-2"), Err(GrantError::NoSlots));
            let _ = paused.write(PageIndex(0), 1, &layer_of(1, PageIndex(0), 1));
            let told = paused.write(PageIndex(1), 0, &page_of(1, PageIndex(1)));
            assert!(matches!(told, Err(WriteError::Revoked)), "{told:?}");
            assert_eq!(bench.receiver.counts(), quarantined);
            drop(paused);
            bench.all_free();
            next_grant_arrives_whole(&bench);
        } else {
            bench.all_free();
            let (new, mut writer) = bench.open(2);
            writer.write(PageIndex(0), 0, &layer_of(2, PageIndex(0), 0)).unwrap();
            let told = paused
                .write(PageIndex(0), 1, &layer_of(1, PageIndex(0), 1))
                .and_then(|()| paused.write(PageIndex(1), 0, &page_of(1, PageIndex(1))));
            assert!(matches!(told, Err(WriteError::Revoked)), "{told:?}");
            writer.write(PageIndex(0), 1, &page_of(2, PageIndex(0))[LAYER_BYTES as usize..]).unwrap();
            writer.write(PageIndex(1), 0, &page_of(2, PageIndex(1))).unwrap();
            writer.finish().unwrap();
            let (pages, end) = bench.drain(new.epoch);
            assert_eq!(end, GrantEnd::Finished);
            assert_pages(&pages, 2, 2);
            bench.all_free();
        }
    }
}

fn next_grant_arrives_whole(bench: &Bench) {
    let (grant, mut writer) = bench.open(2);
    for index in [0, 1].map(PageIndex) {
        writer.write(index, 0, &page_of(2, index)).unwrap();
    }
    writer.finish().unwrap();
    let (pages, end) = bench.drain(grant.epoch);
    assert_eq!(end, GrantEnd::Finished);
    assert_pages(&pages, 2, 2);
    bench.all_free();
}

#[test]
fn a_writer_that_says_that_it_has_closed_ends_its_quarantine() {
    let bench = Bench::new(Scheme::Shm, 3);
    let (grant, writer) = bench.open(3);
    bench.receiver.revoke(grant.epoch);
    bench.settles_at(SlotCounts { quarantined: 3, ..SlotCounts::default() });
    bench.receiver.closed(grant.epoch);
    bench.all_free();
    drop(writer);
    next_grant_arrives_whole(&bench);
}

#[test]
fn a_writer_that_is_gone_leaves_quarantined_what_it_was_connected_for_until_the_connection_ends() {
    for scheme in [Scheme::Shm, Scheme::Ipc] {
        let bench = Bench::new(scheme, 4);
        let (_, writer) = bench.open(2);
        let _unopened = bench.receiver.grant(1, "prefill-1").unwrap();
        let _of_another = bench.receiver.grant(1, "prefill-2").unwrap();
        bench.receiver.writer_gone("prefill-1");
        let counts = SlotCounts { free: 1, granted: 1, quarantined: 2, held: 0 };
        assert_eq!(bench.receiver.counts(), counts);
        drop(writer);
        bench.settles_at(SlotCounts { free: 3, granted: 1, ..SlotCounts::default() });
    }
}

#[test]
fn a_grant_that_nobody_opened_is_free_at_once_and_stays_shut() {
    for scheme in ALL {
        let bench = Bench::new(scheme, 2);
        let grant = bench.receiver.grant(2, "prefill-1").unwrap();
        bench.receiver.revoke(grant.epoch);
        assert_eq!(bench.receiver.counts().free, 2);
        assert!(matches!(bench.transports.open(&grant, &layout()), Err(OpenError::Revoked)));
        assert!(bench.events.try_recv().is_err(), "a grant given up by its receiver ends without an event");
    }
}

#[test]
fn a_landed_page_outlives_its_grant() {
    for scheme in ALL {
        let bench = Bench::new(scheme, 2);
        let (grant, mut writer) = bench.open(2);
        writer.write(PageIndex(0), 0, &page_of(1, PageIndex(0))).unwrap();
        let page = bench.landed();
        bench.receiver.revoke(grant.epoch);
        drop(writer);
        bench.settles_at(SlotCounts { free: 1, held: 1, ..SlotCounts::default() });
        let (_, mut next) = bench.open(5);
        next.write(PageIndex(0), 0, &page_of(2, PageIndex(0))).unwrap();
        assert!(bytes(&bench.landed()) == page_of(2, PageIndex(0)));
        assert!(bytes(&page) == page_of(1, PageIndex(0)), "the held page changed");
        drop((page, next));
        bench.all_free();
    }
}

#[test]
fn a_writer_that_leaves_midway_ends_its_grant() {
    for scheme in ALL {
        let bench = Bench::new(scheme, 4);
        let (grant, mut writer) = bench.open(4);
        writer.write(PageIndex(0), 0, &page_of(1, PageIndex(0))).unwrap();
        writer.write(PageIndex(1), 0, &layer_of(1, PageIndex(1), 0)).unwrap();
        drop(writer);
        let (pages, end) = bench.drain(grant.epoch);
        assert_eq!(end, GrantEnd::Closed);
        assert_pages(&pages, 1, 1);
        bench.all_free();
    }
}

#[test]
fn a_receiver_that_leaves_is_seen_by_the_writer() {
    for scheme in ALL {
        let bench = Bench::new(scheme, 1);
        let (_, mut writer) = bench.open(2);
        writer.write(PageIndex(0), 0, &page_of(1, PageIndex(0))).unwrap();
        drop(bench.landed());
        drop(bench);
        let told = writer.write(PageIndex(1), 0, &page_of(1, PageIndex(1))).and_then(|()| writer.finish());
        assert!(matches!(told, Err(WriteError::Revoked | WriteError::Gone(_))), "{told:?}");
    }
}
