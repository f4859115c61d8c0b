//! Edges: how a parcel gets from one node to another.
//!
//! Which edge is used follows from where the two nodes are: in one process the device handle is
//! handed over, between processes of one host the bytes lie in shared memory, between hosts they
//! travel over TCP with CURVE. A node knows only its directory.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use crate::message::Parcel;

/// A way to a node.
pub trait Edge: Send + Sync {
    /// Hands a parcel over. Does not wait: credits bound what is in flight.
    fn send(&self, parcel: Parcel) -> Result<(), EdgeError>;
}

/// Why a parcel cannot be handed over. Codes E4xx.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EdgeError {
    /// More is in flight than credits allow, which is a programming error.
    #[error("[E402] the mailbox of `{node}` is full; more is in flight than credits allow")]
    Full {
        /// Addressee.
        node: String,
    },
    /// The node is gone.
    #[error("[E403] `{node}` is gone")]
    Gone {
        /// Addressee.
        node: String,
    },
    /// No way to the node is known.
    #[error("[E404] no way to `{node}` is known")]
    Unknown {
        /// Addressee.
        node: String,
    },
    /// The transport refused.
    #[error("[E405] the way to `{node}` fails: {reason}")]
    Transport {
        /// Addressee.
        node: String,
        /// Why.
        reason: String,
    },
}

/// Ways to all nodes, shared by the nodes of one process.
#[derive(Clone, Default)]
pub struct Directory {
    ways: Arc<RwLock<BTreeMap<String, Arc<dyn Edge>>>>,
}

impl Directory {
    /// Sets the way to a node.
    pub fn set(&self, node: &str, edge: Arc<dyn Edge>) {
        let mut ways = self.ways.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        ways.insert(node.to_owned(), edge);
    }

    /// Sends a parcel on its way.
    pub fn send(&self, parcel: Parcel) -> Result<(), EdgeError> {
        let edge = {
            let ways = self.ways.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            ways.get(&parcel.to.node).cloned()
        };
        match edge {
            Some(edge) => edge.send(parcel),
            None => Err(EdgeError::Unknown { node: parcel.to.node }),
        }
    }
}
