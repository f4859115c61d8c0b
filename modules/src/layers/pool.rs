//! Attention pooling: one query, the mean of the tokens, attends to all of them.
//!
//! Source: "clip projector" of InternVideo2 (recipes §0.6).

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::Tensor;

use super::attention::attention_map;
use super::norm::Norm;
use crate::init::Init;

/// The projections of the pooling.
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// `[D, D]`.
    pub q: Linear,
    /// `[D, D]`.
    pub k: Linear,
    /// `[D, D]`.
    pub v: Linear,
    /// `[D]`.
    pub q_bias: Param<Tensor<1>>,
    /// `[D]`.
    pub k_bias: Param<Tensor<1>>,
    /// `[D]`.
    pub v_bias: Param<Tensor<1>>,
    /// `[D, P]`.
    pub proj: Linear,
    heads: usize,
}

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
    pub cross_attn: CrossAttention,
}

impl AttentionPool {
    /// From width D to `pooled` channels.
    pub fn new(width: usize, heads: usize, pooled: usize, init: &Init) -> Self {
        let norm = || Norm::layer(width, 1e-5, init);
        let square = || init.linear(width, width, false, 1.0);
        let bias = || init.constant([width], 0.0);
        let cross_attn = CrossAttention {
            q: square(),
            k: square(),
            v: square(),
            q_bias: bias(),
            k_bias: bias(),
            v_bias: bias(),
            proj: init.linear(width, pooled, true, 1.0),
            heads,
        };
        Self { norm1_q: norm(), norm1_k: norm(), norm1_v: norm(), cross_attn }
    }

    /// `[B, N, D]`; returns `[B, P]` and the attention map `[B, heads, 1, N]`.
    pub fn forward(&self, x: Tensor<3>) -> (Tensor<2>, Tensor<4>) {
        let [batch, tokens, width] = x.dims();
        let at = &self.cross_attn;
        let by_head = |t: Tensor<3>, bias: &Param<Tensor<1>>, n: usize| {
            let t = t + bias.val().unsqueeze();
            t.reshape([batch, n, at.heads, width / at.heads]).swap_dims(1, 2)
        };
        let seed = self.norm1_q.forward(x.clone().mean_dim(1));
        let q = by_head(at.q.forward(seed), &at.q_bias, 1);
        let k = by_head(at.k.forward(self.norm1_k.forward(x.clone())), &at.k_bias, tokens);
        let v = by_head(at.v.forward(self.norm1_v.forward(x)), &at.v_bias, tokens);
        let map = attention_map(q, k);
        let out = map.clone().matmul(v).swap_dims(1, 2).reshape([batch, width]);
        (at.proj.forward(out), map)
    }
}
