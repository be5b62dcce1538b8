//! What is done to the cluster: the rows of the table as data.

use std::time::Duration;

use stator_tests::{Network, Service};

/// How long a stopped process stays stopped.
pub const HANG: Duration = Duration::from_secs(10);
/// How long a single nats-server is away.
pub const OUTAGE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    Kill,
    /// SIGSTOP, and SIGCONT after [`HANG`].
    Hang,
    /// SIGTERM: the process must end by itself with success.
    Drain,
    /// SIGTERM, and again while it drains: it must end at once.
    DrainNow,
    /// As [`Self::Drain`], asked for on the admin listener, which must say when it is done.
    DrainByAdmin,
    /// The same by `stator drain`.
    DrainByCommand,
    /// Cut off from NATS and from prefill for that long, then healed.
    Off(Network, Duration),
    /// Killed, and started again after [`OUTAGE`] without its memory.
    Restart,
    /// Nothing.
    Calm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The second of two instances; for an ingress the one that holds no stream.
    Service(Service),
    /// The only instance; another is started once it has gone.
    Only(Service),
    /// The only nats-server.
    Nats,
    /// One of three, the one that brings the frames of the first ingress.
    NatsOfThree,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    pub blow: Blow,
    pub target: Target,
}

impl Scenario {
    pub const fn new(blow: Blow, target: Target) -> Self {
        Self { blow, target }
    }

    pub fn name(self) -> String {
        let blow = match self.blow {
            Blow::Kill => "kill -9".to_owned(),
            Blow::Hang => format!("stop {} s", HANG.as_secs()),
            Blow::Drain => "drain".to_owned(),
            Blow::DrainNow => "drain, then at once".to_owned(),
            Blow::DrainByAdmin => "drain by admin".to_owned(),
            Blow::DrainByCommand => "drain by command".to_owned(),
            Blow::Off(Network::Silent, time) => format!("unheard {} s", time.as_secs()),
            Blow::Off(_, time) => format!("cut off {} s", time.as_secs()),
            Blow::Restart => format!("restart after {} s", OUTAGE.as_secs()),
            Blow::Calm => "nothing".to_owned(),
        };
        let target = match self.target {
            Target::Service(service) => service.name().to_owned(),
            Target::Only(service) => format!("only {}", service.name()),
            Target::Nats => "nats-server".to_owned(),
            Target::NatsOfThree => "nats-server of three".to_owned(),
        };
        format!("{target}: {blow}")
    }

    /// How long a stream may pause beyond what prefill takes.
    pub fn bound(self) -> Option<Duration> {
        match (self.target, self.blow) {
            (_, Blow::Calm) | (Target::Only(_), _) => None,
            (Target::NatsOfThree, _) => Some(Duration::from_secs(2)),
            (Target::Nats, _) => Some(OUTAGE + Duration::from_secs(1)),
            (_, Blow::Hang | Blow::Off(..)) => Some(Duration::from_secs(3)),
            _ => Some(Duration::from_secs(1)),
        }
    }

    /// How long new requests go on coming after the blow.
    pub fn aftermath(self) -> Duration {
        match self.blow {
            // Nobody takes them.
            _ if self.target == Target::Only(Service::Ingress) => Duration::ZERO,
            Blow::Hang => HANG + Duration::from_secs(5),
            Blow::Off(_, time) => time + Duration::from_secs(5),
            Blow::Calm => Duration::ZERO,
            _ => Duration::from_secs(6),
        }
    }
}

/// All rows; those of services first.
pub fn all() -> Vec<Scenario> {
    let mut all = vec![Scenario::new(Blow::Calm, Target::Service(Service::Decode))];
    for service in Service::ALL {
        for blow in [Blow::Kill, Blow::Hang, Blow::Drain] {
            all.push(Scenario::new(blow, Target::Service(service)));
        }
    }
    for service in [Service::Tokenizer, Service::Router, Service::Prefill, Service::Decode] {
        all.push(Scenario::new(Blow::DrainNow, Target::Service(service)));
        all.push(Scenario::new(Blow::Drain, Target::Only(service)));
        all.push(Scenario::new(Blow::Kill, Target::Only(service)));
    }
    all.push(Scenario::new(Blow::Drain, Target::Only(Service::Ingress)));
    for service in Service::ALL {
        all.push(Scenario::new(Blow::DrainByAdmin, Target::Service(service)));
    }
    all.push(Scenario::new(Blow::DrainByCommand, Target::Service(Service::Decode)));
    for network in [Network::Cut, Network::Silent] {
        for seconds in [5, 15] {
            let blow = Blow::Off(network, Duration::from_secs(seconds));
            all.push(Scenario::new(blow, Target::Service(Service::Decode)));
        }
    }
    all.push(Scenario::new(Blow::Restart, Target::Nats));
    all.push(Scenario::new(Blow::Kill, Target::NatsOfThree));
    all.push(Scenario::new(Blow::Hang, Target::NatsOfThree));
    all
}
