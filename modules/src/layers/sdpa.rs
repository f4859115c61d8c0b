//! Attention on libtorch: its scaled-dot-product kernel, forward and backward, as one node.
//!
//! libtorch's own graph lives inside the node: the leaves are detached copies of q, k and v, and
//! the backward pass asks libtorch for their gradients.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, LibTorch, backend_extension};
use burn::tensor::Tensor;
use burn_tch::TchTensor;

#[backend_extension(LibTorch, Autodiff)]
pub(crate) trait SdpaOps: Backend {
    /// Softmax attention of `[B, heads, N, d]` with scale `1 / sqrt(d)`.
    fn sdpa(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self>;
}

fn kernel(q: &TchTensor, k: &TchTensor, v: &TchTensor) -> tch::Tensor {
    let (q, k, v) = (&q.tensor, &k.tensor, &v.tensor);
    let mask = None::<&tch::Tensor>;
    tch::Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, false, None::<f64>, false)
}

impl SdpaOps for LibTorch {
    fn sdpa(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self> {
        TchTensor::new(kernel(&q, &k, &v))
    }
}

#[derive(Debug)]
struct Sdpa;

impl Backward<LibTorch, 3> for Sdpa {
    /// The leaves q, k, v, and the output with libtorch's graph behind it.
    type State = [TchTensor; 4];

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = grads.consume::<LibTorch>(&ops.node);
        let [q, k, v, out] = ops.state;
        let product = (&out.tensor * &gradient.tensor).sum(None::<tch::Kind>);
        let leaves = [&q.tensor, &k.tensor, &v.tensor];
        let found = tch::Tensor::run_backward(&[product], &leaves, false, false);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<LibTorch>(parent.id, TchTensor::new(gradient));
            }
        }
    }
}

impl<C: CheckpointStrategy> SdpaOps for Autodiff<LibTorch, C> {
    fn sdpa(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((q, q_node), (k, k_node), (v, v_node)) =
            (q.into_parts(), k.into_parts(), v.into_parts());
        match Sdpa.prepare::<C>([q_node, k_node, v_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let leaf = |t: TchTensor| TchTensor {
                    tensor: t.tensor.detach().set_requires_grad(true),
                    storage: t.storage,
                };
                let (q, k, v) = (leaf(q), leaf(k), leaf(v));
                let tracked = kernel(&q, &k, &v);
                let out = TchTensor::new(tracked.detach());
                // The storage is shared, so that burn does not write into what libtorch keeps.
                let kept = TchTensor { tensor: tracked, storage: out.storage.clone() };
                prep.finish([q, k, v, kept], out)
            }
            OpsKind::UnTracked(prep) => prep.finish(<LibTorch as SdpaOps>::sdpa(q, k, v)),
        }
    }
}

/// Softmax attention of tensors on a libtorch device.
pub(crate) fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as SdpaOps>::sdpa(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn the_kernel_and_its_gradients_are_plain_attention() {
        super::super::attention_ops::tests::check(&attend, Device::libtorch());
    }

    #[test]
    fn inputs_that_are_not_tracked_give_the_same_output() {
        let draw = || {
            let normal = burn::tensor::Distribution::Normal(0.0, 1.0);
            Tensor::<4>::random([1, 2, 5, 8], normal, &Device::libtorch())
        };
        let (q, k, v) = (draw(), draw(), draw());
        let tracked = [&q, &k, &v].map(|t| t.clone().autodiff().require_grad());
        let [tq, tk, tv] = tracked;
        let off = attend(q, k, v) - attend(tq, tk, tv).inner();
        assert_eq!(off.abs().max().into_scalar::<f32>(), 0.0);
    }
}
