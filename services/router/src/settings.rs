use std::str::FromStr;

/// How an engine is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    LeastLoaded,
    RoundRobin,
    Random,
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "least-loaded" => Ok(Self::LeastLoaded),
            "round-robin" => Ok(Self::RoundRobin),
            "random" => Ok(Self::Random),
            other => Err(format!("policy '{other}' is none of least-loaded, round-robin, random")),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Policy {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

actors::settings! {
    /// How the router chooses and holds.
    pub struct RouterSettings, RouterFlags in "router" {
        /// How an engine is chosen: least-loaded, round-robin or random.
        value policy: Policy = Policy::LeastLoaded;
        /// Seconds that a request waits for a first live engine of its model.
        value hold_when_empty: u64 = 30;
        /// Requests held at once.
        value max_held_requests: usize = 4096;
    }
}
