//! Inside one process: the parcel itself, device handle included, without a copy.

use actix::Recipient;
use actix::dev::SendError;

use crate::edge::{Edge, EdgeError};
use crate::message::Parcel;

/// The mailbox of a node in this process.
pub struct Local {
    /// Name of the node, for messages.
    pub node: String,
    /// Its mailbox.
    pub mailbox: Recipient<Parcel>,
}

impl Edge for Local {
    fn send(&self, parcel: Parcel) -> Result<(), EdgeError> {
        self.mailbox.try_send(parcel).map_err(|error| match error {
            SendError::Full(_) => EdgeError::Full { node: self.node.clone() },
            SendError::Closed(_) => EdgeError::Gone { node: self.node.clone() },
        })
    }
}
