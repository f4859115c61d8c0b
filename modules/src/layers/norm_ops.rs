//! Normalisation over the last dim as one node of the autodiff graph.
//!
//! Written with tensor operations it is ten passes over the tensor and twice as many backward, each of which
//! the graph keeps. The node keeps the input and the weight.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::{Shape, Tensor};

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
pub(crate) trait NormOps: Backend {
    /// `weight x / sqrt(mean(x^2) + eps)` over the last dim of `x`.
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self>;
    /// `weight (x - mean(x)) / sqrt(var(x) + eps) + bias` over the last dim of `x`.
    fn affine_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self>;
}

/// What a backend computes for both norms, here with tensor operations.
trait NormKernel: Backend {
    /// With a bias the mean is taken off first.
    fn forward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let x = centred::<Self>(x, bias.is_some());
        let y = Self::float_mul(x.clone(), reciprocal::<Self>(x, eps));
        let y = Self::float_mul(y.clone(), along::<Self>(&y, weight));
        match bias {
            Some(bias) => Self::float_add(y.clone(), along::<Self>(&y, bias)),
            None => y,
        }
    }

    /// Gradients of x, of the weight, and of the bias where there is one.
    fn backward(kept: Kept<FloatTensor<Self>>, d: FloatTensor<Self>) -> Gradient<Self> {
        let Kept { x, weight, eps, affine } = kept;
        let last = x.shape().num_dims() - 1;
        let width = x.shape()[last];
        let x = centred::<Self>(x, affine);
        let scale = reciprocal::<Self>(x.clone(), eps);
        let normal = Self::float_mul(x, scale.clone());
        let over_rows = |t: FloatTensor<Self>| {
            let rows = t.shape().num_elements() / width.max(1);
            let rows = Self::float_reshape(t, Shape::new([rows, width]));
            Self::float_reshape(Self::float_sum_dim(rows, 0), Shape::new([width]))
        };
        let d_bias = affine.then(|| over_rows(d.clone()));
        let d_weight = over_rows(Self::float_mul(d.clone(), normal.clone()));
        let d = Self::float_mul(d.clone(), along::<Self>(&d, weight));
        let slope = Self::float_mean_dim(Self::float_mul(d.clone(), normal.clone()), last);
        let d_x = Self::float_sub(d.clone(), Self::float_mul(normal, slope));
        let d_x = match affine {
            true => Self::float_sub(d_x, Self::float_mean_dim(d, last)),
            false => d_x,
        };
        (Self::float_mul(d_x, scale), d_weight, d_bias)
    }
}

/// Gradients of x, weight and bias.
type Gradient<B> = (FloatTensor<B>, FloatTensor<B>, Option<FloatTensor<B>>);

fn centred<B: Backend>(x: FloatTensor<B>, affine: bool) -> FloatTensor<B> {
    let last = x.shape().num_dims() - 1;
    match affine {
        true => B::float_sub(x.clone(), B::float_mean_dim(x, last)),
        false => x,
    }
}

/// The reciprocal of each row's scale.
fn reciprocal<B: Backend>(x: FloatTensor<B>, eps: f64) -> FloatTensor<B> {
    let last = x.shape().num_dims() - 1;
    let square = B::float_mean_dim(B::float_mul(x.clone(), x), last);
    B::float_recip(B::float_sqrt(B::float_add_scalar(square, eps.into())))
}

/// A vector with leading dims of 1, as many as the rows have.
fn along<B: Backend>(rows: &FloatTensor<B>, vector: FloatTensor<B>) -> FloatTensor<B> {
    let mut shape = vec![1; rows.shape().num_dims()];
    *shape.last_mut().expect("a tensor has dims") = vector.shape().num_elements();
    B::float_reshape(vector, Shape::from(shape))
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
struct Kept<T> {
    x: T,
    weight: T,
    eps: f64,
    /// The mean was taken off, and there is a bias.
    affine: bool,
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::{Flex, TensorMetadata};
    use burn::tensor::Shape;
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use super::super::flex::{numbers, tensor, whole};
    use super::super::lanes::{over_rows, rows_per_task, sum, wide};
    use super::{Gradient, Kept, NormKernel, NormOps};

    impl NormOps for Flex {
        fn rms_norm(x: FlexTensor, weight: FlexTensor, eps: f64) -> FlexTensor {
            Self::forward(x, weight, None, eps)
        }

        fn affine_norm(
            x: FlexTensor,
            weight: FlexTensor,
            bias: FlexTensor,
            eps: f64,
        ) -> FlexTensor {
            Self::forward(x, weight, Some(bias), eps)
        }
    }

    /// What a row is normalised with: its mean (0 where it stays) and the reciprocal of its scale.
    #[inline(always)]
    fn statistics(x: &[f32], affine: bool, eps: f32) -> (f32, f32) {
        let width = x.len() as f32;
        let mean = if affine { sum(x.len(), |i| x[i]) / width } else { 0.0 };
        let square = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean));
        (mean, 1.0 / (square / width + eps).sqrt())
    }

    impl NormKernel for Flex {
        fn forward(
            x: FlexTensor,
            weight: FlexTensor,
            bias: Option<FlexTensor>,
            eps: f64,
        ) -> FlexTensor {
            let shape = x.shape();
            let (x, weight, bias) = (whole(x), whole(weight), bias.map(whole));
            let (x, w) = (numbers(&x), numbers(&weight));
            let bias = bias.as_ref().map(numbers);
            let width = w.len();
            let mut out = vec![0.0; x.len()];
            over_rows(&mut out, width, |first, out| {
                let x = x[first * width..].chunks_exact(width);
                for (x, out) in x.zip(out.chunks_exact_mut(width)) {
                    let (mean, scale) = statistics(x, bias.is_some(), eps as f32);
                    match bias {
                        Some(b) => {
                            for (((out, x), w), b) in out.iter_mut().zip(x).zip(w).zip(b) {
                                *out = (x - mean) * scale * w + b;
                            }
                        }
                        None => {
                            for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
                                *out = x * scale * w;
                            }
                        }
                    }
                }
            });
            tensor(out, shape)
        }

        fn backward(kept: Kept<FlexTensor>, gradient: FlexTensor) -> Gradient<Self> {
            let Kept { x, weight, eps, affine } = kept;
            let (x, weight, mut gradient) = (whole(x), whole(weight), whole(gradient));
            let (x, w) = (numbers(&x), numbers(&weight));
            let width = w.len();
            let rows = rows_per_task(width);
            let task =
                |(x, d): (&[f32], &mut [f32])| wide(|| rows_backward(x, d, w, affine, eps as f32));
            // Each task's sums over its rows, added in the order of the tasks.
            let chunks = gradient.storage_mut::<f32>().par_chunks_mut(rows * width);
            let sums: Vec<_> = x.par_chunks(rows * width).zip(chunks).map(task).collect();
            let (mut d_weight, mut d_bias) = (vec![0.0; width], vec![0.0; width]);
            for (weights, biases) in sums {
                d_weight.iter_mut().zip(weights).for_each(|(sum, d)| *sum += d);
                d_bias.iter_mut().zip(biases).for_each(|(sum, d)| *sum += d);
            }
            let along = |d| tensor(d, Shape::new([width]));
            (gradient, along(d_weight), affine.then(|| along(d_bias)))
        }
    }

    /// Turns the gradients of some rows of the output into those of the input; returns the sums over these rows
    /// for the weight and the bias.
    #[inline(always)]
    fn rows_backward(
        x: &[f32],
        d: &mut [f32],
        w: &[f32],
        affine: bool,
        eps: f32,
    ) -> (Vec<f32>, Vec<f32>) {
        let width = w.len();
        let (mut d_weight, mut d_bias) = (vec![0.0; width], vec![0.0; width]);
        for (x, d) in x.chunks_exact(width).zip(d.chunks_exact_mut(width)) {
            let (x, d) = (&x[..width], &mut d[..width]);
            let (mean, scale) = statistics(x, affine, eps);
            let along = sum(width, |i| d[i] * w[i] * (x[i] - mean)) * scale / width as f32;
            let level = if affine { sum(width, |i| d[i] * w[i]) / width as f32 } else { 0.0 };
            let sums = d_weight.iter_mut().zip(&mut d_bias);
            for (((x, d), w), (d_weight, d_bias)) in x.iter().zip(d).zip(w).zip(sums) {
                let normal = (x - mean) * scale;
                *d_weight += *d * normal;
                *d_bias += *d;
                *d = (*d * w - level - normal * along) * scale;
            }
        }
        (d_weight, d_bias)
    }
}

#[cfg(feature = "tch")]
impl NormKernel for burn::backend::LibTorch {}

#[cfg(feature = "tch")]
impl NormOps for burn::backend::LibTorch {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        Self::forward(x, weight, None, eps)
    }

    fn affine_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        Self::forward(x, weight, Some(bias), eps)
    }
}

/// The backward pass of both norms.
#[derive(Debug)]
struct Normed;

impl<B: NormKernel, const N: usize> Backward<B, N> for Normed {
    type State = Kept<B::FloatTensorPrimitive>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let d = grads.consume::<B>(&ops.node);
        let (d_x, d_weight, d_bias) = B::backward(ops.state, d);
        let gradients = [Some(d_x), Some(d_weight), d_bias];
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: NormOps + NormKernel, C: CheckpointStrategy> NormOps for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f64) -> FloatTensor<Self> {
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let out = B::forward(x.clone(), weight.clone(), None, eps);
        match Backward::<B, 2>::prepare::<C>(Normed, [x_node, weight_node])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => prep.finish(Kept { x, weight, eps, affine: false }, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }

    fn affine_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let ((x, x_node), (weight, weight_node)) = (x.into_parts(), weight.into_parts());
        let (bias, bias_node) = bias.into_parts();
        let out = B::forward(x.clone(), weight.clone(), Some(bias), eps);
        let nodes = [x_node, weight_node, bias_node];
        match Backward::<B, 3>::prepare::<C>(Normed, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(Kept { x, weight, eps, affine: true }, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

/// RMSNorm without a bias, LayerNorm with one, over the last dim.
pub(crate) fn norm<const R: usize>(
    x: Tensor<R>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    eps: f64,
) -> Tensor<R> {
    let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
    Tensor::from_dispatch(match bias {
        Some(bias) => <Dispatch as NormOps>::affine_norm(x, weight, bias.into_dispatch(), eps),
        None => <Dispatch as NormOps>::rms_norm(x, weight, eps),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    /// Output and gradients are those of the same norm in tensor operations.
    fn check(device: Device, rows: usize, width: usize, affine: bool) {
        let device = device.autodiff();
        let draw = |mean| Distribution::Normal(mean, 1.0);
        let x = Tensor::<3>::random([2, rows, width], draw(0.5), &device).require_grad();
        let weight = Tensor::<1>::random([width], draw(1.0), &device).require_grad();
        let bias = Tensor::<1>::random([width], draw(0.0), &device).require_grad();
        let push = Tensor::<3>::random([2, rows, width], draw(0.0), &device);
        let plain = || {
            let x = if affine { x.clone() - x.clone().mean_dim(2) } else { x.clone() };
            let scale = (x.clone() * x.clone()).mean_dim(2).add_scalar(1e-6).sqrt();
            let y = x / scale * weight.clone().unsqueeze();
            if affine { y + bias.clone().unsqueeze() } else { y }
        };
        let fused = || norm(x.clone(), weight.clone(), affine.then(|| bias.clone()), 1e-6);
        let run = |out: Tensor<3>| {
            let all = (out.clone() * push.clone()).sum().backward();
            let flat = |t: Tensor<1>| t.grad(&all).expect("a gradient");
            let d_x = x.grad(&all).expect("a gradient").reshape([-1]);
            let d_bias = affine.then(|| flat(bias.clone()));
            [Some(out.inner().reshape([-1])), Some(d_x), Some(flat(weight.clone())), d_bias]
        };
        for (a, b) in run(fused()).into_iter().zip(run(plain())) {
            let (Some(a), Some(b)) = (a, b) else { continue };
            let size = b.clone().abs().max().into_scalar::<f32>().max(1.0);
            let off = (a - b).abs().max().into_scalar::<f32>();
            assert!(off < 1e-5 * size, "{off} of {size}: {rows} {width} {affine}");
        }
    }

    #[test]
    fn outputs_and_gradients_are_those_of_tensor_operations() {
        for (rows, width) in [(1, 1), (3, 5), (7, 64), (40, 100), (300, 200)] {
            for affine in [false, true] {
                if width > 1 || !affine {
                    check(Device::flex(), rows, width, affine);
                    #[cfg(feature = "tch")]
                    check(Device::libtorch(), rows, width, affine);
                }
            }
        }
    }

    #[test]
    fn rows_that_are_not_in_one_piece_are_normalised_as_they_are() {
        let x = Tensor::<2>::random([6, 8], Distribution::Normal(0.0, 1.0), &Device::flex());
        let weight = Tensor::<1>::ones([6], &Device::flex());
        let turned = norm(x.clone().transpose(), weight.clone(), None, 1e-6);
        let copied = Tensor::<2>::from_data(x.transpose().into_data(), &Device::flex());
        assert_eq!(turned.into_data(), norm(copied, weight, None, 1e-6).into_data());
    }
}
