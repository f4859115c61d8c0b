//! Who runs it, when and where. No tensor is computed here.
//!
//! Reading order: `message` (all that is ever sent), `node_actor` (one vertex at work),
//! `supervisor` (the main loop).

pub mod agent;
mod assign;
pub mod checkpointer;
pub mod clock;
pub mod crew;
pub mod edge;
#[cfg(test)]
mod fake;
pub mod fleet;
pub mod hosts;
pub mod letter;
pub mod memory;
pub mod message;
pub mod node_actor;
pub mod observer;
pub mod record;
mod step;
pub mod supervisor;
pub mod transport;

include!(concat!(env!("OUT_DIR"), "/lists.rs"));
