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
use super::spans::Spans;

/// What attention is computed from; where libtorch differentiates, leaves of its graph.
#[derive(Debug, Clone)]
struct Given {
    q: TchTensor,
    k: TchTensor,
    v: TchTensor,
    bias: Option<TchTensor>,
    spans: Option<Spans>,
}

/// Zeros and ones `[samples, 1, queries, keys]`: what each query sees.
fn seen(spans: &Spans, device: tch::Device) -> tch::Tensor {
    let [queries, keys] = spans.dims();
    let rows = (0..spans.samples()).flat_map(|s| (0..queries).map(move |q| spans.of(s, q)));
    let (first, end): (Vec<i64>, Vec<i64>) =
        rows.map(|[first, end]| (first as i64, end as i64)).unzip();
    let shape = [spans.samples() as i64, 1, queries as i64, 1];
    let along = |keys: &[i64]| tch::Tensor::from_slice(keys).to_device(device).reshape(shape);
    let key = tch::Tensor::arange(keys as i64, (tch::Kind::Int64, device));
    along(&first).le_tensor(&key).logical_and(&along(&end).gt_tensor(&key))
}

fn kernel(given: &Given) -> tch::Tensor {
    let Given { q, k, v, bias, spans } = given;
    let (q, k, v) = (&q.tensor, &k.tensor, &v.tensor);
    let bias = bias.as_ref().map(|bias| &bias.tensor);
    let causal = bias.is_none() && spans.as_ref().is_some_and(Spans::is_causal);
    let mask = spans.as_ref().filter(|_| !causal).map(|spans| seen(spans, q.device()));
    let mask = match (bias, mask) {
        (Some(bias), Some(mask)) => Some(bias.masked_fill(&mask.logical_not(), f64::NEG_INFINITY)),
        (Some(bias), None) => Some(bias.shallow_clone()),
        (None, mask) => mask,
    };
    let grouped = q.size()[1] != k.size()[1];
    tch::Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, None::<f64>, grouped)
}

impl AttentionOps for LibTorch {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: Option<Spans>,
    ) -> FloatTensor<Self> {
        TchTensor::new(kernel(&Given { q, k, v, bias: None, spans }))
    }

    fn attend_biased(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spans: Option<Spans>,
    ) -> FloatTensor<Self> {
        TchTensor::new(kernel(&Given { q, k, v, bias: Some(bias), spans }))
    }
}

#[derive(Debug)]
struct Sdpa;

impl<const N: usize> Backward<LibTorch, N> for Sdpa {
    /// The leaves, and the output with libtorch's graph behind it.
    type State = (Given, TchTensor);

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = grads.consume::<LibTorch>(&ops.node);
        let (Given { q, k, v, bias, .. }, out) = ops.state;
        let product = (&out.tensor * &gradient.tensor).sum(None::<tch::Kind>);
        let leaves = [&q, &k, &v].into_iter().chain(&bias).map(|leaf| &leaf.tensor);
        let leaves: Vec<_> = leaves.collect();
        let found = tch::Tensor::run_backward(&[product], &leaves, false, false);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                grads.register::<LibTorch>(parent.id, TchTensor::new(gradient));
            }
        }
    }
}

fn leaf(t: TchTensor) -> TchTensor {
    TchTensor { tensor: t.tensor.detach().set_requires_grad(true), storage: t.storage }
}

/// The leaves and libtorch's tracked output, and the output for burn.
fn tracked(given: Given) -> ((Given, TchTensor), TchTensor) {
    let Given { q, k, v, bias, spans } = given;
    let given = Given { q: leaf(q), k: leaf(k), v: leaf(v), bias: bias.map(leaf), spans };
    let tracked = kernel(&given);
    let out = TchTensor::new(tracked.detach());
    // The storage is shared, so that burn does not write into what libtorch keeps.
    let kept = TchTensor { tensor: tracked, storage: out.storage.clone() };
    ((given, kept), out)
}

impl<C: CheckpointStrategy> AttentionOps for Autodiff<LibTorch, C> {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: Option<Spans>,
    ) -> FloatTensor<Self> {
        let ((q, q_node), (k, k_node), (v, v_node)) =
            (q.into_parts(), k.into_parts(), v.into_parts());
        let given = Given { q, k, v, bias: None, spans };
        match Sdpa.prepare::<C>([q_node, k_node, v_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (state, out) = tracked(given);
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(TchTensor::new(kernel(&given))),
        }
    }

    fn attend_biased(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spans: Option<Spans>,
    ) -> FloatTensor<Self> {
        let ((q, q_node), (k, k_node)) = (q.into_parts(), k.into_parts());
        let ((v, v_node), (bias, bias_node)) = (v.into_parts(), bias.into_parts());
        let given = Given { q, k, v, bias: Some(bias), spans };
        let nodes = [q_node, k_node, v_node, bias_node];
        match Sdpa.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let (state, out) = tracked(given);
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(TchTensor::new(kernel(&given))),
        }
    }
}
