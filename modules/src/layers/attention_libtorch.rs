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
use super::dropout_ops::Draws;
use super::spans::Spans;

/// What attention is computed from; where libtorch differentiates, leaves of its graph.
#[derive(Debug, Clone)]
struct Given {
    q: TchTensor,
    k: TchTensor,
    v: TchTensor,
    bias: Option<TchTensor>,
    spans: Option<Spans>,
    drop: Option<Draws>,
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

/// Attention whose map loses entries. The kernel would draw them itself, with draws of its own.
fn dropped(
    q: &tch::Tensor,
    [k, v]: [&tch::Tensor; 2],
    (mask, causal): (Option<tch::Tensor>, bool),
    drop: &Draws,
) -> tch::Tensor {
    let group = q.size()[1] / k.size()[1];
    let many = |x: &tch::Tensor| match group {
        1 => x.shallow_clone(),
        _ => x.repeat_interleave_self_int(group, 1i64, None),
    };
    let (k, v) = (many(k), many(v));
    let width = q.size()[3] as f64;
    let mut scores = (q / width.sqrt()).matmul(&k.transpose(-2, -1));
    if let Some(mask) = mask {
        scores = match mask.kind() {
            tch::Kind::Bool => scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY),
            _ => scores + mask,
        };
    }
    if causal {
        let [queries, keys] = [q.size()[2], k.size()[2]];
        let later = tch::Tensor::ones([queries, keys], (tch::Kind::Bool, q.device())).triu(1);
        scores = scores.masked_fill(&later, f64::NEG_INFINITY);
    }
    let map = scores.softmax(-1, tch::Kind::Float);
    let factors = drop.tensor(&map);
    (map * factors).to_kind(v.kind()).matmul(&v)
}

fn kernel(given: &Given) -> tch::Tensor {
    let Given { q, k, v, bias, spans, drop } = given;
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
    if let Some(drop) = drop {
        return dropped(q, [k, v], (mask, causal), drop);
    }
    tch::Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, causal, None::<f64>, grouped)
}

impl AttentionOps for LibTorch {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: Option<Spans>,
        drop: Option<Draws>,
    ) -> FloatTensor<Self> {
        TchTensor::new(kernel(&Given { q, k, v, bias: None, spans, drop }))
    }

    fn attend_biased(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spans: Option<Spans>,
        drop: Option<Draws>,
    ) -> FloatTensor<Self> {
        TchTensor::new(kernel(&Given { q, k, v, bias: Some(bias), spans, drop }))
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
    let Given { q, k, v, bias, spans, drop } = given;
    let bias = bias.map(leaf);
    let given = Given { q: leaf(q), k: leaf(k), v: leaf(v), bias, spans, drop };
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
        drop: Option<Draws>,
    ) -> FloatTensor<Self> {
        let ((q, q_node), (k, k_node), (v, v_node)) =
            (q.into_parts(), k.into_parts(), v.into_parts());
        let given = Given { q, k, v, bias: None, spans, drop };
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
        drop: Option<Draws>,
    ) -> FloatTensor<Self> {
        let ((q, q_node), (k, k_node)) = (q.into_parts(), k.into_parts());
        let ((v, v_node), (bias, bias_node)) = (v.into_parts(), bias.into_parts());
        let given = Given { q, k, v, bias: Some(bias), spans, drop };
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
