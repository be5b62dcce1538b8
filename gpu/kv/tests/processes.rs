//! Writers that are processes: killed, or stopped while they push.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use kv::{
    PageLayout,
    transfer::{
        Event, Grant, GrantEnd, GrantError, KvTransport, LandedPage, LinkConfig, PageIndex, Receiver,
        ReceiverConfig, ShmTransport, SlotCounts, TcpTransport, TransferKey, Transports,
    },
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const SLOTS: u32 = 2;
/// Names the folder of the receiver's socket to a process that is to push.
const FOLDER: &str = "KV_TEST_FOLDER";

fn layout() -> PageLayout {
    let (revision, name) = ("r1".to_owned(), "bytes".to_owned());
    PageLayout { revision, name, page_size: 16, layers: 4, layer_bytes: 64 << 10 }
}

fn page(of: u8) -> Vec<u8> {
    vec![of; layout().page_bytes() as usize]
}

fn transports(scheme: &str, folder: &Path) -> Transports {
    let link = LinkConfig::new(TransferKey::derive(b"secret"));
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let transport: Box<dyn KvTransport> = match scheme {
        "shm" => Box::new(ShmTransport::new(link, folder.join("kv"))),
        _ => Box::new(TcpTransport::new(link, any_port, 2)),
    };
    Transports(vec![transport])
}

/// The writer's process: pushes the grant on its standard input, and says so after each page.
#[test]
#[ignore = "run by the other tests, as a process of its own"]
fn push_what_standard_input_grants() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    let grant: Grant = serde_json::from_str(&line).unwrap();
    let scheme = grant.addresses[0].split().0.to_owned();
    let mut writer = transports(&scheme, &PathBuf::from(folder)).open(&grant, &layout()).unwrap();
    for index in 0..grant.pages {
        writer.write(PageIndex(index), 0, &page(1)).unwrap();
        println!("pushed");
    }
}

struct Writer {
    child: Child,
}

impl Writer {
    fn start(grant: &Grant, folder: &Path) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "push_what_standard_input_grants", "--ignored", "--nocapture"])
            .env(FOLDER, folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{}", serde_json::to_string(grant).unwrap()).unwrap();
        Self { child }
    }

    fn wait_for_pages(&mut self, pages: usize) {
        let said = BufReader::new(self.child.stdout.as_mut().unwrap()).lines();
        let pushed = said.filter(|line| line.as_ref().is_ok_and(|line| line.contains("pushed")));
        assert_eq!(pushed.take(pages).count(), pages, "the writer ended early");
    }

    fn stop(&self) {
        self.signal(Signal::STOP);
        waitpid(Some(Pid::from_child(&self.child)), WaitOptions::UNTRACED).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Decode {
    receiver: Receiver,
    events: mpsc::Receiver<Event>,
    folder: tempfile::TempDir,
    scheme: &'static str,
}

impl Decode {
    fn new(scheme: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (sender, events) = mpsc::channel();
        let config =
            ReceiverConfig { layout: layout(), others: Vec::new(), slots: SLOTS, slots_per_grant: SLOTS };
        let on_event = move |event| drop(sender.send(event));
        let receiver = Receiver::start(config, &transports(scheme, folder.path()).0, on_event).unwrap();
        Self { receiver, events, folder, scheme }
    }

    fn settles_at(&self, wanted: SlotCounts) {
        let end = Instant::now() + PATIENCE;
        while self.receiver.counts() != wanted {
            assert!(Instant::now() < end, "{:?} instead of {wanted:?}", self.receiver.counts());
            // Pages that landed before free their slots only when they are taken.
            while self.events.try_recv().is_ok() {}
            std::thread::yield_now();
        }
    }

    /// Lets so many pages go, in their order: one that came on another connection may have landed before those that
    /// precede it. Then waits until the pages of a whole window are held.
    fn holds_a_window_after(&self, pages: u32) -> Vec<LandedPage> {
        let (mut held, mut gone) = (BTreeMap::new(), 0);
        while gone < pages || held.len() < SLOTS as usize {
            match self.events.recv_timeout(PATIENCE).unwrap() {
                Event::Landed(page) => held.insert(page.index().0, page),
                Event::Ended { end, .. } => panic!("the grant ended: {end:?}"),
            };
            while gone < pages && held.remove(&gone).is_some() {
                gone += 1;
            }
        }
        held.into_values().collect()
    }

    fn all_free(&self) {
        self.settles_at(SlotCounts { free: SLOTS, ..SlotCounts::default() });
    }

    /// A writer of this process gets the slots and every page arrives as it was sent.
    fn serves_the_next_grant(&self) {
        let grant = self.receiver.grant(8, "prefill-2").unwrap();
        let mut writer = transports(self.scheme, self.folder.path()).open(&grant, &layout()).unwrap();
        std::thread::scope(|scope| {
            let pusher = scope.spawn(move || {
                (0..8).for_each(|index| writer.write(PageIndex(index), 0, &page(2)).unwrap());
                writer.finish().unwrap();
            });
            let mut landed = 0;
            loop {
                match self.events.recv_timeout(PATIENCE).unwrap() {
                    Event::Landed(got) if got.epoch() == grant.epoch => {
                        assert!(got.bytes() == page(2), "a page of the next grant was spoiled");
                        landed += 1;
                    }
                    Event::Ended { epoch, end } if epoch == grant.epoch => {
                        assert_eq!((end, landed), (GrantEnd::Finished, 8));
                        break;
                    }
                    _ => {}
                }
            }
            pusher.join().unwrap();
        });
        self.all_free();
    }
}

#[test]
fn a_writer_that_is_killed_gives_its_slots_back() {
    for scheme in ["shm", "tcp"] {
        let decode = Decode::new(scheme);
        let grant = decode.receiver.grant(9, "prefill-1").unwrap();
        let mut writer = Writer::start(&grant, decode.folder.path());
        writer.wait_for_pages(SLOTS as usize);
        writer.signal(Signal::KILL);
        let mut held = Vec::new();
        loop {
            match decode.events.recv_timeout(PATIENCE).unwrap() {
                // Held, so that the writer gets no further before it dies.
                Event::Landed(got) => held.push(got),
                Event::Ended { end, .. } => {
                    assert_eq!(end, GrantEnd::Gone);
                    break;
                }
            }
        }
        assert!(held.iter().all(|got| got.bytes() == page(1)));
        drop(held);
        decode.all_free();
        decode.serves_the_next_grant();
    }
}

#[test]
fn a_writer_stopped_while_it_is_revoked_spoils_nothing_when_it_wakes() {
    for scheme in ["shm", "tcp"] {
        let decode = Decode::new(scheme);
        let grant = decode.receiver.grant(1_000, "prefill-1").unwrap();
        let mut writer = Writer::start(&grant, decode.folder.path());
        // With a whole window held the writer waits; it stops with leave to store to every slot.
        let held = decode.holds_a_window_after(20);
        writer.stop();
        drop(held);
        decode.receiver.revoke(grant.epoch);
        if scheme == "shm" {
            assert_eq!(decode.receiver.counts(), SlotCounts { quarantined: SLOTS, ..SlotCounts::default() });
            assert_eq!(decode.receiver.grant(1, "prefill-2"), Err(GrantError::NoSlots));
        } else {
            decode.all_free();
            decode.serves_the_next_grant();
        }
        writer.signal(Signal::CONT);
        writer.child.wait().unwrap();
        decode.all_free();
        decode.serves_the_next_grant();
    }
}
