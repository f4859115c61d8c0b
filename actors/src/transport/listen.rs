//! Listening: sockets, their monitors, and the directories of ipc sockets.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use super::engine::Engine;
use super::side::{self, Listener};
use super::{Address, TransportError};

/// A listening socket.
pub(crate) struct Router {
    pub(crate) address: Address,
    pub(crate) socket: zmq::Socket,
    pub(crate) monitor: zmq::Socket,
    pub(crate) side: Option<Listener>,
    /// Sessions by what the socket calls their connection.
    pub(crate) routes: BTreeMap<Vec<u8>, u64>,
}

/// Watches a socket for closed connections and failed handshakes.
pub(crate) fn monitor(
    context: &zmq::Context,
    socket: &zmq::Socket,
    name: &str,
) -> zmq::Result<zmq::Socket> {
    const EVENTS: u32 = zmq_sys::ZMQ_EVENT_DISCONNECTED
        | zmq_sys::ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq_sys::ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq_sys::ZMQ_EVENT_HANDSHAKE_FAILED_AUTH;
    let endpoint = format!("inproc://monitor-{name}");
    socket.monitor(&endpoint, EVENTS as i32)?;
    let watcher = context.socket(zmq::PAIR)?;
    watcher.set_linger(0)?;
    watcher.connect(&endpoint)?;
    Ok(watcher)
}

/// Makes the directory of an ipc socket, or checks that only this user may enter it.
fn private_directory(path: &Path) -> Result<(), TransportError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|source| TransportError::io("make", directory, source))?;
    let metadata =
        directory.metadata().map_err(|source| TransportError::io("read", directory, source))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(TransportError::DirectoryOpen { path: directory.into(), mode });
    }
    Ok(())
}

impl Engine {
    /// Binds an address.
    pub(crate) fn listen(&mut self, address: &Address) -> Result<(), TransportError> {
        let mut listener = None;
        if let Address::Ipc { path } = address {
            private_directory(path)?;
            let side = side::path(path);
            listener = Some(
                Listener::bind(&side).map_err(|source| TransportError::io("bind", side, source))?,
            );
        }
        let socket = self.settings.listen(&self.context, address)?;
        let watched = monitor(&self.context, &socket, &format!("router-{}", self.routers.len()));
        let monitor = watched.map_err(TransportError::zmq("watch a socket"))?;
        let mut bound = address.clone();
        if let (Address::Tcp { port, .. }, Ok(Ok(endpoint))) =
            (&mut bound, socket.get_last_endpoint())
        {
            let chosen = endpoint.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            *port = chosen.unwrap_or(*port);
        }
        self.routers.push(Router {
            address: bound,
            socket,
            monitor,
            side: listener,
            routes: BTreeMap::new(),
        });
        Ok(())
    }
}
