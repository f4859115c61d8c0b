//! Two linear layers with an activation between them.

use burn::module::Module;
use burn::tensor::{Tensor, activation};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gelu_ops;
use super::glu_ops;
use super::linear::Linear;
use crate::init::Init;
use crate::rng::Key;

/// What happens to the numbers between two linear layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// GELU with the error function.
    #[default]
    Gelu,
    /// GELU in the tanh approximation that fused kernels compute.
    #[serde(alias = "gelu_pytorch_tanh", alias = "gelu_new")]
    GeluTanh,
    /// `x sigmoid(1.702 x)` (CLIP).
    QuickGelu,
    /// `x sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Element-wise.
    pub fn apply<const R: usize>(self, x: Tensor<R>) -> Tensor<R> {
        match self {
            Self::Gelu => gelu_ops::gelu(x, false),
            Self::GeluTanh => gelu_ops::gelu(x, true),
            Self::QuickGelu => x.clone() * activation::sigmoid(x.mul_scalar(1.702)),
            Self::Silu => activation::silu(x),
            Self::Relu => activation::relu(x),
        }
    }
}

/// `fc2(f(fc1(x)))`, or `fc2(f(fc1(x)) gate(x))` with a gate (Shazeer 2020, arXiv 2002.05202).
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[D, hidden]`.
    pub fc1: Linear,
    /// `[D, hidden]`, in gated units.
    pub gate: Option<Linear>,
    /// `[hidden, outputs]`.
    pub fc2: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    /// From `[inputs, hidden, outputs]`; the second matrix starts divided by `shrink`.
    pub fn new(sizes: [usize; 3], activation: Activation, shrink: f64, init: &Init) -> Self {
        let [inputs, hidden, outputs] = sizes;
        let fc1 = init.linear(inputs, hidden, true, 1.0);
        let fc2 = init.linear(hidden, outputs, true, shrink);
        Self { fc1, gate: None, fc2, activation }
    }

    /// A gated unit, with or without biases, from `[inputs, hidden, outputs]`.
    pub fn gated(
        sizes: [usize; 3],
        biases: bool,
        activation: Activation,
        shrink: f64,
        init: &Init,
    ) -> Self {
        let [inputs, hidden, outputs] = sizes;
        let fc1 = init.linear(inputs, hidden, biases, 1.0);
        let gate = Some(init.linear(inputs, hidden, biases, 1.0));
        Self { fc1, gate, fc2: init.linear(hidden, outputs, biases, shrink), activation }
    }

    /// As [`Mlp::new`], with a second matrix that starts at 0, so that the layer starts as 0.
    pub fn zero_end(sizes: [usize; 3], activation: Activation, init: &Init) -> Self {
        let [inputs, hidden, outputs] = sizes;
        let fc1 = init.linear(inputs, hidden, true, 1.0);
        let bias = init.constant([outputs], 0.0);
        let fc2 = init.linear_of(init.constant([hidden, outputs], 0.0), Some(bias));
        Self { fc1, gate: None, fc2, activation }
    }

    /// `[.., inputs]`; returns `[.., outputs]`.
    pub fn forward<const R: usize>(&self, x: Tensor<R>) -> Tensor<R> {
        self.draw(x, None)
    }

    /// The same; adapters drop inputs when there is a key.
    pub fn draw<const R: usize>(&self, x: Tensor<R>, key: Option<&Key>) -> Tensor<R> {
        let hidden = self.fc1.named(x.clone(), "fc1", key);
        let hidden = match (&self.gate, self.activation) {
            (None, activation) => activation.apply(hidden),
            (Some(gate), Activation::Silu) => {
                glu_ops::silu_gate(hidden, gate.named(x, "gate", key))
            }
            (Some(gate), activation) => activation.apply(hidden) * gate.named(x, "gate", key),
        };
        self.fc2.named(hidden, "fc2", key)
    }
}
