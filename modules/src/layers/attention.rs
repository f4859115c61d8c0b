//! Self-attention with a fused projection.

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::module::linear;
use burn::tensor::{FloatDType, Tensor, activation};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attention_ops;
use super::norm::{Norm, unit};
use crate::init::Init;

/// Attention of `[B, heads, N, d]` with scale `1 / sqrt(d)`, without attention maps.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    attention_ops::attend(q, k, v)
}

/// Attention maps `[B, heads, queries, keys]` of `[B, heads, N, d]` with scale `1 / sqrt(d)`.
pub fn attention_map(q: Tensor<4>, k: Tensor<4>) -> Tensor<4> {
    let scale = 1.0 / (q.dims()[3] as f64).sqrt();
    let dtype = q.dtype();
    let scores = q.mul_scalar(scale).matmul(k.transpose());
    activation::softmax(scores.cast(FloatDType::F32), 3).cast(dtype)
}

/// Which biases the fused projection has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QkvBias {
    /// None.
    #[default]
    None,
    /// One bias of width 3 D.
    Fused,
    /// Separate biases of queries and values, keys without (VideoMAE).
    QueryValue,
}

/// Shape and switches of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionConfig {
    /// Channels D.
    pub width: usize,
    /// Heads.
    pub heads: usize,
    /// Biases of the fused projection.
    pub bias: QkvBias,
    /// RMSNorm of q and of k over the full width, before heads are split.
    pub qk_norm: bool,
    /// Cosine attention with a learned temperature per head (Swin V2, VideoMAE V2).
    pub cosine: bool,
    /// Attention across the heads of each token instead of across tokens.
    pub across_heads: bool,
}

/// Multi-head self-attention.
#[derive(Module, Debug)]
pub struct Attention {
    /// Queries, keys, values, `[D, 3 D]`.
    pub qkv: Linear,
    /// `[D]`.
    pub q_bias: Option<Param<Tensor<1>>>,
    /// `[D]`.
    pub v_bias: Option<Param<Tensor<1>>>,
    /// Norm of the queries over the full width.
    pub q_norm: Option<Norm>,
    /// Norm of the keys over the full width.
    pub k_norm: Option<Norm>,
    /// Logarithm of the temperature of cosine attention, `[heads, 1, 1]`, at most ln 100.
    pub scale: Option<Param<Tensor<3>>>,
    /// Output projection, `[D, D]`.
    pub proj: Linear,
    heads: usize,
    across_heads: bool,
}

/// Largest logarithm of the temperature of cosine attention, ln 100 as it was written down.
const MAX_LOG_SCALE: f64 = 4.6052;

impl Attention {
    /// The output projection starts divided by `shrink`.
    pub fn new(config: &AttentionConfig, shrink: f64, init: &Init) -> Self {
        let AttentionConfig { width, heads, bias, qk_norm, cosine, across_heads } = *config;
        let separate = bias == QkvBias::QueryValue;
        Self {
            qkv: init.linear(width, 3 * width, bias == QkvBias::Fused, 1.0),
            q_bias: separate.then(|| init.constant([width], 0.0)),
            v_bias: separate.then(|| init.constant([width], 0.0)),
            q_norm: qk_norm.then(|| Norm::rms(width, 1e-6, init)),
            k_norm: qk_norm.then(|| Norm::rms(width, 1e-6, init)),
            scale: cosine.then(|| init.constant([heads, 1, 1], 10f32.ln())),
            proj: init.linear(width, width, true, shrink),
            heads,
            across_heads,
        }
    }

    /// `[B, N, D]`; returns the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let mut parts = self.split(x);
        if self.across_heads {
            parts = parts.map(|part| part.swap_dims(1, 2));
        }
        let [q, k, v] = parts;
        let out = attention(q, k, v);
        self.proj.forward(out.swap_dims(1, 2).reshape([batch, tokens, width]))
    }

    /// The attention map across tokens, `[B, heads, N, N]`, for `[B, N, D]`.
    pub fn maps(&self, x: Tensor<3>) -> Tensor<4> {
        let [q, k, _] = self.split(x);
        attention_map(q, k)
    }

    /// Queries, keys and values by head, `[B, heads, N, d]`, ready for the scale `1 / sqrt(d)`.
    fn split(&self, x: Tensor<3>) -> [Tensor<4>; 3] {
        let [batch, tokens, width] = x.dims();
        // A third of the matrix each, rather than a third of the output: the gradient of a slice is as large as
        // what it was cut from, and the matrix is smaller than its output.
        let weight = self.qkv.weight.val();
        let fused = self.qkv.bias.as_ref().map(Param::val);
        let own = [&self.q_bias, &None, &self.v_bias];
        let part = |i: usize| {
            let columns = i * width..(i + 1) * width;
            let bias = match (&fused, own[i]) {
                (Some(bias), _) => Some(bias.clone().slice_dim(0, columns.clone())),
                (None, bias) => bias.as_ref().map(Param::val),
            };
            linear(x.clone(), weight.clone().slice_dim(1, columns), bias)
        };
        let normed = |t: Tensor<3>, norm: &Option<Norm>| match norm {
            Some(norm) => norm.forward(t),
            None => t,
        };
        let q = normed(part(0), &self.q_norm);
        let k = normed(part(1), &self.k_norm);
        let v = part(2);
        let head = width / self.heads;
        let by_head = |t: Tensor<3>| t.reshape([batch, tokens, self.heads, head]).swap_dims(1, 2);
        let [q, k, v] = [q, k, v].map(by_head);
        match &self.scale {
            None => [q, k, v],
            Some(scale) => {
                let factor = scale.val().clamp_max(MAX_LOG_SCALE).exp();
                let factor = factor.mul_scalar((head as f64).sqrt()).unsqueeze::<4>();
                [unit(q) * factor, unit(k), v]
            }
        }
    }
}
