//! Attention as one node of the autodiff graph, on every backend in its own way.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use super::dropout_ops::Draws;
use super::spans::Spans;

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
pub(crate) trait AttentionOps: Backend {
    /// Softmax attention of `[B, heads, N, d]` with scale `1 / sqrt(d)`; keys and values may have
    /// fewer heads, each of which serves as many heads of the queries. `drop` drops entries of the
    /// attention map `[B, heads, queries, keys]`.
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spans: Option<Spans>,
        drop: Option<Draws>,
    ) -> FloatTensor<Self>;

    /// The same with `bias`, `[B, heads, queries, keys]`, added to the scaled scores.
    fn attend_biased(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        spans: Option<Spans>,
        drop: Option<Draws>,
    ) -> FloatTensor<Self>;
}

/// Softmax attention; the backward pass recomputes the scores.
pub(crate) fn attend(
    q: Tensor<4>,
    k: Tensor<4>,
    v: Tensor<4>,
    bias: Option<Tensor<4>>,
    spans: Option<Spans>,
    drop: Option<Draws>,
) -> Tensor<4> {
    let [batch, heads, queries, _] = q.dims();
    let keys = k.dims()[2];
    let fits =
        |spans: &Spans| spans.dims() == [queries, keys] && [1, batch].contains(&spans.samples());
    assert!(spans.as_ref().is_none_or(fits), "the spans are those of the queries and keys");
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(match bias {
        None => <Dispatch as AttentionOps>::attend(q, k, v, spans, drop),
        Some(bias) => {
            let bias = bias.expand([batch, heads, queries, keys]).into_dispatch();
            <Dispatch as AttentionOps>::attend_biased(q, k, v, bias, spans, drop)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::dropout_ops::dropout;
    use super::*;
    use crate::rng::Key;
    use burn::tensor::{Device, Distribution, TensorData, activation};

    type Attend<'a> = dyn Fn(Tensor<4>, Tensor<4>, Tensor<4>, Option<Tensor<4>>) -> Tensor<4> + 'a;

    fn attend_all(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Tensor<4> {
        attend(q, k, v, None, None, None)
    }

    /// Attention with tensor operations alone.
    fn plain(
        q: Tensor<4>,
        k: Tensor<4>,
        v: Tensor<4>,
        bias: Option<Tensor<4>>,
        (spans, key): (Option<&Spans>, Option<&Key>),
    ) -> Tensor<4> {
        let [batch, heads, queries, width] = q.dims();
        let [_, kv_heads, keys, _] = k.dims();
        let many = |x: Tensor<4>| {
            let x = x.reshape([batch, kv_heads, 1, keys * width]);
            let x = x.expand([batch, kv_heads, heads / kv_heads, keys * width]);
            x.reshape([batch, heads, keys, width])
        };
        let (k, v) = (many(k), many(v));
        let mut scores = q.mul_scalar(1.0 / (width as f64).sqrt()).matmul(k.transpose());
        if let Some(bias) = bias {
            scores = scores + bias;
        }
        if let Some(spans) = spans {
            let one = |sample, query, key| {
                let [first, end] = spans.of(sample, query);
                if (first..end).contains(&key) { 0.0f32 } else { -1e9 }
            };
            let rows = (0..batch).flat_map(|s| (0..queries).map(move |q| (s, q)));
            let all = rows.flat_map(|(s, q)| (0..keys).map(move |k| one(s, q, k)));
            let data = TensorData::new(all.collect::<Vec<_>>(), [batch, 1, queries, keys]);
            scores = scores.clone() + Tensor::from_data(data, &scores.device().inner());
        }
        dropout(activation::softmax(scores, 3), 0.3, key).matmul(v)
    }

    /// Output and gradients are those of plain attention, across tiles.
    fn check(device: &Device, heads: [usize; 2], biased: bool, spans: Option<Spans>) {
        for key in [None, Some(Key::new(1, "map"))] {
            compare(device, heads, biased, (spans.clone(), key));
        }
    }

    fn compare(
        device: &Device,
        [heads, kv_heads]: [usize; 2],
        biased: bool,
        (spans, key): (Option<Spans>, Option<Key>),
    ) {
        let device = device.clone().autodiff();
        let [n, m] = spans.as_ref().map_or([300, 70], Spans::dims);
        let draw = |h, n, d| {
            let normal = Distribution::Normal(0.0, 1.0);
            Tensor::<4>::random([2, h, n, d], normal, &device).require_grad()
        };
        let inputs = [draw(heads, n, 8), draw(kv_heads, m, 8), draw(kv_heads, m, 8)];
        let bias = biased.then(|| draw(heads, n, m));
        let weight = draw(heads, n, 8).inner();
        let run = |f: &Attend<'_>| {
            let [q, k, v] = inputs.clone();
            let out = f(q, k, v, bias.clone());
            let all = (out.clone() * weight.clone()).sum().backward();
            let leaves = inputs.iter().chain(&bias);
            let gradients = leaves.map(|x| x.grad(&all).expect("a gradient"));
            std::iter::once(out.inner()).chain(gradients).collect::<Vec<_>>()
        };
        let ours =
            run(&|q, k, v, b| attend(q, k, v, b, spans.clone(), Draws::of(0.3, key.as_ref())));
        let theirs = run(&|q, k, v, b| plain(q, k, v, b, (spans.as_ref(), key.as_ref())));
        for (number, (a, b)) in ours.into_iter().zip(theirs).enumerate() {
            let off = (a - b).abs().max().into_scalar::<f32>();
            assert!(off < 2e-5, "{number}: {off}, {biased} {spans:?}");
        }
    }

    fn devices() -> Vec<Device> {
        vec![
            Device::flex(),
            #[cfg(feature = "tch")]
            Device::libtorch(),
        ]
    }

    #[test]
    fn gradients_are_those_of_plain_attention_across_tiles() {
        for device in devices() {
            check(&device, [2, 2], false, None);
            check(&device, [4, 2], false, None);
            check(&device, [2, 2], true, None);
        }
    }

    #[test]
    fn queries_see_their_run_of_keys_and_no_other() {
        let square = || Spans::all(300, 300);
        let cases = [
            square().causal(),
            square().near(20, 20),
            square().causal().near(64, 0),
            square().within(&[[0, 170], [40, 300]]),
            square().causal().within(&[[0, 300], [40, 300]]),
            square().causal().packed(&[vec![100, 150], vec![10]]),
            Spans::all(7, 40).causal(),
        ];
        for device in devices() {
            for spans in &cases {
                check(&device, [2, 1], false, Some(spans.clone()));
                check(&device, [2, 2], true, Some(spans.clone()));
            }
        }
    }

    #[test]
    fn a_bias_without_gradient_may_stand_for_all_samples_and_heads() {
        for device in devices() {
            let tracked = device.clone().autodiff();
            let draw = |shape, device: &Device| {
                Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), device)
            };
            let [q, k, v] = [(); 3].map(|()| draw([2, 2, 5, 8], &tracked).require_grad());
            let bias = draw([1, 1, 5, 5], &device);
            let ours = attend(q.clone(), k.clone(), v.clone(), Some(bias.clone()), None, None);
            let theirs = plain(q.clone(), k, v, Some(bias), (None, None));
            let off = (ours.clone() - theirs).abs().max().into_scalar::<f32>();
            assert!(off < 1e-5, "{off}");
            assert!(q.grad(&ours.sum().backward()).is_some());
        }
    }

    #[test]
    fn inputs_that_are_not_tracked_give_the_same_output() {
        let same = |device: Device| {
            let draw =
                || Tensor::<4>::random([1, 2, 5, 8], Distribution::Normal(0.0, 1.0), &device);
            let (q, k, v) = (draw(), draw(), draw());
            let [tq, tk, tv] = [&q, &k, &v].map(|t| t.clone().autodiff().require_grad());
            let off = attend_all(q, k, v) - attend_all(tq, tk, tv).inner();
            assert_eq!(off.abs().max().into_scalar::<f32>(), 0.0);
        };
        same(Device::flex());
        #[cfg(feature = "tch")]
        same(Device::libtorch());
    }

    #[test]
    fn one_number_that_stands_for_many_counts_as_many() {
        let device = Device::flex().autodiff();
        let draw = |shape| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        // Queries, keys and the incoming gradient are expanded: their strides are 0.
        let inputs = [draw([2, 1, 1, 8]), draw([2, 1, 5, 1]), draw([2, 3, 5, 8])];
        let inputs = inputs.map(Tensor::require_grad);
        let expanded = || {
            let [q, k, v] = inputs.clone();
            [q.expand([2, 3, 7, 8]), k.expand([2, 3, 5, 8]), v]
        };
        let copied = || {
            let one = Tensor::<4>::ones([2, 3, 7, 8], &device);
            let [q, k, v] = expanded();
            [q * one.clone(), k * one.slice_dim(2, 0..5), v]
        };
        let run = |[q, k, v]: [Tensor<4>; 3]| {
            let all = attend_all(q, k, v).sum().backward();
            inputs.each_ref().map(|x| x.grad(&all).expect("a gradient"))
        };
        for (a, b) in run(expanded()).into_iter().zip(run(copied())) {
            let off = (a - b).abs().max().into_scalar::<f32>();
            assert!(off < 1e-5, "{off}");
        }
    }

    #[test]
    fn heads_lie_as_they_come_and_leave_in_the_order_of_tokens() {
        let device = Device::flex();
        let x = Tensor::<3>::random([2, 7, 12], Distribution::Normal(0.0, 1.0), &device);
        let by_head = || x.clone().reshape([2, 7, 3, 4]).swap_dims(1, 2);
        let copied = || Tensor::<4>::from_data(by_head().into_data(), &device);
        let one = attend_all(by_head(), by_head(), by_head());
        let other = attend_all(copied(), copied(), copied());
        assert_eq!(one.into_data(), other.into_data());
    }
}
