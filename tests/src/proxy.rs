use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// What a network does to those who use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Up,
    /// Every connection breaks, and none can be made.
    Cut,
    /// Nothing breaks, and nothing arrives before it is up again.
    Silent,
}

/// A TCP proxy on loopback that can fail as a network can.
pub struct Proxy {
    address: SocketAddr,
    network: watch::Sender<Network>,
    /// The connection to break.
    broken: watch::Sender<Option<usize>>,
}

impl Proxy {
    /// Forwards connections to `target`.
    ///
    /// # Errors
    /// If no port can be bound.
    pub async fn to(target: String) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (network, view) = watch::channel(Network::Up);
        let (broken, breaks) = watch::channel(None);
        tokio::spawn(async move {
            let mut number = 0;
            while let Ok((client, _)) = listener.accept().await {
                let (forwarded, mut breaks) = (forward(client, target.clone(), view.clone()), breaks.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = forwarded => {}
                        _ = breaks.wait_for(|broken| *broken == Some(number)) => {}
                    }
                });
                number += 1;
            }
        });
        Ok(Self { address, network, broken })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn becomes(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// Breaks one connection; they are counted from 0, as they are made.
    pub fn breaks(&self, connection: usize) {
        self.broken.send_replace(Some(connection));
    }
}

async fn forward(client: TcpStream, target: String, mut network: watch::Receiver<Network>) {
    let view = network.clone();
    let both = async {
        arrives(view.clone()).await;
        let Ok(server) = TcpStream::connect(target).await else { return };
        for end in [&client, &server] {
            let _ = end.set_nodelay(true);
        }
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        tokio::join!(pump(from_client, to_server, view.clone()), pump(from_server, to_client, view));
    };
    tokio::select! {
        () = both => {}
        _ = network.wait_for(|network| *network == Network::Cut) => {}
    }
}

/// Waits until what is sent arrives.
async fn arrives(mut network: watch::Receiver<Network>) {
    let _ = network.wait_for(|network| *network != Network::Silent).await;
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, network: watch::Receiver<Network>) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        arrives(network.clone()).await;
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}
