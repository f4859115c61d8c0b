//! Turning pairs of channels as one node of the autodiff graph: it keeps the cosines and sines alone.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use super::rope::Pairs;

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
pub(crate) trait RopeOps: Backend {
    /// Turns `[B, heads, N, d]` by angles with these cosines and sines, `[samples, 1, N, d]`; `back`
    /// gives the transposed map, which takes a gradient of the output to that of the input.
    fn turned(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairs: Pairs,
        back: bool,
    ) -> FloatTensor<Self>;
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::{Flex, TensorMetadata};
    use burn::tensor::Shape;
    use burn_flex::FlexTensor;

    use super::super::flex::{back as as_before, numbers, tensor, whole};
    use super::super::lanes::over_rows;
    use super::super::rope::Pairs;
    use super::RopeOps;

    /// One pair.
    #[inline(always)]
    fn pair([a, b]: [f32; 2], cos: [f32; 2], sin: [f32; 2], back: bool) -> [f32; 2] {
        match back {
            false => [a * cos[0] - b * sin[0], b * cos[1] + a * sin[1]],
            true => [a * cos[0] + b * sin[1], b * cos[1] - a * sin[0]],
        }
    }

    #[inline(always)]
    fn halves(x: &[f32], out: &mut [f32], cos: &[f32], sin: &[f32], back: bool) {
        let half = x.len() / 2;
        let (low, high) = out.split_at_mut(half);
        let ([a, b], [c, d]) = ([&x[..half], &x[half..]], [&cos[..half], &cos[half..]]);
        let (s, t) = (&sin[..half], &sin[half..]);
        let (low, high) = (&mut low[..half], &mut high[..half]);
        for i in 0..half {
            [low[i], high[i]] = pair([a[i], b[i]], [c[i], d[i]], [s[i], t[i]], back);
        }
    }

    #[inline(always)]
    fn neighbours(x: &[f32], out: &mut [f32], cos: &[f32], sin: &[f32], back: bool) {
        let parts = [x, cos, sin].map(|part| part.as_chunks::<2>().0);
        let [x, cos, sin] = parts;
        let each = out.as_chunks_mut::<2>().0.iter_mut().zip(x).zip(cos).zip(sin);
        for (((out, x), cos), sin) in each {
            *out = pair(*x, *cos, *sin, back);
        }
    }

    impl RopeOps for Flex {
        fn turned(
            x: FlexTensor,
            cos: FlexTensor,
            sin: FlexTensor,
            pairs: Pairs,
            back: bool,
        ) -> FlexTensor {
            let dtype = x.dtype();
            let [batch, heads, tokens, width] = x.shape().dims();
            let samples = cos.shape()[0];
            // Heads lie side by side in what comes from a projection, and in what joins them again.
            let x = whole(x.permute(&[0, 2, 1, 3]));
            let (cos, sin) = (whole(cos), whole(sin));
            let (x, cos, sin) = (numbers(&x), numbers(&cos), numbers(&sin));
            let mut out = vec![0.0; x.len()];
            let row = heads * width;
            over_rows(&mut out, row, |first, out| {
                let all = out.chunks_exact_mut(row).zip(x[first * row..].chunks_exact(row));
                for (number, (out, x)) in all.enumerate() {
                    let (sample, token) = ((first + number) / tokens, (first + number) % tokens);
                    let at = (sample % samples * tokens + token) * width;
                    let (cos, sin) = (&cos[at..at + width], &sin[at..at + width]);
                    let heads = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
                    match (pairs, back) {
                        (Pairs::Halves, false) => {
                            heads.for_each(|(x, out)| halves(x, out, cos, sin, false));
                        }
                        (Pairs::Halves, true) => {
                            heads.for_each(|(x, out)| halves(x, out, cos, sin, true));
                        }
                        (Pairs::Neighbours, _) => {
                            heads.for_each(|(x, out)| neighbours(x, out, cos, sin, back));
                        }
                    }
                }
            });
            let out = tensor(out, Shape::new([batch, tokens, heads, width]));
            as_before(out.permute(&[0, 2, 1, 3]), dtype)
        }
    }
}

#[cfg(feature = "tch")]
mod libtorch {
    use burn::backend::LibTorch;
    use burn_tch::TchTensor;
    use tch::Tensor;

    use super::super::rope::Pairs;
    use super::RopeOps;

    /// The other channel of each pair, negated where it is the second one.
    fn beside(x: &Tensor, pairs: Pairs) -> Tensor {
        match pairs {
            Pairs::Halves => {
                let parts = x.chunk(2, -1);
                Tensor::cat(&[parts[1].neg(), parts[0].shallow_clone()], -1)
            }
            Pairs::Neighbours => {
                let parts = x.unflatten(-1, [-1, 2]).unbind(-1);
                Tensor::stack(&[parts[1].neg(), parts[0].shallow_clone()], -1).flatten(-2, -1)
            }
        }
    }

    impl RopeOps for LibTorch {
        fn turned(
            x: TchTensor,
            cos: TchTensor,
            sin: TchTensor,
            pairs: Pairs,
            back: bool,
        ) -> TchTensor {
            let x = x.tensor;
            let [cos, sin] = [cos, sin].map(|table| table.tensor.to_kind(x.kind()));
            TchTensor::new(match back {
                false => &x * cos + beside(&x, pairs) * sin,
                true => &x * cos - beside(&(&x * sin), pairs),
            })
        }
    }
}

#[derive(Debug)]
struct Turned;

impl<B: RopeOps> Backward<B, 1> for Turned {
    type State = ([B::FloatTensorPrimitive; 2], Pairs);

    fn backward(
        self,
        ops: Ops<Self::State, 1>,
        grads: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let d = grads.consume::<B>(&ops.node);
        let (([cos, sin], pairs), [parent]) = (ops.state, ops.parents);
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, B::turned(d, cos, sin, pairs, true));
        }
    }
}

impl<B: RopeOps, C: CheckpointStrategy> RopeOps for Autodiff<B, C> {
    fn turned(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairs: Pairs,
        back: bool,
    ) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let [cos, sin] = [cos, sin].map(|table| table.into_parts().0);
        let out = B::turned(x, cos.clone(), sin.clone(), pairs, back);
        match Backward::<B, 1>::prepare::<C>(Turned, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(([cos, sin], pairs), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

/// Turns all channels of `[B, heads, N, d]`; the tables get no gradient.
pub(crate) fn turn(x: Tensor<4>, [cos, sin]: [Tensor<4>; 2], pairs: Pairs) -> Tensor<4> {
    let [x, cos, sin] = [x, cos, sin].map(Tensor::into_dispatch);
    Tensor::from_dispatch(<Dispatch as RopeOps>::turned(x, cos, sin, pairs, false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    fn plain(x: Tensor<4>, [cos, sin]: [Tensor<4>; 2], pairs: Pairs) -> Tensor<4> {
        let [batch, heads, tokens, width] = x.dims();
        let beside = match pairs {
            Pairs::Halves => {
                let half = |range| x.clone().slice_dim(3, range);
                Tensor::cat(vec![half(width / 2..width).neg(), half(0..width / 2)], 3)
            }
            Pairs::Neighbours => {
                let both = x.clone().reshape([batch, heads, tokens, width / 2, 2]);
                let one = |range| both.clone().slice_dim(4, range);
                Tensor::cat(vec![one(1..2).neg(), one(0..1)], 4)
                    .reshape([batch, heads, tokens, width])
            }
        };
        x * cos + beside * sin
    }

    fn check(device: Device, pairs: Pairs, samples: usize, joined: bool) {
        let normal = |shape: [usize; 4], device: &Device| {
            Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), device)
        };
        let tables = [(); 2].map(|()| normal([samples, 1, 70, 12], &device));
        let device = device.autodiff();
        let shape = if joined { [2, 70, 30, 12] } else { [2, 30, 70, 12] };
        let x = normal(shape, &device).require_grad();
        let weight = normal([2, 30, 70, 12], &device).inner();
        let by_head = || if joined { x.clone().swap_dims(1, 2) } else { x.clone() };
        let run = |out: Tensor<4>| {
            let all = (out.clone() * weight.clone()).sum().backward();
            [out.inner(), x.grad(&all).expect("a gradient")]
        };
        let fused = run(turn(by_head(), tables.clone(), pairs));
        for (a, b) in fused.into_iter().zip(run(plain(by_head(), tables, pairs))) {
            let off = (a - b).abs().max().into_scalar::<f32>();
            assert!(off < 1e-6, "{off} {pairs:?} {samples} {joined}");
        }
    }

    #[test]
    fn outputs_and_gradients_are_those_of_tensor_operations() {
        for pairs in [Pairs::Halves, Pairs::Neighbours] {
            for (samples, joined) in [(1, true), (2, true), (2, false)] {
                check(Device::flex(), pairs, samples, joined);
                #[cfg(feature = "tch")]
                check(Device::libtorch(), pairs, samples, joined);
            }
        }
    }
}
