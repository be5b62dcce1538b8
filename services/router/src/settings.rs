use std::path::PathBuf;

use crate::policy::{Policy, Weights};

actors::choices! {
    /// Where knowledge of prefix caches comes from.
    pub enum KvEventsMode {
        /// From the engines.
        On = "on",
        /// From this router's own dispatches: what was sent somewhere is taken to be there for a while.
        Off = "off",
    }
}

actors::settings! {
    /// How the router chooses and holds.
    pub struct RouterSettings, RouterFlags in "router" {
        /// How an engine is chosen: kv, least-loaded, power-of-two, round-robin or random.
        value policy: Policy = Policy::Kv;
        /// Follow the engines' prefix caches (on), or guess them from own dispatches (off).
        value kv_events: KvEventsMode = KvEventsMode::On;
        /// Without events: seconds for which a dispatched prompt is taken to be cached.
        value guess_ttl: u64 = 120;
        /// kv: worth of a cached block, in blocks to compute.
        value overlap_weight: f64 = 1.0;
        /// kv: how fast that worth fades on engines whose prefill queue is longer than others'.
        value overlap_decay: f64 = 1.0;
        /// kv: cost of a block to compute.
        value prefill_weight: f64 = 1.0;
        /// kv: cost of a block that running requests hold, in blocks to compute.
        value decode_weight: f64 = 0.5;
        /// kv: cost of a request aboard, in blocks to compute.
        value request_weight: f64 = 2.0;
        /// kv: 0 takes the lowest cost, more spreads over low costs.
        value temperature: f64 = 0.0;
        /// Prompt tokens not cached at the engine from which on a prefill instance may compute them; 0: never.
        value remote_prefill_tokens: u32 = 256;
        /// How many times as long as at the engine itself a remote prefill may take.
        value remote_prefill_slack: f64 = 1.2;
        /// Milliseconds that it may take beyond that while the engine has other requests, whose tokens a prompt would hold up.
        value remote_prefill_patience_ms: u32 = 500;
        /// Milliseconds that handing over a remote prefill takes beside computing and sending.
        value remote_prefill_overhead_ms: f64 = 5.0;
        /// Nanoseconds that sending the KV of one token takes.
        value remote_prefill_token_ns: f64 = 5000.0;
        /// Requests that an engine may have, in times of those it runs at once, before the router holds more; 0: any.
        value queue_above: f64 = 1.25;
        /// Requests of one model that the router holds because engines are full or none lives; more are refused.
        value max_queued_requests: usize = 1024;
        /// Seconds that requests of a model wait while no engine of it lives.
        value hold_when_empty: u64 = 30;
        /// Requests held at once, for any reason.
        value max_held_requests: usize = 4096;
        /// File to which every decision is written, one JSON object a line, for `stator replay-decisions`.
        optional record_decisions: PathBuf;
    }
}

impl RouterSettings {
    pub fn weights(&self) -> Weights {
        Weights {
            overlap: self.overlap_weight,
            overlap_decay: self.overlap_decay,
            prefill: self.prefill_weight,
            decode: self.decode_weight,
            request: self.request_weight,
            temperature: self.temperature,
        }
    }
}
