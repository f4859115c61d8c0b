//! The cut in the graph: gradients of outputs in, gradients of inputs and parameters out.
//!
//! An arriving gradient is registered on its output as if the next node had been part of the
//! graph, so a model split over actors has the gradients of the model in one piece, bit for bit.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients as Registry;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Gradients, Shape, Tensor};

use crate::tensors::{AnyTensor, each_float};

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
pub(crate) trait InjectOps: Backend {
    /// A scalar 0 whose gradient with respect to `output` is `gradient`.
    fn inject(output: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self>;
}

fn zero<B: Backend>(like: &B::FloatTensorPrimitive) -> B::FloatTensorPrimitive {
    B::float_zeros(Shape::new([1]), &like.device(), like.dtype().into())
}

#[cfg(feature = "flex")]
impl InjectOps for burn::backend::Flex {
    fn inject(output: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        zero::<Self>(&output)
    }
}

#[cfg(feature = "tch")]
impl InjectOps for burn::backend::LibTorch {
    fn inject(output: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        zero::<Self>(&output)
    }
}

/// Hands the gradient that it holds to its parent, whatever arrives.
#[derive(Debug)]
struct Inject;

impl<B: Backend> Backward<B, 1> for Inject {
    type State = B::FloatTensorPrimitive;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Registry, _: &mut Checkpointer) {
        let _one = grads.consume::<B>(&ops.node);
        if let Some(parent) = &ops.parents[0] {
            grads.register::<B>(parent.id, ops.state);
        }
    }
}

impl<B: Backend + InjectOps, C: CheckpointStrategy> InjectOps for Autodiff<B, C> {
    fn inject(output: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        let (output, node) = output.into_parts();
        let gradient = gradient.into_primitive();
        let scalar = B::inject(output, gradient.clone());
        match Inject.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(gradient, scalar),
            OpsKind::UnTracked(prep) => prep.finish(scalar),
        }
    }
}

/// Runs the backward pass from `outputs`, each with the gradient that arrived at it. An output
/// that nothing trainable leads to is left out.
pub fn backward(outputs: Vec<(AnyTensor, AnyTensor)>) -> Option<Gradients> {
    outputs
        .into_iter()
        .filter(|(output, _)| each_float!(output, y => y.is_tracked(), _other => false))
        .map(|(output, gradient)| seed(output, gradient))
        .reduce(|a, b| a + b)
        .map(|sum: Tensor<1>| sum.backward())
}

fn seed(output: AnyTensor, gradient: AnyTensor) -> Tensor<1> {
    each_float!(output, y => injected(y, gradient), _other => {
        unreachable!("gradients arrive at float ports only")
    })
}

fn injected<const D: usize>(output: Tensor<D>, gradient: AnyTensor) -> Tensor<1> {
    let gradient = gradient.into_float::<D>().cast(output.dtype());
    assert_eq!(output.dims(), gradient.dims(), "a gradient has the shape of its output");
    let (output, gradient) = (output.into_dispatch(), gradient.autodiff().into_dispatch());
    Tensor::from_dispatch(<Dispatch as InjectOps>::inject(output, gradient))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn a_split_graph_has_the_gradient_of_the_whole() {
        let device = Device::flex();
        let x = || Tensor::<2>::from_data([[0.3, -1.2], [0.7, 2.0]], &device).autodiff();
        let first = |x: Tensor<2>| (x.clone() * x).exp();
        let second = |y: Tensor<2>| y.log().powi_scalar(3).sum();

        let whole = x().require_grad();
        let expected = whole.grad(&second(first(whole.clone())).backward()).unwrap();

        let start = x().require_grad();
        let output = first(start.clone());
        let middle = output.clone().inner().autodiff().require_grad();
        let arriving = middle.grad(&second(middle.clone()).backward()).unwrap();
        let all = backward(vec![(output.into(), arriving.inner().into())]).unwrap();
        let found = start.grad(&all).unwrap();
        assert_eq!(found.into_data(), expected.into_data());
    }
}
