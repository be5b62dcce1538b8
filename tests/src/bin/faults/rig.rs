//! The cluster under test: two of every service, on the real model or on simulated engines.

use std::path::PathBuf;

use stator_tests::{Cluster, Service, cluster::Plan, model::smollm2};

use crate::{
    requests::Mix,
    scenario::{Blow, Scenario, Target},
};

const NAME: &str = "smollm2";
/// Whatever prefill engines can compute is sent there.
const ALWAYS_REMOTE: [&str; 4] = ["--remote-prefill-tokens", "1", "--remote-prefill-slack", "1000000"];

/// What computes, and under how much load.
#[derive(Debug, Clone)]
pub struct Rig {
    pub name: &'static str,
    pub clients: usize,
    pub mix: Mix,
    model: PathBuf,
    engine_flags: Vec<String>,
    /// Further flags of prefill and of decode engines.
    prefill_flags: Vec<String>,
    decode_flags: Vec<String>,
}

impl Rig {
    /// SmolLM2 on CPU engines of one thread each.
    pub fn real(clients: usize) -> Self {
        Self::new("real", clients, 64, "--device cpu --threads 1", ["", ""])
    }

    /// Engines that keep time instead of computing.
    pub fn sim(clients: usize) -> Self {
        let flags = "--device sim --sim-step-ms 60 --max-running-requests 1024 --max-queued-requests 2048";
        // Prompts take prefill engines long enough to be met there.
        let rates = ["--sim-prefill-rate 5000", "--sim-prefill-rate 50000"];
        Self::new("sim", clients, 128, flags, rates)
    }

    fn new(name: &'static str, clients: usize, max_tokens: u32, engine: &str, further: [&str; 2]) -> Self {
        let flags = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let [prefill_flags, decode_flags] = further.map(flags);
        Self {
            name,
            clients,
            mix: Mix { model: NAME.to_owned(), max_tokens },
            model: smollm2(),
            engine_flags: flags(engine),
            prefill_flags,
            decode_flags,
        }
    }

    /// Flags of an engine.
    fn engine<'a>(&'a self, further: &'a [String]) -> Vec<&'a str> {
        let flags = self.engine_flags.iter().chain(further).map(String::as_str);
        flags.chain(["--served-model-name", NAME]).collect()
    }

    fn plan(&self) -> Plan {
        Plan::of(&self.model)
            .ingresses(2)
            .replicas(2, 2, 2)
            .prefills(2)
            .with(Service::Tokenizer, &["--served-model-name", NAME])
            .with(Service::Router, &ALWAYS_REMOTE)
            .with(Service::Prefill, &self.engine(&self.prefill_flags))
            .with(Service::Decode, &self.engine(&self.decode_flags))
    }

    /// Starts a cluster of that many prefill and that many decode engines, which log what they accept.
    pub async fn start_with(&self, prefills: usize, decodes: usize) -> Cluster {
        let telling = ["--log-level", "info,engine=debug"];
        let plan = self.plan().prefills(prefills).replicas(2, 2, decodes);
        Cluster::start(plan.with(Service::Prefill, &telling).with(Service::Decode, &telling)).await
    }

    /// Starts a cluster that a scenario can be played on.
    pub async fn start(&self, scenario: Scenario) -> Cluster {
        let plan = match (scenario.target, scenario.blow) {
            (Target::NatsOfThree, _) => self.plan().over_three_nats_servers(),
            // The second comes later, by a road that can be cut.
            (Target::Service(Service::Decode), Blow::Off(..)) => self.plan().replicas(2, 2, 1),
            (Target::Only(service), _) => self.plan().only_one(service),
            _ => self.plan(),
        };
        Cluster::start(plan).await
    }
}
