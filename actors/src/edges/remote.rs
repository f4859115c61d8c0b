//! Between processes: shared memory on one host, TCP with CURVE between hosts.
//!
//! The transport knows which of the two it is; the edge only knows the peer.

use std::sync::Arc;

use crate::edge::{Edge, EdgeError};
use crate::letter;
use crate::message::Parcel;
use crate::transport::{PeerName, Transport};

/// A way to nodes of another process.
pub struct Remote {
    /// The process.
    pub peer: PeerName,
    /// The transport of this process.
    pub transport: Arc<Transport>,
}

impl Edge for Remote {
    fn send(&self, parcel: Parcel) -> Result<(), EdgeError> {
        let node = parcel.to.node.clone();
        let fail = |reason: String| EdgeError::Transport { node: node.clone(), reason };
        let message = letter::write_parcel(parcel).map_err(|error| fail(error.to_string()))?;
        self.transport.send(&self.peer, message).map_err(|error| fail(error.to_string()))
    }
}
