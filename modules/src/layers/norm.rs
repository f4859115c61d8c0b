//! Normalisation over the last dim, with f32 statistics.

use burn::module::{Module, Param};
use burn::tensor::{FloatDType, Tensor};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::norm_ops;
use crate::init::Init;

/// Which normalisation, and what is added to the variance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormKind {
    /// RMSNorm: a weight (Zhang and Sennrich 2019).
    Rms(f64),
    /// LayerNorm: a weight and a bias (Ba et al. 2016).
    Layer(f64),
    /// LayerNorm with a weight and no bias (ModernBERT).
    LayerWithoutBias(f64),
}

/// RMSNorm or LayerNorm.
///
/// RMSNorm: `w x / sqrt(mean(x^2) + eps)`. LayerNorm takes the mean off first and adds the bias.
#[derive(Module, Debug)]
pub struct Norm {
    /// Factor per channel, `[D]`, starts at 1.
    pub weight: Param<Tensor<1>>,
    /// Offset per channel, `[D]`, starts at 0.
    pub bias: Option<Param<Tensor<1>>>,
    eps: f64,
    centred: bool,
}

impl Norm {
    /// A norm over `width` channels.
    pub fn new(kind: NormKind, width: usize, init: &Init) -> Self {
        let (NormKind::Rms(eps) | NormKind::Layer(eps) | NormKind::LayerWithoutBias(eps)) = kind;
        let weight = init.constant([width], 1.0);
        let bias = matches!(kind, NormKind::Layer(_)).then(|| init.constant([width], 0.0));
        Self { weight, bias, eps, centred: !matches!(kind, NormKind::Rms(_)) }
    }

    /// RMSNorm over `width` channels.
    pub fn rms(width: usize, eps: f64, init: &Init) -> Self {
        Self::new(NormKind::Rms(eps), width, init)
    }

    /// LayerNorm over `width` channels.
    pub fn layer(width: usize, eps: f64, init: &Init) -> Self {
        Self::new(NormKind::Layer(eps), width, init)
    }

    /// Any shape `[.., D]`; returns the same shape and dtype.
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        let dtype = x.dtype();
        let x = x.cast(FloatDType::F32);
        let along = |t: &Param<Tensor<1>>| t.val().cast(FloatDType::F32);
        let weight = along(&self.weight);
        let bias = match &self.bias {
            Some(bias) => Some(along(bias)),
            None => self.centred.then(|| weight.clone().inner().zeros_like()),
        };
        norm_ops::norm(x, weight, bias, self.eps).cast(dtype)
    }
}

/// Divides each vector along the last dim by its l2 norm (at least 1e-12), computed in f32.
pub fn unit<const R: usize>(x: Tensor<R>) -> Tensor<R> {
    let dtype = x.dtype();
    let x = x.cast(FloatDType::F32);
    let norm = (x.clone() * x.clone()).sum_dim(R - 1).sqrt().clamp_min(1e-12);
    (x / norm).cast(dtype)
}

/// A learned factor per channel at the end of a branch, computed in f32 (Touvron et al. 2021).
#[derive(Module, Debug)]
pub struct LayerScale {
    /// Factor per channel, `[D]`.
    pub gamma: Param<Tensor<1>>,
}

impl LayerScale {
    /// `width` factors that start at `value`.
    pub fn new(width: usize, value: f64, init: &Init) -> Self {
        Self { gamma: init.constant([width], value as f32) }
    }

    /// `[B, N, D]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let dtype = x.dtype();
        let gamma = self.gamma.val().cast(FloatDType::F32).unsqueeze::<3>();
        (x.cast(FloatDType::F32) * gamma).cast(dtype)
    }
}
/// What is done to features before a classifier's matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FeatureNorm {
    /// LayerNorm: over the channels of a sample, with learned weight and bias.
    #[default]
    Layer,
    /// Over the samples of the microbatch, per channel, without parameters: what all samples have
    /// in common is taken away, and small differences become large. In the manner of the batch norm
    /// of MAE's linear probe (He et al. 2022, appendix A.1), but without running statistics: the
    /// result depends on the other samples of the microbatch, also when it judges.
    Batch,
}

/// Mean 0 and deviation 1 along a dim; the deviation is the unbiased one plus 1e-6.
pub fn standard_along<const R: usize>(x: Tensor<R>, dim: usize) -> Tensor<R> {
    let count = x.dims()[dim] as f64;
    let centred = x.clone() - x.mean_dim(dim);
    let squares = centred.clone().square().sum_dim(dim);
    centred / squares.div_scalar(count - 1.0).sqrt().add_scalar(1e-6)
}

/// `[B, D]`: mean 0 and variance 1 per channel over the batch.
pub fn standardise(x: Tensor<2>) -> Tensor<2> {
    let x = x.cast(FloatDType::F32);
    let centred = x.clone() - x.mean_dim(0);
    let variance = centred.clone().square().mean_dim(0);
    centred / variance.add_scalar(1e-5).sqrt()
}
