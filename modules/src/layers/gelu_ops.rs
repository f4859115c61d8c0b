//! GELU as one node of the autodiff graph: it keeps its input.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
pub(crate) trait GeluOps: Backend {
    /// `x` times the normal distribution function at `x`, or its tanh approximation.
    fn gelu_of(x: FloatTensor<Self>, tanh: bool) -> FloatTensor<Self>;
}

/// The gradient of [`GeluOps`].
trait GeluKernel: GeluOps {
    fn backward(x: FloatTensor<Self>, d: FloatTensor<Self>, tanh: bool) -> FloatTensor<Self>;
}

#[cfg(feature = "flex")]
mod flex {
    use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

    use burn::backend::{Flex, TensorMetadata};
    use burn_flex::FlexTensor;

    use super::super::flex::{back, numbers, tensor, whole};
    use super::super::lanes::{erf, exp, over_rows, sigmoid};
    use super::{GeluKernel, GeluOps};

    /// `2 sqrt(2 / pi)`: (1 + tanh u) / 2 is the sigmoid of 2 u.
    const SLOPE: f32 = std::f32::consts::SQRT_2 * FRAC_2_SQRT_PI;
    const CUBIC: f32 = 0.044_715;

    #[inline(always)]
    fn normal(x: f32) -> f32 {
        0.5 * (1.0 + erf(x * FRAC_1_SQRT_2))
    }

    #[inline(always)]
    fn near_normal(x: f32) -> f32 {
        sigmoid(SLOPE * (x + CUBIC * x * x * x))
    }

    impl GeluOps for Flex {
        fn gelu_of(x: FlexTensor, tanh: bool) -> FlexTensor {
            let (shape, dtype) = (x.shape(), x.dtype());
            let x = whole(x);
            let x = numbers(&x);
            let mut out = vec![0.0; x.len()];
            over_rows(&mut out, 1, |first, out| {
                let pairs = out.iter_mut().zip(&x[first..]);
                match tanh {
                    true => pairs.for_each(|(out, x)| *out = x * near_normal(*x)),
                    false => pairs.for_each(|(out, x)| *out = x * normal(*x)),
                }
            });
            back(tensor(out, shape), dtype)
        }
    }

    impl GeluKernel for Flex {
        fn backward(x: FlexTensor, d: FlexTensor, tanh: bool) -> FlexTensor {
            let dtype = x.dtype();
            let (x, mut d) = (whole(x), whole(d));
            let x = numbers(&x);
            over_rows(d.storage_mut(), 1, |first, d| {
                let pairs = d.iter_mut().zip(&x[first..]);
                match tanh {
                    true => pairs.for_each(|(d, &x)| {
                        let near = near_normal(x);
                        let slope = SLOPE * (1.0 + 3.0 * CUBIC * x * x);
                        *d *= near + x * near * (1.0 - near) * slope;
                    }),
                    false => pairs.for_each(|(d, &x)| {
                        let density = 0.5 * FRAC_2_SQRT_PI * FRAC_1_SQRT_2 * exp(-0.5 * x * x);
                        *d *= normal(x) + x * density;
                    }),
                }
            });
            back(d, dtype)
        }
    }
}

#[cfg(feature = "tch")]
mod libtorch {
    use burn::backend::LibTorch;
    use burn_tch::TchTensor;

    use super::{GeluKernel, GeluOps};

    fn name(tanh: bool) -> &'static str {
        if tanh { "tanh" } else { "none" }
    }

    impl GeluOps for LibTorch {
        fn gelu_of(x: TchTensor, tanh: bool) -> TchTensor {
            TchTensor::new(x.tensor.gelu(name(tanh)))
        }
    }

    impl GeluKernel for LibTorch {
        fn backward(x: TchTensor, d: TchTensor, tanh: bool) -> TchTensor {
            TchTensor::new(x.tensor.gelu_backward(&d.tensor, name(tanh)))
        }
    }
}

#[derive(Debug)]
struct Gelu;

impl<B: GeluKernel> Backward<B, 1> for Gelu {
    type State = (B::FloatTensorPrimitive, bool);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let d = grads.consume::<B>(&ops.node);
        let ((x, tanh), [parent]) = (ops.state, ops.parents);
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, B::backward(x, d, tanh));
        }
    }
}

impl<B: GeluKernel, C: CheckpointStrategy> GeluOps for Autodiff<B, C> {
    fn gelu_of(x: FloatTensor<Self>, tanh: bool) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let out = B::gelu_of(x.clone(), tanh);
        match Backward::<B, 1>::prepare::<C>(Gelu, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, tanh), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

/// GELU, exact or in its tanh approximation.
pub(crate) fn gelu<const R: usize>(x: Tensor<R>, tanh: bool) -> Tensor<R> {
    Tensor::from_dispatch(<Dispatch as GeluOps>::gelu_of(x.into_dispatch(), tanh))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, activation};

    fn check(device: Device, tanh: bool) {
        let device = device.autodiff();
        let points: Vec<f32> = (-40_000..40_000).map(|i| i as f32 * 3e-4).collect();
        let x = Tensor::<1>::from_floats(points.as_slice(), &device).require_grad();
        let plain = |x: Tensor<1>| match tanh {
            true => {
                let inner = x.clone().powi_scalar(3).mul_scalar(0.044_715) + x.clone();
                let inner = inner.mul_scalar((2.0 / std::f64::consts::PI).sqrt());
                x.mul_scalar(0.5) * inner.tanh().add_scalar(1.0)
            }
            false => activation::gelu(x),
        };
        let run = |out: Tensor<1>| {
            // Weights of different sizes, so that the incoming gradient counts.
            let all = (out.clone() * x.clone().inner().autodiff().sin()).sum().backward();
            [out.inner(), x.grad(&all).expect("a gradient")]
        };
        for (a, b) in run(gelu(x.clone(), tanh)).into_iter().zip(run(plain(x.clone()))) {
            let off = (a - b).abs().max().into_scalar::<f32>();
            assert!(off < 4e-6, "{off} {tanh}");
        }
    }

    #[test]
    fn outputs_and_gradients_are_those_of_tensor_operations() {
        for tanh in [false, true] {
            check(Device::flex(), tanh);
            #[cfg(feature = "tch")]
            check(Device::libtorch(), tanh);
        }
    }
}
