//! Parts that several kinds share: one of each.

pub mod attention;
mod attention_ops;
pub mod block;
pub mod drop_path;
pub mod fixed_table;
pub mod mlp;
pub mod norm;
pub mod patch_embed;
pub mod pool;
pub mod positions;
#[cfg(feature = "tch")]
mod sdpa;
pub mod size;
pub mod tokens;
pub mod visible;
