//! What tests share.

pub mod command;
pub mod examples;
pub mod golden;

// The examples name these modules as files of the crate `modules` do.
use modules::{init, kind, rng, tensors};
