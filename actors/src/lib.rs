//! Who runs it, when and where.

pub mod transport;
