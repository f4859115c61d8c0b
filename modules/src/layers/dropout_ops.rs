//! Dropout as one node of the autodiff graph. It keeps nothing: the backward pass draws again.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

use crate::rng::{Key, Words};

/// Which elements are dropped, and what the others are multiplied by.
#[derive(Debug, Clone)]
pub(crate) struct Draws {
    words: Words,
    /// An element is dropped when its word is smaller.
    least: u32,
    keep: f32,
}

impl Draws {
    /// Elements are dropped with probability `rate`; without a key, or at rate 0, nothing is.
    pub(crate) fn of(rate: f64, key: Option<&Key>) -> Option<Self> {
        let key = key.filter(|_| rate > 0.0)?;
        Some(Self {
            words: key.with("dropout").words(),
            least: (rate * 2f64.powi(32)) as u32,
            keep: (1.0 / (1.0 - rate)) as f32,
        })
    }

    /// Factors of the elements from number `first` on.
    pub(crate) fn factors(&self, first: usize, into: &mut [f32]) {
        let mut words = [0; 1024];
        let mut stream = self.words.clone();
        stream.skip_to(first as u64);
        for into in into.chunks_mut(words.len()) {
            let words = &mut words[..into.len()];
            stream.fill(words);
            for (factor, word) in into.iter_mut().zip(words) {
                *factor = if *word < self.least { 0.0 } else { self.keep };
            }
        }
    }
}

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"), Autodiff)]
pub(crate) trait DropoutOps: Backend {
    /// `x` times the factors of the draws.
    fn dropout(x: FloatTensor<Self>, draws: Draws) -> FloatTensor<Self>;
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::Flex;
    use burn_flex::FlexTensor;

    use super::super::flex::{back, whole};
    use super::super::lanes::over_rows;
    use super::{Draws, DropoutOps};

    impl DropoutOps for Flex {
        fn dropout(x: FlexTensor, draws: Draws) -> FlexTensor {
            let dtype = x.dtype();
            let mut x = whole(x);
            over_rows(x.storage_mut::<f32>(), 1, |first, x| {
                let mut factors = [0.0; 1024];
                for (part, x) in x.chunks_mut(factors.len()).enumerate() {
                    let factors = &mut factors[..x.len()];
                    draws.factors(first + part * 1024, factors);
                    for (x, factor) in x.iter_mut().zip(factors) {
                        *x *= *factor;
                    }
                }
            });
            back(x, dtype)
        }
    }
}

#[cfg(feature = "tch")]
mod libtorch {
    use burn::backend::LibTorch;
    use burn_tch::TchTensor;
    use tch::Tensor;

    use super::super::lanes::over_rows;
    use super::{Draws, DropoutOps};

    impl DropoutOps for LibTorch {
        fn dropout(x: TchTensor, draws: Draws) -> TchTensor {
            let factors = draws.tensor(&x.tensor);
            TchTensor::new(x.tensor * factors)
        }
    }

    impl Draws {
        /// Factors of all elements of a tensor.
        pub(crate) fn tensor(&self, like: &Tensor) -> Tensor {
            let mut factors = vec![0.0; like.numel()];
            over_rows(&mut factors, 1, |first, factors| self.factors(first, factors));
            let factors = Tensor::from_slice(&factors).view(like.size().as_slice());
            factors.to_device(like.device()).to_kind(like.kind())
        }
    }
}

#[derive(Debug)]
struct Dropped;

impl<B: DropoutOps> Backward<B, 1> for Dropped {
    type State = Draws;

    fn backward(self, ops: Ops<Draws, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let d = grads.consume::<B>(&ops.node);
        if let Some(parent) = &ops.parents[0] {
            grads.register::<B>(parent.id, B::dropout(d, ops.state));
        }
    }
}

impl<B: DropoutOps, C: CheckpointStrategy> DropoutOps for Autodiff<B, C> {
    fn dropout(x: FloatTensor<Self>, draws: Draws) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let out = B::dropout(x, draws.clone());
        match Backward::<B, 1>::prepare::<C>(Dropped, [node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(draws, out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

/// Zeroes each element of `x` with probability `rate`; divides the others by `1 - rate`. Without a
/// key nothing is dropped. The draws are made on the host, one word of 32 bits each.
pub(crate) fn dropout<const R: usize>(x: Tensor<R>, rate: f64, key: Option<&Key>) -> Tensor<R> {
    let Some(draws) = Draws::of(rate, key) else { return x };
    Tensor::from_dispatch(<Dispatch as DropoutOps>::dropout(x.into_dispatch(), draws))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn check(device: Device) -> Vec<f32> {
        let x = Tensor::<2>::full([301, 150], 2.0, &device.autodiff()).require_grad();
        let key = Key::new(1, "drop");
        let y = dropout(x.clone(), 0.25, Some(&key));
        let all = (y.clone() * 3.0).sum().backward();
        let gradient: Vec<f32> = x.grad(&all).unwrap().into_data().try_to_vec().unwrap();
        let values: Vec<f32> = y.into_data().try_to_vec().unwrap();
        let mut dropped = 0;
        for (value, gradient) in values.iter().zip(&gradient) {
            assert!(*value == 0.0 || (*value - 2.0 / 0.75).abs() < 1e-6, "{value}");
            assert!((gradient - 1.5 * value).abs() < 1e-6, "{gradient} at {value}");
            dropped += usize::from(*value == 0.0);
        }
        let share = dropped as f64 / values.len() as f64;
        assert!((share - 0.25).abs() < 0.01, "{share}");
        values
    }

    #[test]
    fn a_share_is_dropped_and_the_gradient_drops_the_same() {
        let values = check(Device::flex());
        assert_eq!(values, check(Device::flex()));
        #[cfg(feature = "tch")]
        assert_eq!(values, check(Device::libtorch()));
    }

    #[test]
    fn nothing_is_dropped_without_a_key_or_at_rate_0() {
        let x = Tensor::<1>::ones([64], &Device::flex());
        let key = Key::new(1, "drop");
        for y in [dropout(x.clone(), 0.5, None), dropout(x.clone(), 0.0, Some(&key))] {
            assert_eq!(y.into_data(), x.to_data());
        }
    }
}
