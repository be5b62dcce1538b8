//! An engine that computes nothing: it holds a lease, takes requests, and says what it is told to say.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use actors::{bus::Bus, lease};
use futures_util::StreamExt;
use messages::{
    Fault, FaultCode, InstanceId, Pool, Role, codec,
    kv::{KvChange, KvEvents, KvSnapshot},
    lease::{Lease, State},
    load::Load,
    subject,
    submit::{Custody, Submit},
};
use tokio::sync::{Mutex as AsyncMutex, mpsc};

/// Tokens of a block.
const PAGE_SIZE: u32 = 16;

/// How an engine answers offers.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Takes,
    Mute,
    /// Refuses the first of them: it is full.
    FullFor(usize),
}

pub struct Engine {
    bus: Bus,
    pub lease: Lease,
    cache: Arc<Mutex<Cache>>,
    taken: AsyncMutex<mpsc::Receiver<Submit>>,
    reports: Mutex<u64>,
}

#[derive(Default)]
struct Cache {
    blocks: BTreeSet<u64>,
    next: u64,
}

impl Engine {
    /// Its lease holds for as long as the test runs.
    pub async fn start(bus: &Bus, pool: &Pool, blocks: impl IntoIterator<Item = u64>) -> Self {
        Self::begin(bus, pool, Role::Decode, blocks, Manner::Takes, PAGE_SIZE).await
    }

    /// One whose blocks hold so many tokens.
    pub async fn start_paged(bus: &Bus, pool: &Pool, page_size: u32) -> Self {
        Self::begin(bus, pool, Role::Decode, [], Manner::Takes, page_size).await
    }

    /// One that would compute prompts for others.
    pub async fn start_prefill(bus: &Bus, pool: &Pool) -> Self {
        Self::begin(bus, pool, Role::Prefill, [], Manner::Takes, PAGE_SIZE).await
    }

    /// One that takes requests without a word.
    pub async fn start_mute(bus: &Bus, pool: &Pool) -> Self {
        Self::begin(bus, pool, Role::Decode, [], Manner::Mute, PAGE_SIZE).await
    }

    /// One that says of the first so many requests that it is full.
    pub async fn start_full(bus: &Bus, pool: &Pool, refusals: usize) -> Self {
        Self::begin(bus, pool, Role::Decode, [], Manner::FullFor(refusals), PAGE_SIZE).await
    }

    async fn begin(
        bus: &Bus,
        pool: &Pool,
        role: Role,
        blocks: impl IntoIterator<Item = u64>,
        manner: Manner,
        page_size: u32,
    ) -> Self {
        let (ns, instance) = (bus.namespace(), InstanceId::draw(role));
        let cache = Arc::new(Mutex::new(Cache { blocks: blocks.into_iter().collect(), next: 0 }));
        let mut questions = bus.listen(subject::instance_control(ns, role, pool, &instance)).await.unwrap();
        let (answers, asked, me) = (bus.clone(), cache.clone(), instance.clone());
        tokio::spawn(async move {
            while let Some(question) = questions.next().await {
                let Some(reply) = question.reply else { continue };
                let body = {
                    let cache = asked.lock().unwrap();
                    let blocks = cache.blocks.iter().copied().collect();
                    codec::encode(&KvSnapshot { instance: me.clone(), epoch: 1, next: cache.next, blocks })
                };
                answers.reply(reply.to_string(), body);
            }
        });
        let mut requests = bus.listen(subject::instance_requests(ns, role, pool, &instance)).await.unwrap();
        let (taking, taken) = mpsc::channel(1024);
        let (answers, me) = (bus.clone(), instance.clone());
        tokio::spawn(async move {
            let mut left = if let Manner::FullFor(refusals) = manner { refusals } else { 0 };
            while let Some(request) = requests.next().await {
                if left > 0 {
                    left -= 1;
                    let refused = Custody::Refused(Fault::new(FaultCode::Overloaded, "full"));
                    let to = request.reply.into_iter();
                    to.for_each(|to| answers.reply(to.to_string(), codec::encode(&refused)));
                    continue;
                }
                let accepted = Custody::Accepted { instance: me.clone() };
                request
                    .reply
                    .filter(|_| manner != Manner::Mute)
                    .into_iter()
                    .for_each(|to| answers.reply(to.to_string(), codec::encode(&accepted)));
                let _ = taking.try_send(codec::decode(&request.payload).unwrap());
            }
        });
        let engine = Self {
            bus: bus.clone(),
            lease: lease_of(role, pool, instance, page_size),
            cache,
            taken: AsyncMutex::new(taken),
            reports: Mutex::new(0),
        };
        engine.renew().await;
        engine
    }

    async fn renew(&self) {
        let (store, lease) = (lease::open(&self.bus, None).await.unwrap(), self.lease.clone());
        let key = subject::lease_key(lease.role, &lease.pool, &lease.instance);
        let body = codec::encode(&lease);
        store.put(&key, body.clone()).await.unwrap();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(lease::RENEW_EVERY).await;
                let _ = store.put(&key, body.clone()).await;
            }
        });
    }

    pub fn instance(&self) -> &InstanceId {
        &self.lease.instance
    }

    /// Stores blocks and says so; `heard` is false for a message that the bus loses.
    pub fn store(&self, blocks: &[u64], heard: bool) {
        let mut cache = self.cache.lock().unwrap();
        cache.blocks.extend(blocks);
        let events = KvEvents {
            instance: self.instance().clone(),
            epoch: 1,
            number: cache.next,
            changes: vec![KvChange::Stored(blocks.iter().copied().collect())],
        };
        cache.next += 1;
        if heard {
            let subject = subject::kv_events(self.bus.namespace(), &self.lease.pool, self.instance());
            self.bus.tell(subject, None, &events).unwrap();
        }
    }

    /// Loses its whole cache and says nothing of it.
    pub fn forget(&self) {
        self.cache.lock().unwrap().blocks.clear();
    }

    /// Reports a load: eight places, nothing running, but for what `amend` says.
    pub fn report(&self, amend: impl FnOnce(&mut Load)) {
        let mut number = self.reports.lock().unwrap();
        *number += 1;
        let mut load = Load {
            number: *number,
            max_running: 8,
            max_queued: 8,
            blocks_total: 1000,
            ..Load::new(self.instance().clone())
        };
        amend(&mut load);
        let subject = subject::load(self.bus.namespace(), &self.lease.pool, self.instance());
        self.bus.tell(subject, None, &load).unwrap();
    }

    /// The next request that it took.
    pub async fn took(&self) -> Submit {
        self.taken.lock().await.recv().await.unwrap()
    }
}

fn lease_of(role: Role, pool: &Pool, instance: InstanceId, page_size: u32) -> Lease {
    let lease = Lease::new(role, pool.clone(), instance);
    Lease { state: State::Ready, page_size: Some(page_size), ..lease }
}
