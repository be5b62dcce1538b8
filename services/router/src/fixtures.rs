//! What tests of several modules need.

use std::sync::Arc;

use messages::{
    InstanceId, Pool, Role,
    lease::{Lease, State},
    load::Load,
};

pub fn id(name: &str) -> InstanceId {
    name.parse().unwrap()
}

/// A report of an engine that runs so many requests and has nothing else to do.
pub fn load(instance: &str, number: u64, running: u32) -> Load {
    Load {
        instance: id(instance),
        number,
        running,
        queued: 0,
        max_running: 8,
        max_queued: 8,
        blocks_used: 0,
        blocks_cached: 0,
        blocks_total: 1000,
        pending_prefill_tokens: 0,
        step_us: 0,
        prefill_token_ns: 0,
        seen: Vec::new(),
        kv: None,
        alone: false,
        started: Vec::new(),
    }
}

pub fn lease(role: Role, instance: &str) -> Arc<Lease> {
    Arc::new(Lease {
        role,
        pool: Pool::of_model("m", "00"),
        instance: id(instance),
        state: State::Ready,
        version: String::new(),
        host: String::new(),
        pid: 1,
        started_ms: 0,
        admin: None,
        card: None,
        numerics_class: None,
        kv_tokens: None,
        page_size: Some(16),
    })
}
