//! The pre-norm transformer block that all encoders share.

use burn::module::Module;
use burn::tensor::Tensor;

use super::attention::{Attention, AttentionConfig, QkvBias};
use super::drop_path::{self, drop_path};
use super::mlp::{Gelu, Mlp};
use super::norm::{LayerScale, Norm};
use crate::init::Init;
use crate::kind::Call;
use crate::rng::Key;

/// What a stack of blocks looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct BlocksConfig {
    /// Number of blocks.
    pub depth: usize,
    /// Attention of each block.
    pub attention: AttentionConfig,
    /// Hidden width of the MLP.
    pub hidden: usize,
    /// Activation of the MLP.
    pub gelu: Gelu,
    /// RMSNorm (ε 1e-6) when true, else LayerNorm (ε 1e-6).
    pub rms: bool,
    /// Start of the layer scale; no layer scale when 0.
    pub layer_scale: f64,
    /// Drop path rate of the last block.
    pub drop_path: f64,
}

/// `u = x + ls1(attn(norm1(x)))`, `y = u + ls2(mlp(norm2(u)))`, each branch under drop path.
#[derive(Module, Debug)]
pub struct Block {
    /// Before attention.
    pub norm1: Norm,
    /// Attention.
    pub attn: Attention,
    /// Layer scale of the attention branch.
    pub ls1: Option<LayerScale>,
    /// Before the MLP.
    pub norm2: Norm,
    /// MLP.
    pub mlp: Mlp,
    /// Layer scale of the MLP branch.
    pub ls2: Option<LayerScale>,
    rate: f64,
}

impl Block {
    fn new(config: &BlocksConfig, number: usize, rate: f64, init: &Init) -> Self {
        let width = config.attention.width;
        let shrink = (2.0 * (number + 1) as f64).sqrt();
        let norm = || {
            if config.rms { Norm::rms(width, 1e-6, init) } else { Norm::layer(width, 1e-6, init) }
        };
        let scale = || {
            let on = config.layer_scale > 0.0;
            on.then(|| LayerScale::new(width, config.layer_scale, init))
        };
        Self {
            norm1: norm(),
            attn: Attention::new(&config.attention, shrink, init),
            ls1: scale(),
            norm2: norm(),
            mlp: Mlp::new([width, config.hidden, width], config.gelu, shrink, init),
            ls2: scale(),
            rate,
        }
    }

    /// `[B, N, D]`; returns the residual stream after the block. Branches drop only with a key.
    pub fn forward(&self, x: Tensor<3>, key: Option<&Key>) -> Tensor<3> {
        let branch = self.attn.forward(self.norm1.forward(x.clone()));
        let x = x + self.end(branch, &self.ls1, key.map(|key| key.with("attn")));
        let branch = self.mlp.forward(self.norm2.forward(x.clone()));
        x + self.end(branch, &self.ls2, key.map(|key| key.with("mlp")))
    }

    fn end(&self, branch: Tensor<3>, scale: &Option<LayerScale>, key: Option<Key>) -> Tensor<3> {
        let branch = match scale {
            Some(scale) => scale.forward(branch),
            None => branch,
        };
        drop_path(branch, self.rate, key.as_ref())
    }
}

/// Blocks with drop path rates that rise in a line.
pub fn blocks(config: &BlocksConfig, init: &Init) -> Vec<Block> {
    let rates = drop_path::rates(config.drop_path, config.depth);
    rates.into_iter().enumerate().map(|(i, rate)| Block::new(config, i, rate, init)).collect()
}

/// Runs all blocks; returns the residual stream after each block listed in `taps` (ascending) and
/// after the last block.
pub fn run(
    blocks: &[Block],
    x: Tensor<3>,
    taps: &[usize],
    call: &Call,
) -> (Vec<Tensor<3>>, Tensor<3>) {
    let key = call.training.then_some(&call.key);
    let mut tapped = Vec::with_capacity(taps.len());
    let mut x = x;
    for (number, block) in blocks.iter().enumerate() {
        let key = key.map(|key| key.with_number(number as u64));
        x = match &call.segments {
            Some(segments) => segments.run(block, x, key.as_ref()),
            None => block.forward(x, key.as_ref()),
        };
        if taps.contains(&number) {
            tapped.push(x.clone());
        }
    }
    (tapped, x)
}

/// Numbers of the last `count` blocks, `interval` apart, ascending: `L - 1 - floor(i interval)`.
pub fn taps(depth: usize, count: usize, interval: f64) -> Vec<usize> {
    let back = |i: usize| (i as f64 * interval).floor() as usize;
    (0..count).rev().filter_map(|i| (depth - 1).checked_sub(back(i))).collect()
}

impl BlocksConfig {
    /// Blocks of VideoMAE: LayerNorm, biases of queries and values, exact GELU.
    pub fn videomae(width: usize, depth: usize, heads: usize, hidden: usize) -> Self {
        let attention = AttentionConfig {
            width,
            heads,
            bias: QkvBias::QueryValue,
            qk_norm: false,
            cosine: false,
            across_heads: false,
        };
        Self {
            depth,
            attention,
            hidden,
            gelu: Gelu::Exact,
            rms: false,
            layer_scale: 0.0,
            drop_path: 0.0,
        }
    }

    /// Blocks of InternVideo2: RMSNorm, norms on q and k, no biases in the fused projection.
    pub fn internvideo2(width: usize, depth: usize, heads: usize, hidden: usize) -> Self {
        let base = Self::videomae(width, depth, heads, hidden);
        Self {
            attention: AttentionConfig { bias: QkvBias::None, qk_norm: true, ..base.attention },
            gelu: Gelu::Tanh,
            rms: true,
            layer_scale: 1e-5,
            ..base
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_are_those_of_the_recipe() {
        assert_eq!(taps(48, 6, 1.0), [42, 43, 44, 45, 46, 47]);
        assert_eq!(taps(40, 6, 3.34), [23, 26, 29, 33, 36, 39]);
        assert_eq!(taps(3, 2, 2.0), [0, 2]);
    }
}
