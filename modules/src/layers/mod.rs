//! Parts that several kinds share: one of each.

pub mod alignment_head;
pub mod attention;
#[cfg(feature = "flex")]
mod attention_flex;
#[cfg(feature = "tch")]
mod attention_libtorch;
pub mod attention_mask;
mod attention_ops;
pub mod bert;
pub mod block;
mod block_maps;
pub mod bridge;
mod cache;
pub mod causal;
pub mod diffusion;
pub mod drop_path;
pub(crate) mod dropout_ops;
pub mod fixed_table;
#[cfg(feature = "flex")]
pub(crate) mod flex;
mod gelu_ops;
mod glu_ops;
pub mod image_tower;
pub mod image_tower_ports;
pub mod labelled;
#[cfg(feature = "flex")]
pub(crate) mod lanes;
pub mod language;
pub mod language_config;
pub mod latent;
pub mod learned_table;
pub mod linear;
pub(crate) mod linear_ops;
#[cfg(feature = "flex")]
pub(crate) mod matrices;
pub mod mel;
pub mod mlp;
pub mod modern;
pub mod norm;
mod norm_ops;
pub mod padding;
pub mod patch_embed;
pub mod pool;
pub mod positions;
pub mod relative;
pub mod rope;
mod rope_ops;
pub mod rows;
pub mod separate_tables;
pub mod size;
pub mod spans;
pub mod splice;
pub mod stretch;
pub mod text_tower;
pub mod tokens;
pub mod visible;
