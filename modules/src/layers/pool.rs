//! Attention pooling: one query, the mean of the tokens, attends to all of them.
//!
//! Source: "clip projector" of InternVideo2 (recipes §0.6).

use burn::module::Module;
use burn::tensor::Tensor;

use super::attention::{Attention, AttentionConfig, Look};
use super::norm::Norm;
use crate::init::Init;

/// Norms, then cross attention, then a projection; no residual, no MLP.
#[derive(Module, Debug)]
pub struct AttentionPool {
    /// Of the query.
    pub norm1_q: Norm,
    /// Of the keys.
    pub norm1_k: Norm,
    /// Of the values.
    pub norm1_v: Norm,
    /// Projections.
    pub cross_attn: Attention,
}

impl AttentionPool {
    /// From width D to `pooled` channels.
    pub fn new(width: usize, heads: usize, pooled: usize, init: &Init) -> Self {
        let norm = || Norm::layer(width, 1e-5, init);
        let config = AttentionConfig { outputs: pooled, ..AttentionConfig::new(width, heads) };
        let cross_attn = Attention::new(&config, 1.0, init);
        Self { norm1_q: norm(), norm1_k: norm(), norm1_v: norm(), cross_attn }
    }

    /// `[B, N, D]`; returns `[B, P]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<2> {
        let query = self.norm1_q.forward(x.clone().mean_dim(1));
        let keys = self.norm1_k.forward(x.clone());
        let values = self.norm1_v.forward(x);
        self.cross_attn.ask(query, keys, values, Look::default()).squeeze_dim(1)
    }

    /// The same; also returns the attention map `[B, heads, 1, N]`.
    pub fn with_map(&self, x: Tensor<3>) -> (Tensor<2>, Tensor<4>) {
        let query = self.norm1_q.forward(x.clone().mean_dim(1));
        let keys = self.norm1_k.forward(x.clone());
        let (out, map) = self.cross_attn.ask_with_map(query, keys, self.norm1_v.forward(x));
        (out.squeeze_dim(1), map)
    }
}
