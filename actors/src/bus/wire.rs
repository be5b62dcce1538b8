//! One connection to NATS: how it is made, made anew, and known to be gone.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions, Event, ReconnectToServer, Server, ServerAddr, connection::State};
use parking_lot::Mutex;
use rand::seq::SliceRandom;
use tokio::sync::watch;

use super::{BusError, BusOptions};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// The same where another server can be tried: one that hangs takes connections and says nothing.
const CONNECT_TO_ONE_OF_MANY_WITHIN: Duration = Duration::from_millis(400);
/// A broker that is silent for three of these is taken for gone.
const PING_EVERY: Duration = Duration::from_millis(300);
/// An event of a connection that has not come by then never will.
const TOLD_WITHIN: Duration = Duration::from_secs(1);
const RECONNECT_AT_MOST_EVERY: Duration = Duration::from_millis(250);

/// A connection and what became of it.
pub(super) struct Wire {
    pub client: Client,
    pub link: watch::Receiver<Link>,
}

/// State of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Counts the connections made; the first is 1.
    pub epoch: u64,
    /// Since when there is none.
    pub cut_off: Option<Instant>,
}

impl Link {
    /// There is a connection; true if there was none.
    fn connected(&mut self) -> bool {
        let again = self.cut_off.take().is_some();
        self.epoch += u64::from(again);
        again
    }

    /// There are so many connections by the client's own count, and events should have told of them long ago; true if they
    /// have not.
    fn overlooked(&mut self, connects: u64, state: &State) -> bool {
        let overlooked = connects > self.epoch && *state == State::Connected;
        if overlooked {
            *self = Self { epoch: connects, cut_off: None };
        }
        overlooked
    }
}

impl Wire {
    /// # Errors
    /// If no server answers, or a url or the credentials cannot be understood.
    pub async fn dial(options: &BusOptions, what: &'static str) -> Result<Self, BusError> {
        let (mark, link) = watch::channel(Link { epoch: 1, cut_off: None });
        let mark = Arc::new(mark);
        let events_mark = mark.clone();
        let several = options.urls.len() > 1;
        let mut connect = ConnectOptions::new()
            .name(format!("{} {what}", options.name))
            .connection_timeout(if several { CONNECT_TO_ONE_OF_MANY_WITHIN } else { CONNECT_WITHIN })
            .ping_interval(PING_EVERY)
            .reconnect_delay_callback(|tries| {
                RECONNECT_AT_MOST_EVERY.min(Duration::from_millis(25) * 2u32.pow(tries.min(8) as u32))
            });
        if several {
            // Servers tell of each other by addresses of their own: a hung one would be tried once under each.
            connect = connect.ignore_discovered_servers();
            let turns = Mutex::new(Turns::default());
            connect = connect.reconnect_to_server_callback(move |servers, _| {
                let addr = turns.lock().next(&servers);
                std::future::ready(addr.map(|addr| ReconnectToServer { addr, delay: None }))
            });
        }
        connect = connect.event_callback(move |event| {
            note_event(&events_mark, what, &event);
            std::future::ready(())
        });
        if let Some(path) = &options.credentials {
            connect = with_credentials(connect, path)?;
        }
        let mut servers = Vec::new();
        for url in &options.urls {
            let server: ServerAddr = url.parse().map_err(|error: std::io::Error| BusError::BadUrl {
                url: url.clone(),
                reason: error.to_string(),
            })?;
            servers.push(server);
        }
        // Else all connections of a server that is gone would go to the same other one.
        servers.shuffle(&mut rand::rng());
        connect = log_in(connect, &servers);
        let unreachable = |reason: String| BusError::Unreachable { urls: redact(&options.urls), reason };
        match tokio::time::timeout(CONNECT_WITHIN * 2, connect.connect(servers)).await {
            Ok(Ok(client)) => {
                tokio::spawn(watch_over(client.clone(), mark));
                Ok(Self { client, link })
            }
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable("timed out".to_owned())),
        }
    }
}

/// Whose turn it is to be connected to: the server that was lost comes last, for one that hangs still takes connections.
#[derive(Default)]
struct Turns {
    last: Option<ServerAddr>,
}

impl Turns {
    /// `None` for the first connection of all, which may go anywhere.
    fn next(&mut self, servers: &[Server]) -> Option<ServerAddr> {
        let last = servers.iter().position(|server| match &self.last {
            Some(last) => server.addr == *last,
            None => server.did_connect,
        })?;
        let next = servers[(last + 1) % servers.len()].addr.clone();
        self.last = Some(next.clone());
        Some(next)
    }
}

fn with_credentials(connect: ConnectOptions, path: &std::path::Path) -> Result<ConnectOptions, BusError> {
    let unusable = |reason: std::io::Error| BusError::Credentials {
        path: path.display().to_string(),
        reason: reason.to_string(),
    };
    let credentials = std::fs::read_to_string(path).map_err(unusable)?;
    connect.credentials(&credentials).map_err(unusable)
}

/// Uses the user and password that a url holds; the client library itself passes them over.
pub fn log_in(options: ConnectOptions, servers: &[ServerAddr]) -> ConnectOptions {
    match servers.iter().find_map(|server| Some((server.username()?, server.password()?))) {
        Some((user, password)) => options.user_and_password(user.to_owned(), password.to_owned()),
        None => options,
    }
}

/// Urls without the user and password they may carry.
fn redact(urls: &[String]) -> String {
    let shown: Vec<String> = urls
        .iter()
        .map(|url| match (url.find("://"), url.rfind('@')) {
            (Some(scheme), Some(at)) => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
            _ => url.clone(),
        })
        .collect();
    shown.join(", ")
}

/// The client drops events that it has no room for. Were that of a reconnect among them, the process would take itself for
/// cut off from then on, or for one that has heard all.
async fn watch_over(client: Client, mark: Arc<watch::Sender<Link>>) {
    let statistics = client.statistics();
    let mut connects = 1;
    while !mark.is_closed() {
        tokio::time::sleep(TOLD_WITHIN).await;
        let state = client.connection_state();
        if mark.send_if_modified(|link| link.overlooked(connects, &state)) {
            tracing::warn!("bus connected, and nobody said so");
        }
        connects = statistics.connects.load(Ordering::Relaxed);
    }
}

fn note_event(mark: &watch::Sender<Link>, what: &str, event: &Event) {
    match event {
        Event::Connected => mark.send_if_modified(Link::connected),
        Event::Disconnected | Event::Closed => mark.send_if_modified(|link| {
            let fresh = link.cut_off.is_none();
            link.cut_off.get_or_insert_with(Instant::now);
            fresh
        }),
        _ => false,
    };
    match event {
        Event::Connected => tracing::info!(what, "bus connected"),
        Event::SlowConsumer(subscription) => {
            metrics::counter!("stator_bus_slow_consumer_total").increment(1);
            tracing::warn!(what, subscription, "messages dropped: a reader is too slow");
        }
        other => tracing::warn!(what, event = %other, "bus"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reconnect_that_nobody_told_of_is_seen() {
        let gone = Link { epoch: 1, cut_off: Some(Instant::now()) };
        let mut link = gone;
        assert!(!link.overlooked(1, &State::Connected), "its event may be on its way");
        assert!(!link.overlooked(2, &State::Disconnected));
        assert!(link.overlooked(2, &State::Connected));
        assert_eq!(link, Link { epoch: 2, cut_off: None });
        assert!(!link.overlooked(2, &State::Connected));
    }

    #[test]
    fn a_loss_that_nobody_told_of_is_seen() {
        let mut link = Link { epoch: 1, cut_off: None };
        assert!(!link.connected(), "the loss before it was not told of");
        assert!(link.overlooked(2, &State::Connected));
        assert_eq!(link.epoch, 2);
    }

    fn servers(connected: Option<usize>) -> Vec<Server> {
        let server = |n| Server {
            addr: format!("nats://10.0.0.{n}:4222").parse().expect("a url"),
            failed_attempts: 0,
            did_connect: connected == Some(n),
            is_discovered: false,
            last_error: None,
        };
        (0..3).map(server).collect()
    }

    #[test]
    fn a_server_that_was_lost_is_tried_after_all_others() {
        let servers = servers(Some(1));
        let mut turns = Turns::default();
        let tried: Vec<_> = (0..4).map(|_| turns.next(&servers).expect("a server")).collect();
        let expected = [2, 0, 1, 2].map(|n: usize| servers[n].addr.clone());
        assert_eq!(tried, expected);
    }

    #[test]
    fn the_first_connection_goes_anywhere() {
        assert!(Turns::default().next(&servers(None)).is_none());
    }
}
