//! Attention on libtorch: its scaled-dot-product kernel, forward and backward, as one node.
//!
//! libtorch's own graph lives inside the node: the leaves are detached copies of q, k and v, and
//! the backward pass asks libtorch for their gradients.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, LibTorch};
use burn_tch::TchTensor;

use super::attention_ops::AttentionOps;

fn kernel(q: &TchTensor, k: &TchTensor, v: &TchTensor) -> tch::Tensor {
    let (q, k, v) = (&q.tensor, &k.tensor, &v.tensor);
    let mask = None::<&tch::Tensor>;
    tch::Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, false, None::<f64>, false)
}

impl AttentionOps for LibTorch {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
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

impl<C: CheckpointStrategy> AttentionOps for Autodiff<LibTorch, C> {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
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
            OpsKind::UnTracked(prep) => prep.finish(LibTorch::attend(q, k, v)),
        }
    }
}
