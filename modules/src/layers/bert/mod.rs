//! Parts of BERT and its relatives: embeddings, heads, sizes, names of published files.

pub mod embeddings;
pub mod heads;
pub mod layouts;
pub mod network;
pub mod parts;
pub(crate) mod published;
pub mod qformer;
pub mod size;
