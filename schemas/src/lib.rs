//! What travels between actors and what is written down. No tensors are computed here.

pub mod dims;
pub mod entry;
pub mod frame;
pub mod node;
pub mod port;
