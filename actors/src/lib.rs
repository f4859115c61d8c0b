//! Who runs it, when and where. No tensor is computed here.
//!
//! Reading order: `message` (all that is ever sent), `node_actor` (one vertex at work),
//! `supervisor` (the main loop).

mod assign;
pub mod checkpointer;
pub mod clock;
pub mod crew;
pub mod edge;
pub mod hosts;
pub mod message;
pub mod node_actor;
pub mod observer;
pub mod record;
mod step;
pub mod supervisor;

include!(concat!(env!("OUT_DIR"), "/lists.rs"));
