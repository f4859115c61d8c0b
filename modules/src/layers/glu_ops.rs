//! SiLU times a gate as one node of the autodiff graph: it keeps its two inputs.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
pub(crate) trait GluOps: Backend {
    /// `x sigmoid(x) gate`.
    fn silu_gate(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// The gradient of [`GluOps`].
trait GluKernel: GluOps {
    /// Gradients of x and of the gate.
    fn backward(
        x: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        d: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2];
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::{Flex, TensorMetadata};
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use super::super::flex::{back, numbers, tensor, whole};
    use super::super::lanes::{over_rows, rows_per_task, sigmoid, wide};
    use super::{GluKernel, GluOps};

    impl GluOps for Flex {
        fn silu_gate(x: FlexTensor, gate: FlexTensor) -> FlexTensor {
            let (shape, dtype) = (x.shape(), x.dtype());
            let (x, gate) = (whole(x), whole(gate));
            let (x, gate) = (numbers(&x), numbers(&gate));
            let mut out = vec![0.0; x.len()];
            over_rows(&mut out, 1, |first, out| {
                let pairs = x[first..].iter().zip(&gate[first..]);
                for (out, (x, gate)) in out.iter_mut().zip(pairs) {
                    *out = x * sigmoid(*x) * gate;
                }
            });
            back(tensor(out, shape), dtype)
        }
    }

    impl GluKernel for Flex {
        fn backward(x: FlexTensor, gate: FlexTensor, d: FlexTensor) -> [FlexTensor; 2] {
            let (shape, dtype) = (x.shape(), x.dtype());
            let (x, gate, mut d) = (whole(x), whole(gate), whole(d));
            let (x, gate) = (numbers(&x), numbers(&gate));
            let mut d_x = vec![0.0f32; x.len()];
            let task = rows_per_task(1);
            let d_gate = d.storage_mut::<f32>();
            let tasks = d_gate.par_chunks_mut(task).zip(d_x.par_chunks_mut(task)).enumerate();
            tasks.for_each(|(number, (d, d_x))| {
                wide(|| {
                    let pairs = x[number * task..].iter().zip(&gate[number * task..]);
                    for ((d, d_x), (&x, gate)) in d.iter_mut().zip(d_x).zip(pairs) {
                        let share = sigmoid(x);
                        *d_x = *d * gate * (share + x * share * (1.0 - share));
                        *d *= x * share;
                    }
                });
            });
            [back(tensor(d_x, shape), dtype), back(d, dtype)]
        }
    }
}

#[cfg(feature = "tch")]
mod libtorch {
    use burn::backend::LibTorch;
    use burn_tch::TchTensor;

    use super::{GluKernel, GluOps};

    impl GluOps for LibTorch {
        fn silu_gate(x: TchTensor, gate: TchTensor) -> TchTensor {
            TchTensor::new(x.tensor.silu() * &gate.tensor)
        }
    }

    impl GluKernel for LibTorch {
        fn backward(x: TchTensor, gate: TchTensor, d: TchTensor) -> [TchTensor; 2] {
            let d_x = x.tensor.silu_backward(&(&d.tensor * &gate.tensor));
            [d_x, d.tensor * x.tensor.silu()].map(TchTensor::new)
        }
    }
}

#[derive(Debug)]
struct Gated;

impl<B: GluKernel> Backward<B, 2> for Gated {
    type State = [B::FloatTensorPrimitive; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let d = grads.consume::<B>(&ops.node);
        let [x, gate] = ops.state;
        for (parent, gradient) in ops.parents.into_iter().zip(B::backward(x, gate, d)) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

impl<B: GluKernel, C: CheckpointStrategy> GluOps for Autodiff<B, C> {
    fn silu_gate(x: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((x, x_node), (gate, gate_node)) = (x.into_parts(), gate.into_parts());
        let out = B::silu_gate(x.clone(), gate.clone());
        let nodes = [x_node, gate_node];
        match Backward::<B, 2>::prepare::<C>(Gated, nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([x, gate], out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

/// `silu(x) gate`.
pub(crate) fn silu_gate<const R: usize>(x: Tensor<R>, gate: Tensor<R>) -> Tensor<R> {
    let (x, gate) = (x.into_dispatch(), gate.into_dispatch());
    Tensor::from_dispatch(<Dispatch as GluOps>::silu_gate(x, gate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution, activation};

    fn check(device: Device) {
        let device = device.autodiff();
        let draw = || {
            let normal = Distribution::Normal(0.0, 3.0);
            Tensor::<2>::random([150, 301], normal, &device).require_grad()
        };
        let (x, gate, weight) = (draw(), draw(), draw().inner());
        let run = |out: Tensor<2>| {
            let all = (out.clone() * weight.clone()).sum().backward();
            let gradient = |t: &Tensor<2>| t.grad(&all).expect("a gradient");
            [out.inner(), gradient(&x), gradient(&gate)]
        };
        let fused = run(silu_gate(x.clone(), gate.clone()));
        let plain = run(activation::silu(x.clone()) * gate.clone());
        for (a, b) in fused.into_iter().zip(plain) {
            let size = b.clone().abs().max().into_scalar::<f32>();
            let off = (a - b).abs().max().into_scalar::<f32>();
            assert!(off < 1e-6 * size, "{off} of {size}");
        }
    }

    #[test]
    fn outputs_and_gradients_are_those_of_tensor_operations() {
        check(Device::flex());
        #[cfg(feature = "tch")]
        check(Device::libtorch());
    }
}
