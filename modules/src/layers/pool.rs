//! Attention pooling: one query, the mean of the tokens or a learned one, attends to all of them.
//!
//! Source: "clip projector" of InternVideo2 (recipes §0.6).

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::attention::{Attention, AttentionConfig, AttentionMask, Look};
use super::mlp::{Activation, Mlp};
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

/// Attention pooling with a learned query, then an MLP with a residual: SigLIP's head.
///
/// Source: Zhai et al. 2022, "Scaling vision transformers" (arXiv 2106.04560); after Lee et al. 2019,
/// "Set transformer" (arXiv 1810.00825).
#[derive(Module, Debug)]
pub struct ProbePool {
    /// The query, `[1, 1, D]`.
    pub probe: Param<Tensor<3>>,
    /// From the query to the tokens.
    pub attn: Attention,
    /// Before the MLP.
    pub norm: Norm,
    /// The MLP.
    pub mlp: Mlp,
}

impl ProbePool {
    /// Over `width` channels, with LayerNorm of ε `eps`.
    pub fn new(
        [width, heads, hidden]: [usize; 3],
        activation: Activation,
        eps: f64,
        init: &Init,
    ) -> Self {
        Self {
            probe: init.normal([1, 1, width], 0.02),
            attn: Attention::new(&AttentionConfig::new(width, heads), 1.0, init),
            norm: Norm::layer(width, eps, init),
            mlp: Mlp::new([width, hidden, width], activation, 1.0, init),
        }
    }

    /// `[B, N, D]`; returns `[B, D]` and the attention map `[B, heads, 1, N]`. `mask` is that of one
    /// query.
    pub fn with_map(&self, x: Tensor<3>, mask: &AttentionMask) -> (Tensor<2>, Tensor<4>) {
        let [batch, _, width] = x.dims();
        let probe = self.probe.val().expand([batch, 1, width]);
        let look = Look { mask: Some(mask), ..Look::default() };
        let (x, map) = self.attn.look_with_map(probe, x.clone(), x, &look);
        let x = x.clone() + self.mlp.forward(self.norm.forward(x));
        (x.squeeze_dim(1), map)
    }
}
