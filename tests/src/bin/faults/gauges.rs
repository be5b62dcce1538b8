//! What the processes say of themselves on their admin listeners.

use std::time::{Duration, Instant};

use stator_tests::{Cluster, Service, cluster::figure, http::Http};

/// How long an idle cluster may take to free what it held.
const IDLE_WITHIN: Duration = Duration::from_secs(15);
/// How long requests may take to reach both engines.
const BUSY_WITHIN: Duration = Duration::from_secs(20);
/// Everything that must be zero in an idle cluster, by the service that tells it.
const HELD: [(Service, &str); 8] = [
    (Service::Ingress, "stator_ingress_in_flight"),
    (Service::Ingress, "stator_ingress_backlog_bytes"),
    (Service::Tokenizer, "stator_tokenizer_requests_live"),
    (Service::Router, "stator_router_held"),
    (Service::Decode, "stator_engine_runs_live"),
    (Service::Decode, "stator_engine_kv_blocks_used"),
    (Service::Prefill, "stator_engine_runs_live"),
    (Service::Prefill, "stator_engine_kv_blocks_used"),
];

/// Slots for pages on their way, by state.
const SLOTS: &str = "stator_kv_slots";

/// What is still held once nothing is asked any more.
pub async fn leaks(cluster: &mut Cluster) -> Vec<String> {
    let give_up = Instant::now() + IDLE_WITHIN;
    loop {
        let held = held(cluster).await;
        if held.is_empty() || Instant::now() >= give_up {
            return held;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn held(cluster: &mut Cluster) -> Vec<String> {
    let mut found = Vec::new();
    for service in Service::ALL {
        for address in cluster.admin_addresses(service.name()) {
            let Ok(page) = Http::at(&address).get("/metrics").await else {
                found.push(format!("{} at {address} tells nothing", service.name()));
                continue;
            };
            let mut note = |name: &str, page: &str| {
                if let Some(value) = figure(page, name).filter(|value| *value != 0.0) {
                    found.push(format!("{} at {address}: {name} {value}", service.name()));
                }
            };
            HELD.iter().filter(|(of, _)| *of == service).for_each(|(_, name)| note(name, &page.body));
            note(SLOTS, &without(&page.body, "state=\"free\""));
        }
    }
    found
}

/// The lines of a page that do not contain `label`.
fn without(page: &str, label: &str) -> String {
    page.lines().filter(|line| !line.contains(label)).collect::<Vec<_>>().join("\n")
}

/// Waits until the second instance of a role has something to lose; false if it gets nothing to do.
pub async fn second_is_busy(cluster: &mut Cluster, role: Service) -> bool {
    let give_up = Instant::now() + BUSY_WITHIN;
    while Instant::now() < give_up {
        let address = cluster.admin_addresses(role.name()).get(1).cloned().unwrap_or_default();
        let page = Http::at(&address).get("/metrics").await.map(|page| page.body).unwrap_or_default();
        if figure(&page, "stator_engine_runs_live").is_some_and(|runs| runs > 0.0) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}

/// Journals that the first ingress sent as new attempts.
pub async fn sent_again(cluster: &mut Cluster) -> usize {
    let Some(address) = cluster.admin_addresses("ingress").first().cloned() else { return 0 };
    let Ok(page) = Http::at(&address).get("/metrics").await else { return 0 };
    let again: Vec<&str> = page.body.lines().filter(|line| line.contains("way=\"again\"")).collect();
    figure(&again.join("\n"), "stator_ingress_repairs_total").map_or(0, |count| count as usize)
}
