//! Cuts a clip into space-time patches and projects each to one token.
//!
//! Patches do not overlap, so the 3-D convolution is one matrix product.
//! Source: Arnab et al. 2021, "ViViT", section 3.2 (arXiv 2103.15691).

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::linear_ops::linear;
use crate::init::Init;

/// A convolution whose kernel equals its stride, in the layout of its checkpoint.
#[derive(Module, Debug)]
pub struct Projection {
    /// Kernel, `[D, 3, t, p, p]`.
    pub weight: Param<Tensor<5>>,
    /// `[D]`; CLIP has none.
    pub bias: Option<Param<Tensor<1>>>,
}

/// Cuts `[B, C, T, H, W]` into patches of `[frames, rows, columns]` pixels; returns
/// `[B, N, C, pixels]`, patches and pixels time outermost, then rows.
pub fn patches(video: Tensor<5>, cut: [usize; 3]) -> Tensor<4> {
    let [batch, channels, frames, height, width] = video.dims();
    let [t, p, q] = cut;
    let [times, rows, columns] = [frames / t, height / p, width / q];
    video
        .reshape([batch, channels, times, t, rows, p, columns, q])
        .permute([0, 2, 4, 6, 1, 3, 5, 7])
        .reshape([batch, times * rows * columns, channels, t * p * q])
}

/// One token per patch.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// The convolution.
    pub proj: Projection,
}

impl PatchEmbed {
    /// Patches of `tubelet` frames and `patch` x `patch` pixels. Weights start uniform within
    /// `1 / sqrt(fan_in)`.
    pub fn new(width: usize, tubelet: usize, patch: usize, init: &Init) -> Self {
        let bound = 1.0 / ((3 * tubelet * patch * patch) as f64).sqrt();
        let weight = init.uniform([width, 3, tubelet, patch, patch], bound);
        Self { proj: Projection { weight, bias: Some(init.uniform([width], bound)) } }
    }

    /// The same without a bias.
    pub fn without_bias(width: usize, tubelet: usize, patch: usize, init: &Init) -> Self {
        let Self { proj } = Self::new(width, tubelet, patch, init);
        Self { proj: Projection { bias: None, ..proj } }
    }

    /// `video`: `[B, 3, T, H, W]`; returns tokens `[B, N, D]`, time outermost, then rows.
    pub fn forward(&self, video: Tensor<5>) -> Tensor<3> {
        let kernel = self.proj.weight.val();
        let [width, channels, t, p, _] = kernel.dims();
        let patches = patches(video, [t, p, p]);
        let [batch, tokens, _, pixels] = patches.dims();
        let kernel = kernel.reshape([width, channels * pixels]).transpose();
        let patches = patches.reshape([batch, tokens, channels * pixels]);
        linear(patches, kernel, self.proj.bias.as_ref().map(Param::val))
    }
}
