//! What travels between actors and what is written down. No tensors are computed here.
//!
//! Reading order: `experiment` (the YAML file as types), `graph` (its checked form), `node` (what
//! a vertex can do), `frame` (what travels).

mod adapters;
mod checked;
pub mod checkpoint;
mod context;
pub mod diagnostic;
pub mod dims;
pub mod entry;
pub mod experiment;
mod findings;
mod flow;
mod follow;
pub mod frame;
pub mod glob;
pub mod graph;
pub mod handoff;
mod keys;
pub mod layers;
pub mod layout;
pub mod lora;
mod names;
pub mod node;
pub mod optimizer;
mod order;
mod paths;
pub mod port;
mod reading;
mod resolve;
mod same;
mod settings;
pub mod stage;
mod stage_checks;
mod stages;
pub mod timetable;
mod turns;
pub mod words;
pub mod yaml;
