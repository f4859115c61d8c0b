//! What is computed: every network, loss, mask, probe and data source, as plain burn modules.
//!
//! Reading order: `kind` (how a file becomes a kind), `kind_node` (how any kind trains), then any
//! kind, for example `losses/feature_alignment`.

// burn 0.22 is the last with libtorch and says so at every use.
#![cfg_attr(feature = "tch", allow(deprecated))]

mod adamw_ops;
pub mod archive;
pub mod conform;
pub mod device;
pub mod generate;
pub mod host_node;
pub mod init;
pub mod kind;
pub mod kind_node;
pub mod layers;
pub mod metrics;
mod norm_squared_ops;
pub mod optimizer;
pub mod parameters;
mod published;
pub mod rng;
pub mod segments;
pub mod shapes;
pub mod tensors;
pub mod tokenizer;
pub mod video;
pub mod vjp;
pub mod weights;

pub use schemas::layout;

include!(concat!(env!("OUT_DIR"), "/kinds.rs"));
