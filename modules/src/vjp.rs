//! The cut in the graph: gradients of outputs in, gradients of inputs and parameters out.
//!
//! The vector-Jacobian product of outputs y with arriving gradients g is the gradient of
//! Σ ⟨y, g⟩, where g is a constant. Its derivative with respect to y is exactly g, so a model
//! split over actors has the gradients of the model in one piece.

use burn::tensor::{Gradients, Tensor};

use crate::tensors::{AnyTensor, each_float};

/// Runs the backward pass from `outputs`, each with the gradient that arrived at it.
pub fn backward(outputs: Vec<(AnyTensor, AnyTensor)>) -> Option<Gradients> {
    outputs
        .into_iter()
        .map(|(output, gradient)| product(output, gradient))
        .reduce(|a, b| a + b)
        .map(|sum: Tensor<1>| sum.backward())
}

fn product(output: AnyTensor, gradient: AnyTensor) -> Tensor<1> {
    each_float!(output, y => weighted(y, gradient), _other => {
        unreachable!("gradients arrive at float ports only")
    })
}

fn weighted<const D: usize>(output: Tensor<D>, gradient: AnyTensor) -> Tensor<1> {
    let gradient = gradient.into_float::<D>().cast(output.dtype());
    (output * gradient).sum()
}
