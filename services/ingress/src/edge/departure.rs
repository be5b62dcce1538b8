//! Noticing that a client has gone, before and while anything is written to it.
//!
//! A server that waits for tokens neither reads nor writes, so nothing tells it that its peer is gone. Each
//! connection keeps a duplicate of its socket; one task peeks at those with a request in progress.

use std::{
    any::Any,
    collections::HashMap,
    io::ErrorKind,
    net::TcpStream,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::{dev::Extensions, rt::net::TcpStream as ServerStream};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// How often sockets are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A duplicate of a connection's socket.
#[derive(Debug, Clone)]
pub struct ClientSocket(Arc<TcpStream>);

impl ClientSocket {
    /// Keeps a duplicate with the connection's data; for `HttpServer::on_connect`.
    pub fn keep(connection: &dyn Any, data: &mut Extensions) {
        let plain = connection.downcast_ref::<ServerStream>();
        let stream =
            plain.or_else(|| connection.downcast_ref::<TlsStream<ServerStream>>().map(|tls| tls.get_ref().0));
        match stream.map(|stream| stream.as_fd().try_clone_to_owned()) {
            Some(Ok(socket)) => {
                data.insert(Self(Arc::new(TcpStream::from(socket))));
            }
            Some(Err(error)) => tracing::warn!(%error, "socket not duplicated, departures go unnoticed"),
            None => tracing::warn!("unknown kind of connection, departures go unnoticed"),
        }
    }

    /// The peer has closed its side or the connection is broken.
    fn is_gone(&self) -> bool {
        match self.0.peek(&mut [0]) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }
}

/// Looks after the sockets of all requests in progress.
#[derive(Debug, Default)]
pub struct Sentry {
    watched: Mutex<HashMap<u64, (ClientSocket, CancellationToken)>>,
    next: AtomicU64,
}

/// Watches until dropped.
#[derive(Debug)]
pub struct Watch {
    sentry: Arc<Sentry>,
    place: u64,
}

impl Sentry {
    /// Cancels `gone` when the client behind `socket` has left.
    pub fn watch(self: &Arc<Self>, socket: &ClientSocket, gone: CancellationToken) -> Watch {
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        self.watched.lock().insert(place, (socket.clone(), gone));
        Watch { sentry: self.clone(), place }
    }

    /// Looks at every socket, again and again.
    pub async fn patrol(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look();
        }
    }

    fn look(&self) {
        self.watched.lock().retain(|_, (socket, gone)| {
            let left = socket.is_gone();
            if left {
                metrics::counter!("stator_ingress_departures_total").increment(1);
                gone.cancel();
            }
            !left
        });
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.sentry.watched.lock().remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, net::TcpListener};

    use super::*;

    fn pair() -> (TcpStream, ClientSocket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        (client, ClientSocket(Arc::new(server)))
    }

    /// Until the kernel has passed the news on.
    fn eventually(condition: impl Fn() -> bool) {
        while !condition() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_client_that_closes_is_seen_and_one_that_waits_is_not() {
        let sentry = Arc::new(Sentry::default());
        let ((leaver, socket), (waiter, other)) = (pair(), pair());
        let (gone, still) = (CancellationToken::new(), CancellationToken::new());
        let _leaving = sentry.watch(&socket, gone.clone());
        let _waiting = sentry.watch(&other, still.clone());
        sentry.look();
        assert!(!gone.is_cancelled());
        drop(leaver);
        eventually(|| {
            sentry.look();
            gone.is_cancelled()
        });
        assert!(!still.is_cancelled());
        drop(waiter);
    }

    #[test]
    fn what_a_client_sends_early_does_not_hide_it() {
        let (mut client, socket) = pair();
        client.write_all(b"GET ").unwrap();
        eventually(|| socket.0.peek(&mut [0]).is_ok_and(|count| count == 1));
        assert!(!socket.is_gone());
    }

    #[test]
    fn a_watch_that_is_dropped_watches_no_more() {
        let sentry = Arc::new(Sentry::default());
        let (_client, socket) = pair();
        drop(sentry.watch(&socket, CancellationToken::new()));
        assert!(sentry.watched.lock().is_empty());
    }
}
