//! What is computed: every network, loss, mask, probe and data source, as plain burn modules.

pub mod rng;
pub mod shapes;
pub mod video;
