//! Attention as one node of the autodiff graph.
//!
//! burn 0.22 decomposes attention under autodiff and keeps several N x N tensors. This op keeps
//! q, k, v and the output, and recomputes the scores in the backward pass, one tile of queries at
//! a time. The forward pass is the backend's own: on libtorch its scaled-dot-product kernel.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::Tensor;

/// Query rows whose scores exist at the same time.
const TILE: usize = 256;

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
pub(crate) trait AttentionOps: Backend {
    /// Softmax attention of `[B, heads, N, d]` with scale `1 / sqrt(d)`.
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
}

/// The backend's fused attention.
fn fused<B: Backend>(q: FloatTensor<B>, k: FloatTensor<B>, v: FloatTensor<B>) -> FloatTensor<B> {
    B::attention(q, k, v, None, None, Default::default())
}

#[cfg(feature = "flex")]
impl AttentionOps for burn::backend::Flex {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        fused::<Self>(q, k, v)
    }
}

#[cfg(feature = "tch")]
impl AttentionOps for burn::backend::LibTorch {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        fused::<Self>(q, k, v)
    }
}

/// The tiled backward pass, on any backend.
#[derive(Debug)]
struct Tiled;

impl<B: Backend> Backward<B, 3> for Tiled {
    type State = [B::FloatTensorPrimitive; 4];

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let d_out = grads.consume::<B>(&ops.node);
        let gradients = tiled_backward::<B>(ops.state, d_out);
        for (parent, gradient) in ops.parents.into_iter().zip(gradients) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, gradient);
            }
        }
    }
}

/// Gradients of q, k and v from the kept `[q, k, v, out]` and the gradient of `out`.
fn tiled_backward<B: Backend>(
    [q, k, v, out]: [B::FloatTensorPrimitive; 4],
    d_out: B::FloatTensorPrimitive,
) -> [B::FloatTensorPrimitive; 3] {
    let [batch, heads, queries, width] = q.shape().dims::<4>();
    let scale = 1.0 / (width as f64).sqrt();
    let rows = |t: &B::FloatTensorPrimitive, start: usize| {
        let end = (start + TILE).min(queries);
        let ranges = [(0..batch).into(), (0..heads).into(), (start..end).into(), (..).into()];
        B::float_slice(t.clone(), &ranges)
    };
    let (k_t, v_t) = (B::float_transpose(k.clone()), B::float_transpose(v));
    let (mut d_q, mut d_k, mut d_v) = (Vec::new(), None, None);
    for start in (0..queries).step_by(TILE) {
        let (q_i, out_i, d_i) = (rows(&q, start), rows(&out, start), rows(&d_out, start));
        let scores = B::float_matmul(q_i.clone(), k_t.clone());
        let p = B::softmax(B::float_mul_scalar(scores, scale.into()), 3);
        let d_p = B::float_matmul(d_i.clone(), v_t.clone());
        let delta = B::float_sum_dim(B::float_mul(d_i.clone(), out_i), 3);
        d_v = plus::<B>(d_v, B::float_matmul(B::float_transpose(p.clone()), d_i));
        let d_s = B::float_mul(p, B::float_sub(d_p, delta));
        let d_s = B::float_mul_scalar(d_s, scale.into());
        d_k = plus::<B>(d_k, B::float_matmul(B::float_transpose(d_s.clone()), q_i));
        d_q.push(B::float_matmul(d_s, k.clone()));
    }
    let whole = |sum: Option<_>| sum.expect("there is at least one query");
    [B::float_cat(d_q, 2), whole(d_k), whole(d_v)]
}

fn plus<B: Backend>(
    sum: Option<B::FloatTensorPrimitive>,
    more: B::FloatTensorPrimitive,
) -> Option<B::FloatTensorPrimitive> {
    Some(match sum {
        Some(sum) => B::float_add(sum, more),
        None => more,
    })
}

impl<B: Backend + AttentionOps, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let ((q, q_node), (k, k_node), (v, v_node)) =
            (q.into_parts(), k.into_parts(), v.into_parts());
        let out = B::attend(q.clone(), k.clone(), v.clone());
        match Tiled.prepare::<C>([q_node, k_node, v_node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish([q, k, v, out.clone()], out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

/// Softmax attention; the backward pass recomputes the scores.
pub(crate) fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as AttentionOps>::attend(
        q.into_dispatch(),
        k.into_dispatch(),
        v.into_dispatch(),
    ))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution, activation};

    type Attend = dyn Fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>;

    /// Output and gradients of `attend` are those of plain attention, across tiles.
    pub(in crate::layers) fn check(attend: &Attend, device: Device) {
        let device = device.autodiff();
        let n = TILE + 44;
        let draw = |n| Tensor::<4>::random([2, 2, n, 8], Distribution::Normal(0.0, 1.0), &device);
        let plain = |q: Tensor<4>, k: Tensor<4>, v: Tensor<4>| {
            let scores = q.mul_scalar(1.0 / 8f64.sqrt()).matmul(k.transpose());
            activation::softmax(scores, 3).matmul(v)
        };
        let inputs = [draw(n), draw(70), draw(70)].map(Tensor::require_grad);
        let weight = draw(n).inner();
        let run = |f: &Attend| {
            let [q, k, v] = inputs.clone();
            let out = f(q, k, v);
            let all = (out.clone() * weight.clone()).sum().backward();
            let gradients = inputs.each_ref().map(|x| x.grad(&all).expect("a gradient"));
            [vec![out], gradients.to_vec()].concat()
        };
        for (a, b) in run(attend).into_iter().zip(run(&plain)) {
            let off = (a - b).abs().max().into_scalar::<f32>();
            assert!(off < 2e-5, "{off}");
        }
    }

    #[test]
    fn gradients_are_those_of_plain_attention_across_tiles() {
        check(&attend, Device::flex());
    }

    #[cfg(feature = "tch")]
    #[test]
    fn gradients_on_libtorch_are_those_of_plain_attention_across_tiles() {
        check(&attend, Device::libtorch());
    }
}
