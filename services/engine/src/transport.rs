//! Which ways pages travel, by the settings.

use std::{
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context as _;
use kv::{
    PageLayout,
    transfer::{
        DeviceMemory, IpcTransport, KvTransport, LinkConfig, ShmTransport, TcpTransport, TransferKey,
        Transports,
    },
};
use models::ExecutorSpec;

use crate::settings::{EngineSettings, Transport};

/// What the bytes of this engine's pages mean.
pub fn layout(spec: &ExecutorSpec, revision: &str) -> PageLayout {
    PageLayout {
        revision: revision.to_owned(),
        name: spec.kv.name.clone(),
        page_size: spec.page_size,
        layers: spec.kv.layers,
        layer_bytes: spec.kv.layer_bytes,
    }
}

/// The transports of `--kv-transport`, best first.
///
/// # Errors
/// If a setting makes no sense.
pub fn transports(
    settings: &EngineSettings,
    cluster_key: &str,
    memory: Option<Arc<dyn DeviceMemory>>,
) -> anyhow::Result<Transports> {
    let link = LinkConfig::new(TransferKey::derive(cluster_key.as_bytes()));
    let (ipc, shm, tcp) = match settings.kv_transport {
        Transport::Auto => (memory.is_some(), true, true),
        Transport::CudaIpc => (true, false, false),
        Transport::Shm => (false, true, false),
        Transport::Tcp => (false, false, true),
    };
    let folder = settings.kv_socket_folder.clone().unwrap_or_else(default_folder);
    let mut transports: Vec<Box<dyn KvTransport>> = Vec::new();
    if ipc {
        let memory = memory.context("--kv-transport cuda-ipc needs an engine on a GPU")?;
        transports.push(Box::new(IpcTransport::new(link.clone(), folder.clone(), memory)));
    }
    if shm {
        transports.push(Box::new(ShmTransport::new(link.clone(), folder)));
    }
    if tcp {
        let address = |name: &str, text: &str| {
            text.parse::<SocketAddr>().with_context(|| format!("--{name} '{text}' is no ip:port"))
        };
        let listen = address("kv-listen", &settings.kv_listen)?;
        let tcp = TcpTransport::new(link, listen, settings.kv_tcp_streams);
        transports.push(Box::new(match &settings.kv_advertise {
            Some(text) => tcp.advertise(address("kv-advertise", text)?),
            None if listen.ip().is_unspecified() && listen.port() != 0 => tcp.advertise(reachable(listen)?),
            None => tcp,
        }));
    }
    Ok(Transports(transports))
}

/// Short, since the path of a socket has 107 bytes at most.
fn default_folder() -> PathBuf {
    let user = rustix::process::geteuid().as_raw();
    std::env::temp_dir().join(format!("stator-kv-{user}"))
}

/// The address of the default route with the port of `listen`.
fn reachable(listen: SocketAddr) -> anyhow::Result<SocketAddr> {
    /// Kept free for documentation: connecting a datagram socket sends nothing.
    const ELSEWHERE: &str = "192.0.2.1:9";
    let probe = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(ELSEWHERE)?;
        socket.local_addr()
    };
    let own =
        probe().with_context(|| format!("--kv-listen {listen} names no address: set --kv-advertise"))?;
    Ok(SocketAddr::new(own.ip(), listen.port()))
}
