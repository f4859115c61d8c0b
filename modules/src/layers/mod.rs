//! Parts that several kinds share: one of each.

pub mod attention;
mod attention_ops;
pub mod block;
pub mod drop_path;
pub mod mlp;
pub mod norm;
pub mod patch_embed;
pub mod pool;
pub mod positions;
pub mod tokens;
pub mod size;
pub mod visible;
