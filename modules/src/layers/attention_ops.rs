//! Attention as one node of the autodiff graph, on every backend in its own way.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
pub(crate) trait AttentionOps: Backend {
    /// Softmax attention of `[B, heads, N, d]` with scale `1 / sqrt(d)`.
    fn attend(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
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
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution, activation};

    type Attend = dyn Fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>;

    /// Output and gradients are those of plain attention, across tiles.
    fn check(device: Device) {
        let device = device.autodiff();
        let n = 300;
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
        for (a, b) in run(&attend).into_iter().zip(run(&plain)) {
            let off = (a - b).abs().max().into_scalar::<f32>();
            assert!(off < 2e-5, "{off}");
        }
    }

    #[test]
    fn gradients_are_those_of_plain_attention_across_tiles() {
        check(Device::flex());
        #[cfg(feature = "tch")]
        check(Device::libtorch());
    }

    #[test]
    fn inputs_that_are_not_tracked_give_the_same_output() {
        let same = |device: Device| {
            let draw =
                || Tensor::<4>::random([1, 2, 5, 8], Distribution::Normal(0.0, 1.0), &device);
            let (q, k, v) = (draw(), draw(), draw());
            let [tq, tk, tv] = [&q, &k, &v].map(|t| t.clone().autodiff().require_grad());
            let off = attend(q, k, v) - attend(tq, tk, tv).inner();
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
            let all = attend(q, k, v).sum().backward();
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
        let one = attend(by_head(), by_head(), by_head());
        let other = attend(copied(), copied(), copied());
        assert_eq!(one.into_data(), other.into_data());
    }
}
