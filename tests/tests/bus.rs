//! Leases, the directory and start-up errors against a real nats-server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use actors::{
    bus::{Bus, BusError, BusOptions, Epochs},
    directory::Directory,
    frames::{self, FrameSink},
    lease,
};
use futures_util::StreamExt;
use messages::{
    InstanceId, Pool, Role, codec,
    control::{Control, Drained, Pong},
    frame::{Pulse, TextBatch, TextDelta},
    lease::{Lease, State},
    subject,
};
use stator_tests::{
    Cluster, NatsServer, Proxy, Service, Signal, cluster::Plan, eventually, free_port, model::toy,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn options(url: String) -> BusOptions {
    BusOptions {
        urls: vec![url],
        namespace: "test".parse().unwrap(),
        credentials: None,
        name: "test".to_owned(),
    }
}

fn a_lease() -> Lease {
    let instance = InstanceId::draw(Role::Decode);
    Lease { state: State::Ready, ..Lease::new(Role::Decode, Pool::of_model("m", "00"), instance) }
}

struct Holder {
    lease: watch::Sender<Lease>,
    give_back: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn hold(bus: &Bus, lease: Lease) -> Holder {
    let (lease, view) = watch::channel(lease);
    let give_back = CancellationToken::new();
    let task = tokio::spawn(lease::keep(bus.clone(), None, view, give_back.clone()));
    Holder { lease, give_back, task }
}

async fn sees(directory: &Directory, instance: &InstanceId, state: Option<State>, within: Duration) {
    let what = format!("{instance} seen as {state:?}");
    eventually(&what, within, async || {
        (directory.lease(instance).map(|lease| lease.state) == state).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lease_is_seen_changes_and_goes_when_given_back() {
    let nats = NatsServer::start();
    let bus = Bus::connect(&options(nats.url())).await.unwrap();
    let directory = Directory::watch(bus.clone(), None);
    let lease = a_lease();
    let instance = lease.instance.clone();
    let holder = hold(&bus, lease);
    sees(&directory, &instance, Some(State::Ready), Duration::from_secs(2)).await;
    holder.lease.send_modify(|lease| lease.state = State::Draining);
    sees(&directory, &instance, Some(State::Draining), Duration::from_millis(500)).await;
    assert!(
        directory.instances(Role::Decode, &Pool::of_model("m", "00")).is_empty(),
        "draining takes no work"
    );
    holder.give_back.cancel();
    sees(&directory, &instance, None, Duration::from_millis(500)).await;
}

#[tokio::test]
async fn a_directory_is_complete_once_all_are_seen_that_lived_before_it() {
    let nats = NatsServer::start();
    let bus = Bus::connect(&options(nats.url())).await.unwrap();
    let leases: Vec<Lease> = (0..50).map(|_| a_lease()).collect();
    let _holders: Vec<Holder> = leases.iter().map(|lease| hold(&bus, lease.clone())).collect();
    let first = Directory::watch(bus.clone(), None);
    for lease in &leases {
        sees(&first, &lease.instance, Some(State::Ready), Duration::from_secs(5)).await;
    }
    let second = Directory::watch(bus.clone(), None);
    second.complete().await;
    assert!(leases.iter().all(|lease| second.lease(&lease.instance).is_some()));
}

#[tokio::test]
async fn an_expired_lease_is_an_event() {
    let nats = NatsServer::start();
    let bus = Bus::connect(&options(nats.url())).await.unwrap();
    let directory = Directory::watch(bus.clone(), None);
    let (kept, lost) = (a_lease(), a_lease());
    let (kept_id, lost_id) = (kept.instance.clone(), lost.instance.clone());
    let _kept = hold(&bus, kept);
    let holder = hold(&bus, lost);
    sees(&directory, &lost_id, Some(State::Ready), Duration::from_secs(2)).await;
    // Past the distrust that follows the start of a watch.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut departures = directory.departures();
    holder.task.abort();
    let died = Instant::now();
    let gone = tokio::time::timeout(Duration::from_secs(6), departures.recv()).await.unwrap().unwrap();
    assert_eq!(gone.instance, lost_id);
    assert!(died.elapsed() < Duration::from_millis(4500), "{:?}", died.elapsed());
    assert!(directory.lease(&kept_id).is_some());
}

#[tokio::test]
async fn a_restarted_server_without_memory_loses_nobody() {
    let mut nats = NatsServer::start();
    let bus = Bus::connect(&options(nats.url())).await.unwrap();
    let directory = Directory::watch(bus.clone(), None);
    let lease = a_lease();
    let instance = lease.instance.clone();
    let holder = hold(&bus, lease);
    sees(&directory, &instance, Some(State::Ready), Duration::from_secs(2)).await;
    nats.kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(bus.cut_off().is_some());
    nats.resume();
    eventually("reconnected", Duration::from_secs(5), async || bus.cut_off().is_none().then_some(())).await;
    // The lease is in the new bucket and its changes are seen again; meanwhile nobody was declared dead.
    assert!(directory.lease(&instance).is_some());
    holder.lease.send_modify(|lease| lease.state = State::Draining);
    sees(&directory, &instance, Some(State::Draining), Duration::from_secs(5)).await;
}

#[tokio::test]
async fn each_connection_has_a_number_of_its_own() {
    let nats = NatsServer::start();
    let proxy = Proxy::to(nats.address()).await.unwrap();
    let bus = Bus::connect(&options(format!("nats://{}", proxy.address()))).await.unwrap();
    assert_eq!(bus.epochs(), Some(Epochs { requests: 1, frames: 1 }));
    for (connection, requests, frames) in [(1, 1, 2), (0, 2, 2)] {
        let epochs = Epochs { requests, frames };
        proxy.breaks(connection);
        let what = format!("{epochs:?}");
        eventually(&what, Duration::from_secs(5), async || (bus.epochs() == Some(epochs)).then_some(()))
            .await;
        assert_eq!(bus.link().borrow().epoch, requests);
        assert_eq!(bus.frames_link().borrow().epoch, frames);
    }
}

#[derive(Default)]
struct Inbox {
    cuts: AtomicU32,
}

impl FrameSink<TextDelta> for Inbox {
    fn batch(&self, _: TextBatch) {}

    fn lost(&self, _: &InstanceId) {}

    fn was_cut_off(&self) {
        self.cuts.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn who_reads_frames_hears_of_each_cut_of_their_connection_and_of_no_other() {
    let nats = NatsServer::start();
    let proxy = Proxy::to(nats.address()).await.unwrap();
    let bus = Bus::connect(&options(format!("nats://{}", proxy.address()))).await.unwrap();
    let inbox = Arc::new(Inbox::default());
    let reader = frames::read_frames(&bus, &InstanceId::draw(Role::Ingress), inbox.clone()).await.unwrap();
    for (connection, frames, cuts) in [(0, 1, 0), (1, 2, 1), (3, 3, 2)] {
        proxy.breaks(connection);
        let what = format!("connection {connection} is back");
        let is_back = || bus.epochs().is_some_and(|now| now == Epochs { requests: 2, frames });
        eventually(&what, Duration::from_secs(5), async || is_back().then_some(())).await;
        let what = format!("{cuts} cuts are told of");
        let told = || inbox.cuts.load(Ordering::Relaxed) == cuts;
        eventually(&what, Duration::from_secs(5), async || told().then_some(())).await;
    }
    reader.abort();
}

#[tokio::test]
async fn what_is_wrong_with_the_bus_is_said_at_start() {
    let Err(nobody) = Bus::connect(&options(format!("nats://user:secret@127.0.0.1:{}", free_port()))).await
    else {
        panic!("connected to nobody");
    };
    assert!(matches!(nobody, BusError::Unreachable { .. }), "{nobody}");
    assert!(!nobody.to_string().contains("secret"));

    let small = NatsServer::start_with("max_payload: 64KB\njetstream {}\n");
    let error = Bus::connect(&options(small.url())).await.err().unwrap();
    assert!(error.to_string().contains("max_payload"), "{error}");

    let plain = NatsServer::start_with("max_payload: 8MB\n");
    let bus = Bus::connect(&options(plain.url())).await.unwrap();
    let error = lease::open(&bus, None).await.err().unwrap();
    assert!(matches!(&error, BusError::JetStream(_)), "{error}");
    assert!(error.to_string().contains("-js"), "{error}");
}

#[tokio::test]
async fn a_drain_that_went_lost_is_asked_for_again() {
    let nats = NatsServer::start();
    let bus = Bus::connect(&options(nats.url())).await.unwrap();
    let lease = a_lease();
    let (instance, name) = (lease.instance.clone(), lease.instance.to_string());
    let to = subject::instance_control(bus.namespace(), lease.role, &lease.pool, &instance);
    let mut lane = bus.listen(to).await.unwrap();
    let directory = Directory::watch(bus.clone(), None);
    let _holder = hold(&bus, lease);
    sees(&directory, &instance, Some(State::Ready), Duration::from_secs(2)).await;
    let answering = tokio::spawn(async move {
        let mut drains = 0;
        while drains < 2 {
            let message = lane.next().await.unwrap();
            let reply = message.reply.unwrap().to_string();
            match codec::decode(&message.payload).unwrap() {
                Control::Drain { .. } => {
                    drains += 1;
                    if drains == 2 {
                        bus.reply(reply, codec::encode(&Drained { safe_to_stop: true }));
                    }
                }
                Control::Ping { .. } => {
                    let (state, pulse) = (State::Ready, Pulse::default());
                    let pong = Pong { instance: instance.clone(), state, pulse, knows_run: false };
                    bus.reply(reply, codec::encode(&pong));
                }
                other => panic!("{other:?}"),
            }
        }
    });
    let mut draining = tokio::process::Command::new(stator_tests::cluster::stator());
    draining.args(["drain", "--namespace", "test", "--nats-url", &nats.url(), &name]);
    let said = tokio::time::timeout(Duration::from_secs(10), draining.output()).await.unwrap().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    answering.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_every_service_soon_though_nats_is_gone() {
    let mut cluster = Cluster::start(Plan::of(toy()).prefills(1)).await;
    cluster.nats[0].kill();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for service in Service::ALL {
            cluster.child(service, 0).signal(Signal::TERM);
        }
    }
    let told = Instant::now();
    for place in Service::ALL.map(|service| cluster.running(service)[0]) {
        let status = cluster.child_at(place).ended_within(Duration::from_secs(20)).await.unwrap();
        let (took, log) = (told.elapsed(), cluster.child_at(place).output());
        assert!(status.success() && took < Duration::from_secs(4), "{status} after {took:?}\n{log}");
    }
}
