//! Listening where only processes of this host and user come.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{
        fs::{DirBuilderExt, MetadataExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::{Address, LinkConfig, Listening, SlotArena, bodies::Bodies, listener::Listener};

/// A socket that refuses is swept away when it is older: a younger one may be about to listen.
const STALE: Duration = Duration::from_secs(10);

/// Listens on a socket of `folder`, which is created for this user alone.
pub(super) fn listen(
    scheme: &str,
    folder: &Path,
    arena: Arc<SlotArena>,
    link: LinkConfig,
    bodies: Bodies,
) -> io::Result<Box<dyn Listening>> {
    make_private(folder)?;
    if let Err(error) = sweep(folder) {
        tracing::debug!(%error, folder = %folder.display(), "old kv sockets not swept");
    }
    let path = folder.join(format!("{:016x}.sock", rand::random::<u64>()));
    let listener = UnixListener::bind(&path)?;
    let address = Address(format!("{scheme}:{}", path.display()));
    let listener = Listener::start(address, listener.into(), arena, link, bodies)?;
    Ok(Box::new(NamedListener { listener, path }))
}

/// Creates the folder, or makes sure that it is this user's alone.
fn make_private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let found = fs::metadata(folder)?;
    if found.mode() & 0o077 != 0 || found.uid() != rustix::process::geteuid().as_raw() {
        let why = format!("{} is open to other users", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
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

/// A listener whose socket leaves the file system with it.
struct NamedListener {
    listener: Listener,
    path: PathBuf,
}

impl Listening for NamedListener {
    fn address(&self) -> Address {
        self.listener.address()
    }

    fn in_device_memory(&self) -> bool {
        self.listener.in_device_memory()
    }
}

impl Drop for NamedListener {
    fn drop(&mut self) {
        // Another process may have swept it.
        let _ = fs::remove_file(&self.path);
    }
}
