//! Harness of the end-to-end tests: a real nats-server, real service processes, real sockets.

mod child;
pub mod cluster;
pub mod http;
pub mod model;
pub mod nats;
mod proxy;

pub use child::Child;
pub use cluster::{Cluster, Service};
pub use nats::NatsServer;
pub use proxy::{Network, Proxy};
pub use rustix::process::Signal;

use std::time::{Duration, Instant};

/// Waits until `probe` returns something.
///
/// # Panics
/// If it has not by then.
pub async fn eventually<T>(what: &str, within: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + within;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < give_up, "not within {within:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("a bound listener has an address").port()
}
