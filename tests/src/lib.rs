//! What tests share.

pub mod command;
pub mod device;
pub mod examples;
pub mod faults;
pub mod golden;
pub mod runs;

// The examples name these modules as files of the crate `modules` do.
use modules::{init, kind, layers, rng, tensors};
