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
    Load { number, running, max_running: 8, max_queued: 8, blocks_total: 1000, ..Load::new(id(instance)) }
}

pub fn lease(role: Role, instance: &str) -> Arc<Lease> {
    let pool = Pool::of_model("m", "00");
    Arc::new(Lease { state: State::Ready, page_size: Some(16), ..Lease::new(role, pool, id(instance)) })
}
