//! Parts that several kinds share: one of each.

pub mod attention;
#[cfg(feature = "flex")]
mod attention_flex;
#[cfg(feature = "tch")]
mod attention_libtorch;
mod attention_ops;
pub mod block;
pub mod bridge;
pub mod diffusion;
pub mod drop_path;
pub mod fixed_table;
#[cfg(feature = "flex")]
pub(crate) mod flex;
mod gelu_ops;
#[cfg(feature = "flex")]
pub(crate) mod lanes;
pub mod latent;
pub mod linear;
#[cfg(feature = "flex")]
pub(crate) mod matrices;
pub mod mlp;
pub mod modern;
pub mod norm;
mod norm_ops;
pub mod patch_embed;
pub mod pool;
pub mod positions;
pub mod rope;
pub mod size;
pub mod spans;
pub mod stretch;
pub mod tokens;
pub mod visible;
