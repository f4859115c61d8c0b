//! A small network between two widths.

use burn::module::Module;
use burn::tensor::Tensor;

use super::mlp::{Activation, Mlp};
use super::norm::Norm;
use crate::init::Init;

/// From one width to another: linear, exact GELU, linear, LayerNorm.
#[derive(Module, Debug)]
pub struct Bridge {
    /// The two matrices.
    pub mlp: Mlp,
    /// After them.
    pub norm: Norm,
}

impl Bridge {
    /// A bridge between these widths.
    pub fn new(inputs: usize, outputs: usize, init: &Init) -> Self {
        let mlp = Mlp::new([inputs, inputs, outputs], Activation::Gelu, 1.0, init);
        Self { mlp, norm: Norm::layer(outputs, 1e-5, init) }
    }

    /// `[B, N, inputs]`; returns `[B, N, outputs]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        self.norm.forward(self.mlp.forward(x))
    }
}
