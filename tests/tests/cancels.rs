//! Cancels that reach an engine together with what they are for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::time::Duration;

use actors::{
    bus::{Bus, BusOptions},
    directory::Directory,
};
use messages::{
    Attempt, Envelope, RequestId, Role, RunId, TokenIds,
    control::{Cancel, Control},
    subject,
    submit::{ChoiceStart, Submit},
};
use stator_tests::{Cluster, Service, cluster::Plan, eventually, model::toy};

const REQUESTS: usize = 2000;

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_comes_while_its_request_is_taken_in_is_not_missed() {
    // What was missed would run for half a minute.
    let slow = ["--device", "sim", "--sim-step-ms", "50", "--max-queued-requests", "2000"];
    let mut cluster = Cluster::start(Plan::of(toy()).with(Service::Decode, &slow)).await;
    let options = BusOptions {
        urls: vec![cluster.nats[0].url()],
        namespace: "stator".parse().unwrap(),
        credentials: None,
        name: "test".to_owned(),
    };
    let bus = Bus::connect(&options).await.unwrap();
    let directory = Directory::watch(bus.clone(), None);
    let engine = eventually("the engine is seen", Duration::from_secs(10), async || {
        directory.all().into_iter().find(|lease| lease.role == Role::Decode)
    })
    .await;
    let (ns, pool, instance) = (bus.namespace(), &engine.pool, &engine.instance);
    let requests = subject::instance_requests(ns, Role::Decode, pool, instance);
    let controls = subject::instance_control(ns, Role::Decode, pool, instance);
    let [tokenizer, ingress] = ["tokenizer-1", "ingress-1"].map(|name| name.parse().unwrap());
    // A long prompt takes a while to be taken in.
    let prompt = (0..3000).map(|at| at % 200).collect();
    let choices = vec![ChoiceStart { index: 0, output: TokenIds::default() }];
    let submit = Submit { choices, max_tokens: 600, ..Submit::new(pool.clone(), prompt, tokenizer, ingress) };
    for _ in 0..REQUESTS {
        let (request, run) = (RequestId::mint(), RunId::draw());
        let submit = Submit { run: Some(run), ..submit.clone() };
        let cancel = Cancel { request, attempt: Attempt::FIRST, run: None, choice: None };
        bus.tell(requests.clone(), Some(&Envelope::new(request)), &submit).unwrap();
        bus.tell(controls.clone(), None, &Control::Cancel(cancel)).unwrap();
        bus.flush(Duration::from_secs(10)).await;
    }
    cluster.settled(Duration::from_secs(10)).await;
}
