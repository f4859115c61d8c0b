//! Two linear layers with a GELU between them.

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gelu_ops;
use crate::init::Init;

/// Which GELU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Gelu {
    /// With the error function.
    #[default]
    Exact,
    /// The tanh approximation that fused kernels compute.
    Tanh,
}

impl Gelu {
    /// Element-wise.
    pub fn apply<const R: usize>(self, x: Tensor<R>) -> Tensor<R> {
        gelu_ops::gelu(x, self == Self::Tanh)
    }
}

/// `fc2(gelu(fc1(x)))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[D, hidden]`.
    pub fc1: Linear,
    /// `[hidden, outputs]`.
    pub fc2: Linear,
    #[module(skip)]
    gelu: Gelu,
}

impl Mlp {
    /// From `[inputs, hidden, outputs]`; the second matrix starts divided by `shrink`.
    pub fn new(sizes: [usize; 3], gelu: Gelu, shrink: f64, init: &Init) -> Self {
        let [inputs, hidden, outputs] = sizes;
        let fc1 = init.linear(inputs, hidden, true, 1.0);
        Self { fc1, fc2: init.linear(hidden, outputs, true, shrink), gelu }
    }

    /// As [`Mlp::new`], with a second matrix that starts at 0, so that the layer starts as 0.
    pub fn zero_end(sizes: [usize; 3], gelu: Gelu, init: &Init) -> Self {
        let mut mlp = Self::new(sizes, gelu, 1.0, init);
        mlp.fc2.weight = init.constant([sizes[1], sizes[2]], 0.0);
        mlp
    }

    /// `[.., inputs]`; returns `[.., outputs]`.
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        self.fc2.forward(self.gelu.apply(self.fc1.forward(x)))
    }
}
