//! A linear layer, on request with a low-rank adapter beside its matrix.
//!
//! With an adapter the layer computes `x W + b + s (drop(x) A) B`. B starts at 0, so that the layer starts as it
//! was. s is `alpha / rank`, or `alpha / sqrt(rank)` when rank-stabilised.
//! Source: Hu et al. 2021, "LoRA" (arXiv 2106.09685); Kalajdzievski 2023, "rsLoRA" (arXiv 2312.03732).

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use schemas::lora::Lora;

use super::dropout_ops::dropout;
use super::linear_ops::linear;
use crate::init::Init;
use crate::rng::Key;

/// A low-rank adapter.
#[derive(Module, Debug)]
pub struct Adapter {
    /// `[inputs, rank]`, drawn as the published code draws it.
    pub a: Param<Tensor<2>>,
    /// `[rank, outputs]`, starts at 0.
    pub b: Param<Tensor<2>>,
    scale: f64,
    dropout: f64,
}

impl Adapter {
    /// An adapter for a matrix `[inputs, outputs]`.
    pub(crate) fn new([inputs, outputs]: [usize; 2], lora: &Lora, init: &Init) -> Self {
        let bound = 1.0 / (inputs as f64).sqrt();
        Self {
            a: init.uniform([inputs, lora.rank], bound),
            b: init.constant([lora.rank, outputs], 0.0),
            scale: lora.scale(),
            dropout: lora.dropout,
        }
    }

    /// `s A B`, `[inputs, outputs]`: what is added to the matrix when the two are merged.
    pub fn product(&self) -> Tensor<2> {
        self.a.val().matmul(self.b.val()).mul_scalar(self.scale)
    }
}

/// `x W + b`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[inputs, outputs]`.
    pub weight: Param<Tensor<2>>,
    /// `[outputs]`.
    pub bias: Option<Param<Tensor<1>>>,
    /// Beside the matrix.
    pub lora: Option<Adapter>,
}

impl Linear {
    /// `[.., inputs]`; returns `[.., outputs]`.
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        self.named(x, "", None)
    }

    /// The same, with the adapter's dropout active when there is a key. `name` tells the draws of
    /// layers apart that share the key.
    pub fn named<const R: usize>(&self, x: Tensor<R>, name: &str, key: Option<&Key>) -> Tensor<R> {
        let bias = self.bias.as_ref().map(Param::val);
        let y = linear(x.clone(), self.weight.val(), bias);
        match &self.lora {
            None => y,
            Some(lora) => {
                let key = key.map(|key| key.with(name));
                let low = linear(dropout(x, lora.dropout, key.as_ref()), lora.a.val(), None);
                y + linear(low, lora.b.val(), None).mul_scalar(lora.scale)
            }
        }
    }
}
