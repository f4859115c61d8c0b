//! What tests share.

pub mod faults;
pub mod golden;
pub mod runs;
