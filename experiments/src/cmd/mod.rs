//! Subcommands, one file each.

pub(crate) mod agent;
pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod conform;
pub(crate) mod data;
pub(crate) mod explain;
pub(crate) mod graph;
pub(crate) mod keys;
pub(crate) mod list;
pub(crate) mod new;
pub(crate) mod plan;
pub(crate) mod resume;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod score;
pub(crate) mod status;
pub(crate) mod weights;
