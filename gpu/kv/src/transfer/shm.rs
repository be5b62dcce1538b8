use std::{
    fs::{self, DirBuilder},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, MetadataExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    Address, Grant, KvTransport, LinkConfig, Listening, OpenError, PageWriter, SlotArena, connection::Bodies,
    handshake, listener::Listener, pusher::Pusher, region::Region, socket::Socket,
};

/// Receivers whose slots a writer keeps mapped from one grant to the next: mapping anew costs a page fault for each
/// 4 KiB.
const MAPPED: usize = 16;
/// A socket that refuses is swept away when it is older: a younger one may be about to listen.
const STALE: Duration = Duration::from_secs(10);

/// Pages through memory that both processes map. Addresses are `shm:` and the path of a unix socket: who can connect
/// to it is on the same host. The memory has no name; a writer that proved itself gets its descriptor over the socket.
///
/// The socket also tells when a writer's process ends: the kernel closes it after the last thread is gone.
pub struct ShmTransport {
    link: LinkConfig,
    folder: PathBuf,
    /// Oldest first.
    mapped: Mutex<Vec<Mapped>>,
}

/// A receiver's memory. Device and inode name it for as long as it is mapped.
struct Mapped {
    device: u64,
    inode: u64,
    region: Arc<Region>,
}

impl ShmTransport {
    /// Listens in `folder`, which it creates for this user alone.
    pub fn new(link: LinkConfig, folder: impl Into<PathBuf>) -> Self {
        Self { link, folder: folder.into(), mapped: Mutex::new(Vec::new()) }
    }

    /// Creates the folder, or makes sure that it is this user's alone.
    fn private_folder(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let found = fs::metadata(&self.folder)?;
        if found.mode() & 0o077 != 0 || found.uid() != rustix::process::geteuid().as_raw() {
            let why = format!("{} is open to other users", self.folder.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok(())
    }

    /// The mapping of the memory behind `file`, perhaps one that an earlier grant made.
    fn map(&self, file: OwnedFd) -> io::Result<Arc<Region>> {
        let found = rustix::fs::fstat(&file)?;
        let (device, inode) = (found.st_dev, found.st_ino);
        let mut mapped = self.mapped.lock();
        if let Some(known) = mapped.iter().find(|known| (known.device, known.inode) == (device, inode)) {
            return Ok(known.region.clone());
        }
        let region = Arc::new(Region::open(file)?);
        if mapped.len() == MAPPED {
            mapped.remove(0);
        }
        mapped.push(Mapped { device, inode, region: region.clone() });
        Ok(region)
    }
}

/// Removes the sockets of processes that were killed.
fn sweep(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        let old = entry.metadata()?.modified()?.elapsed().is_ok_and(|age| age > STALE);
        if old && UnixStream::connect(entry.path()).is_err_and(refused) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

impl KvTransport for ShmTransport {
    fn scheme(&self) -> &'static str {
        "shm"
    }

    fn listen(&self, arena: Arc<SlotArena>) -> io::Result<Box<dyn Listening>> {
        self.private_folder()?;
        if let Err(error) = sweep(&self.folder) {
            tracing::debug!(%error, folder = %self.folder.display(), "old kv sockets not swept");
        }
        let path = self.folder.join(format!("{:016x}.sock", rand::random::<u64>()));
        let listener = UnixListener::bind(&path)?;
        let address = Address(format!("shm:{}", path.display()));
        let listener = Listener::start(address, listener.into(), arena, self.link.clone(), Bodies::Shared)?;
        Ok(Box::new(NamedListener { listener, path }))
    }

    fn open(&self, grant: &Grant, address: &Address) -> Result<Box<dyn PageWriter>, OpenError> {
        let stream = UnixStream::connect(address.split().1)?;
        let socket = Socket::from(OwnedFd::from(stream));
        let file = handshake::ask(&socket, grant.epoch, &self.link, Bodies::Shared)?;
        let file = file.ok_or_else(|| OpenError::Unreachable("the receiver sent no memory".to_owned()))?;
        let region = self.map(file)?;
        Ok(Box::new(Pusher::new(grant, vec![socket], Some(region), self.link.stall)?))
    }
}

/// A listener whose socket leaves the file system with it.
struct NamedListener {
    listener: Listener,
    path: PathBuf,
}

impl Listening for NamedListener {
    fn address(&self) -> Address {
        self.listener.address()
    }
}

impl Drop for NamedListener {
    fn drop(&mut self) {
        // Another process may have swept it.
        let _ = fs::remove_file(&self.path);
    }
}
