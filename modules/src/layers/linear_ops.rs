//! `x W + b` as one node of the autodiff graph.
//!
//! Leading dims are rows: a product of tensors would make one gradient of W per sample and add them
//! up afterwards. What a backward pass does not need is not kept: x only where W learns, W only where
//! a gradient of x is wanted.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
pub(crate) trait LinearOps: Backend {
    /// `x W`: `[.., I]` by `[I, O]`.
    fn times(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `x W + b`, with b `[O]`.
    fn affine(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// What both operations and their gradients are made of.
trait LinearKernel: LinearOps {
    /// `x W`, and b if there is one.
    fn forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self>;

    /// `d Wᵀ`: `[.., I]` of `[.., O]`.
    fn d_x(d: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;

    /// `xᵀ d`, `[I, O]`.
    fn d_weight(x: FloatTensor<Self>, d: FloatTensor<Self>) -> FloatTensor<Self>;

    /// The sum of all rows, `[O]`.
    fn d_bias(d: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::{Flex, TensorMetadata};
    use burn::tensor::Shape;
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use super::super::flex::{back, numbers, tensor, whole};
    use super::super::lanes::{over_rows, wide};
    use super::super::matrices::Matrix;
    use super::{LinearKernel, LinearOps};

    /// Up to so many rows, the gradient of x is cheaper by columns: packing W dominates otherwise.
    /// Measured on two cores with AVX-512: twice as fast at 128 rows, as fast at 512.
    const FEW: usize = 512;

    /// Columns that one task sums.
    const COLUMNS: usize = 256;

    /// Edge of the squares that a matrix is transposed by.
    const SQUARE: usize = 16;

    impl LinearOps for Flex {
        fn times(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
            Self::forward(x, weight, None)
        }

        fn affine(x: FlexTensor, weight: FlexTensor, bias: FlexTensor) -> FlexTensor {
            Self::forward(x, weight, Some(bias))
        }
    }

    /// The shape with another extent of the last dim.
    fn reshaped(shape: &Shape, last: usize) -> Shape {
        let mut dims = shape.to_vec();
        if let Some(dim) = dims.last_mut() {
            *dim = last;
        }
        Shape::from(dims)
    }

    impl LinearKernel for Flex {
        fn forward(x: FlexTensor, weight: FlexTensor, bias: Option<FlexTensor>) -> FlexTensor {
            let (shape, dtype) = (x.shape(), x.dtype());
            let (x, weight) = (whole(x), whole(weight));
            let [inputs, outputs] = weight.shape().dims();
            let rows = numbers(&x).len() / inputs.max(1);
            let mut out = match bias {
                Some(bias) => numbers(&whole(bias)).repeat(rows),
                None => vec![0.0; rows * outputs],
            };
            let add = true; // what the rows start with: the bias, or zeros
            let a = Matrix::read(numbers(&x), rows, inputs);
            let b = Matrix::read(numbers(&weight), inputs, outputs);
            // SAFETY: the operands are other tensors, which live; `out` is written here alone.
            unsafe { Matrix::of(&mut out, rows, outputs).product_by_all(add, a, b) };
            back(tensor(out, reshaped(&shape, outputs)), dtype)
        }

        fn d_x(d: FlexTensor, weight: FlexTensor) -> FlexTensor {
            let (shape, dtype) = (d.shape(), d.dtype());
            let (d, weight) = (whole(d), whole(weight));
            let [inputs, outputs] = weight.shape().dims();
            let rows = numbers(&d).len() / outputs.max(1);
            let a = Matrix::read(numbers(&d), rows, outputs);
            let b = Matrix::read(numbers(&weight), inputs, outputs).transposed();
            let mut out = vec![0.0; rows * inputs];
            let by_columns = rows <= FEW.min(inputs);
            let into = match by_columns {
                true => Matrix::of(&mut out, inputs, rows).transposed(),
                false => Matrix::of(&mut out, rows, inputs),
            };
            // SAFETY: as above.
            unsafe { into.product_by_all(false, a, b) };
            if by_columns {
                out = transposed(&out, inputs, rows);
            }
            back(tensor(out, reshaped(&shape, inputs)), dtype)
        }

        fn d_weight(x: FlexTensor, d: FlexTensor) -> FlexTensor {
            let dtype = x.dtype();
            let last = |x: &FlexTensor| x.shape().to_vec().last().copied().unwrap_or(1);
            let (inputs, outputs) = (last(&x), last(&d));
            let (x, d) = (whole(x), whole(d));
            let rows = numbers(&x).len() / inputs.max(1);
            let a = Matrix::read(numbers(&x), rows, inputs).transposed();
            let b = Matrix::read(numbers(&d), rows, outputs);
            let mut out = vec![0.0; inputs * outputs];
            // SAFETY: as above.
            unsafe { Matrix::of(&mut out, inputs, outputs).product_by_all(false, a, b) };
            back(tensor(out, Shape::new([inputs, outputs])), dtype)
        }

        fn d_bias(d: FlexTensor) -> FlexTensor {
            let dtype = d.dtype();
            let outputs = d.shape().to_vec().last().copied().unwrap_or(1);
            let d = whole(d);
            let mut out = vec![0.0f32; outputs];
            // Each column is summed from the first row to the last, whatever the threads.
            out.par_chunks_mut(COLUMNS).enumerate().for_each(|(task, out)| {
                wide(|| {
                    for row in numbers(&d).chunks_exact(outputs) {
                        for (sum, value) in out.iter_mut().zip(&row[task * COLUMNS..]) {
                            *sum += value;
                        }
                    }
                });
            });
            back(tensor(out, Shape::new([outputs])), dtype)
        }
    }

    /// `[rows, columns]` in row order from `[columns, rows]`.
    fn transposed(x: &[f32], columns: usize, rows: usize) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        over_rows(&mut out, SQUARE * columns, |first, out| {
            // A task has whole bands of rows; the last band may be lower.
            let first = first * SQUARE;
            for (number, band) in out.chunks_mut(SQUARE * columns).enumerate() {
                let first = first + number * SQUARE;
                let height = band.len() / columns;
                for start in (0..columns).step_by(SQUARE) {
                    for column in start..columns.min(start + SQUARE) {
                        let from = &x[column * rows + first..][..height];
                        for (row, value) in from.iter().enumerate() {
                            band[row * columns + column] = *value;
                        }
                    }
                }
            }
        });
        out
    }
}

#[cfg(feature = "tch")]
mod libtorch {
    use burn::backend::LibTorch;
    use burn_tch::TchTensor;
    use tch::{Kind, Tensor};

    use super::{LinearKernel, LinearOps};

    impl LinearOps for LibTorch {
        fn times(x: TchTensor, weight: TchTensor) -> TchTensor {
            Self::forward(x, weight, None)
        }

        fn affine(x: TchTensor, weight: TchTensor, bias: TchTensor) -> TchTensor {
            Self::forward(x, weight, Some(bias))
        }
    }

    /// All dims but the last as one.
    fn rows(x: &Tensor) -> Tensor {
        x.reshape([-1, x.size().last().copied().unwrap_or(1)])
    }

    /// Rows with the leading dims of another tensor.
    fn shaped(rows: Tensor, like: &Tensor) -> Tensor {
        let mut dims = like.size();
        if let (Some(dim), Some(last)) = (dims.last_mut(), rows.size().last()) {
            *dim = *last;
        }
        rows.reshape(dims)
    }

    impl LinearKernel for LibTorch {
        fn forward(x: TchTensor, weight: TchTensor, bias: Option<TchTensor>) -> TchTensor {
            let (x, weight) = (x.tensor, weight.tensor);
            let out = match bias {
                Some(bias) => bias.tensor.addmm(&rows(&x), &weight),
                None => rows(&x).mm(&weight),
            };
            TchTensor::new(shaped(out, &x))
        }

        fn d_x(d: TchTensor, weight: TchTensor) -> TchTensor {
            let d_x = rows(&d.tensor).mm(&weight.tensor.tr());
            TchTensor::new(shaped(d_x, &d.tensor))
        }

        fn d_weight(x: TchTensor, d: TchTensor) -> TchTensor {
            TchTensor::new(rows(&x.tensor).tr().mm(&rows(&d.tensor)))
        }

        fn d_bias(d: TchTensor) -> TchTensor {
            TchTensor::new(rows(&d.tensor).sum_dim_intlist(0i64, false, None::<Kind>))
        }
    }
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
struct Kept<F> {
    x: Option<F>,
    weight: Option<F>,
}

fn kept<B: Backend, C: CheckpointStrategy>(
    x: &FloatTensor<Autodiff<B, C>>,
    weight: &FloatTensor<Autodiff<B, C>>,
) -> Kept<FloatTensor<B>> {
    Kept {
        x: weight.is_tracked().then(|| x.primitive().clone()),
        weight: x.is_tracked().then(|| weight.primitive().clone()),
    }
}

#[derive(Debug)]
struct Multiplied;

impl<B: LinearKernel, const N: usize> Backward<B, N> for Multiplied {
    type State = Kept<B::FloatTensorPrimitive>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let d = grads.consume::<B>(&ops.node);
        let Kept { x, weight } = ops.state;
        let mut parents = ops.parents.into_iter();
        let mut parent = || parents.next().flatten();
        if let (Some(parent), Some(weight)) = (parent(), weight) {
            grads.register::<B>(parent.id, B::d_x(d.clone(), weight));
        }
        if let (Some(parent), Some(x)) = (parent(), x) {
            grads.register::<B>(parent.id, B::d_weight(x, d.clone()));
        }
        if let Some(parent) = parent() {
            grads.register::<B>(parent.id, B::d_bias(d));
        }
    }
}

impl<B: LinearKernel, C: CheckpointStrategy> LinearOps for Autodiff<B, C> {
    fn times(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let kept = kept::<B, C>(&x, &weight);
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let out = B::forward(x, weight, None);
        let nodes = [x_node, weight_node];
        match Backward::<B, 2>::prepare::<C>(Multiplied, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(kept, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn affine(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let kept = kept::<B, C>(&x, &weight);
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (bias, bias_node) = bias.into_parts();
        let out = B::forward(x, weight, Some(bias));
        let nodes = [x_node, weight_node, bias_node];
        match Backward::<B, 3>::prepare::<C>(Multiplied, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(kept, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

/// `x W + b`: `[.., I]` by `[I, O]`, and `[O]`; returns `[.., O]`.
pub(crate) fn linear<const R: usize>(
    x: Tensor<R>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<R> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(match bias {
        Some(bias) => <Dispatch as LinearOps>::affine(x, weight, bias.into_dispatch()),
        None => <Dispatch as LinearOps>::times(x, weight),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    /// Output and gradients are those of a product and a sum.
    fn check(device: Device, dims: [usize; 3], outputs: usize, bias: bool) {
        let device = device.autodiff();
        let normal = Distribution::Normal(0.0, 1.0);
        let x = Tensor::<3>::random(dims, normal, &device).require_grad();
        let weight = Tensor::<2>::random([dims[2], outputs], normal, &device).require_grad();
        let b = Tensor::<1>::random([outputs], normal, &device).require_grad();
        let push = Tensor::<3>::random([dims[0], dims[1], outputs], normal, &device);
        let run = |out: Tensor<3>| {
            let all = (out.clone() * push.clone()).sum().backward();
            let d_b = if bias {
                b.grad(&all).unwrap()
            } else {
                Tensor::zeros([1], &device.clone().inner())
            };
            [
                out.inner().flatten::<1>(0, 2),
                x.grad(&all).unwrap().flatten(0, 2),
                weight.grad(&all).unwrap().flatten(0, 1),
                d_b,
            ]
        };
        let plain = x.clone().matmul(weight.clone().unsqueeze());
        let plain = if bias { plain + b.clone().unsqueeze() } else { plain };
        let fused = linear(x.clone(), weight.clone(), bias.then(|| b.clone()));
        for (a, b) in run(fused).into_iter().zip(run(plain)) {
            let size = b.clone().abs().max().into_scalar::<f32>() + 1e-6;
            let off = (a - b).abs().max().into_scalar::<f32>();
            assert!(off < 1e-5 * size, "{off} of {size} at {dims:?} to {outputs}");
        }
    }

    #[test]
    fn outputs_and_gradients_are_those_of_tensor_operations() {
        // Few rows and many, narrow and wide, extents that no square divides.
        for (dims, outputs) in
            [([2, 3, 5], 7), ([3, 67, 301], 45), ([2, 300, 33], 130), ([1, 1, 1], 1)]
        {
            for bias in [true, false] {
                check(Device::flex(), dims, outputs, bias);
                #[cfg(feature = "tch")]
                check(Device::libtorch(), dims, outputs, bias);
            }
        }
    }

    #[test]
    fn a_gradient_passes_through_frozen_weights() {
        let device = Device::flex().autodiff();
        let x = Tensor::<2>::ones([2, 3], &device).require_grad();
        let weight = Tensor::<2>::full([3, 4], 0.5, &device);
        let all = linear(x.clone(), weight.clone(), None).sum().backward();
        let d_x: Vec<f32> = x.grad(&all).unwrap().into_data().try_to_vec().unwrap();
        assert_eq!(d_x, [2.0; 6]);
        assert!(weight.grad(&all).is_none());
    }

    #[test]
    fn a_transposed_matrix_multiplies_as_its_copy_does() {
        let device = Device::flex();
        let normal = Distribution::Normal(0.0, 1.0);
        let kernel = Tensor::<2>::random([6, 10], normal, &device);
        let x = Tensor::<2>::random([4, 10], normal, &device);
        let other = x.clone().matmul(kernel.clone().transpose());
        let off = (linear(x, kernel.transpose(), None) - other).abs().max().into_scalar::<f32>();
        assert!(off < 1e-5, "{off}");
    }
}
