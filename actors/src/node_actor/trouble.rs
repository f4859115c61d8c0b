//! What keeps a node from going on, and which of it is worth another try.

use std::panic::{AssertUnwindSafe, catch_unwind};

use schemas::checkpoint::CheckpointError;
use schemas::graph::End;
use schemas::node::NodeError;

use crate::edge::EdgeError;

/// What keeps a node from going on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("edge from `{port}`: {error}")]
    Edge { port: End, error: EdgeError },
    #[error(transparent)]
    Damaged(#[from] CheckpointError),
}

impl Trouble {
    /// Whether trying again cannot help. A lost peer is not final: it is made again.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Node(error) => matches!(
                error,
                NodeError::Option { .. }
                    | NodeError::Weights { .. }
                    | NodeError::Device { .. }
                    | NodeError::State { .. }
                    | NodeError::Data { .. }
            ),
            Self::Edge { error, .. } => matches!(error, EdgeError::Full { .. }),
            Self::Damaged(_) => true,
        }
    }
}

/// Runs compute; a panic becomes an error with its text.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, NodeError>) -> Result<T, NodeError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let message = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(NodeError::Panic { message: message.unwrap_or_else(|| "without a text".to_owned()) })
    })
}
