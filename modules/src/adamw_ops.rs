//! One AdamW update of one tensor, in place where nobody else holds it.
//!
//! Written with tensor operations it is twenty passes over memory that no cache holds; here it is one on the CPU.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

/// Numbers of an update, the same for all elements.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Factors {
    /// What of the first and second moment stays.
    pub(crate) betas: [f64; 2],
    /// `1 - beta^t`: what the moments of t updates, which began at 0, are divided by.
    pub(crate) bias: [f64; 2],
    /// Added to the root of the second moment.
    pub(crate) eps: f64,
    /// Learning rate.
    pub(crate) lr: f64,
    /// What of the parameter stays: 1 less the rate times the weight decay.
    pub(crate) keep: f64,
}

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"))]
pub(crate) trait AdamWOps: Backend {
    /// The parameter and its moments after an update (Loshchilov and Hutter 2019).
    fn adamw(
        value: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        factors: Factors,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::Flex;
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use super::{AdamWOps, Factors};
    use crate::layers::flex::{numbers, whole};
    use crate::layers::lanes::wide;

    /// Numbers that one task works on.
    const TASK: usize = 1 << 14;

    impl AdamWOps for Flex {
        fn adamw(
            value: FlexTensor,
            gradient: FlexTensor,
            first: FlexTensor,
            second: FlexTensor,
            factors: Factors,
        ) -> (FlexTensor, FlexTensor, FlexTensor) {
            let [mut value, gradient, mut first, mut second] =
                [value, gradient, first, second].map(whole);
            let values = value.storage_mut::<f32>().par_chunks_mut(TASK);
            let moments = first
                .storage_mut::<f32>()
                .par_chunks_mut(TASK)
                .zip(second.storage_mut::<f32>().par_chunks_mut(TASK));
            values.zip(numbers(&gradient).par_chunks(TASK)).zip(moments).for_each(
                |((value, gradient), (first, second))| {
                    wide(|| update(value, gradient, first, second, factors));
                },
            );
            (value, first, second)
        }
    }

    #[inline(always)]
    fn update(value: &mut [f32], d: &[f32], first: &mut [f32], second: &mut [f32], of: Factors) {
        let [stays_1, stays_2] = of.betas.map(|beta| beta as f32);
        let [comes_1, comes_2] = of.betas.map(|beta| (1.0 - beta) as f32);
        let [bias_1, bias_2] = of.bias.map(|bias| bias as f32);
        let (eps, lr, keep) = (of.eps as f32, of.lr as f32, of.keep as f32);
        for (((p, d), m), v) in value.iter_mut().zip(d).zip(first).zip(second) {
            *m = *m * stays_1 + d * comes_1;
            *v = *v * stays_2 + d * d * comes_2;
            *p = *p * keep - *m / bias_1 / ((*v / bias_2).sqrt() + eps) * lr;
        }
    }
}

#[cfg(feature = "tch")]
mod libtorch {
    use burn::backend::LibTorch;
    use burn_tch::TchTensor;
    use tch::Tensor;

    use super::{AdamWOps, Factors};

    /// A tensor that may be written.
    fn own(t: TchTensor) -> Tensor {
        if t.can_mut() { t.tensor } else { t.tensor.copy() }
    }

    impl AdamWOps for LibTorch {
        fn adamw(
            value: TchTensor,
            gradient: TchTensor,
            first: TchTensor,
            second: TchTensor,
            of: Factors,
        ) -> (TchTensor, TchTensor, TchTensor) {
            let (mut value, mut first, mut second) = (own(value), own(first), own(second));
            let d = gradient.tensor;
            let _ = first.lerp_(&d, 1.0 - of.betas[0]);
            let _ = second.g_mul_scalar_(of.betas[1]);
            let _ = second.addcmul_(&d, &d.g_mul_scalar(1.0 - of.betas[1]));
            let mut scale = second.g_div_scalar(of.bias[1]);
            let _ = scale.sqrt_();
            let _ = scale.g_add_scalar_(of.eps);
            if of.keep != 1.0 {
                let _ = value.g_mul_scalar_(of.keep);
            }
            let _ = value.addcdiv_(&first.g_mul_scalar(-of.lr / of.bias[0]), &scale);
            (TchTensor::new(value), TchTensor::new(first), TchTensor::new(second))
        }
    }
}

/// The parameter and its moments after an update.
pub(crate) fn adamw<const R: usize>(
    value: Tensor<R>,
    gradient: Tensor<R>,
    [first, second]: [Tensor<R>; 2],
    factors: Factors,
) -> (Tensor<R>, Tensor<R>, Tensor<R>) {
    let (value, first, second) = <Dispatch as AdamWOps>::adamw(
        value.into_dispatch(),
        gradient.into_dispatch(),
        first.into_dispatch(),
        second.into_dispatch(),
        factors,
    );
    (Tensor::from_dispatch(value), Tensor::from_dispatch(first), Tensor::from_dispatch(second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::optim::{AdamWConfig, Optimizer as _};
    use burn::tensor::{Device, Distribution};

    /// Several updates are those of burn's AdamW, and tensors that others hold stay as they are.
    fn check(device: Device) {
        let draw = || Tensor::<2>::random([37, 1000], Distribution::Normal(0.0, 1.0), &device);
        let burns =
            AdamWConfig::new().with_beta_2(0.98).with_epsilon(1e-6).with_weight_decay(0.05).build();
        let start = draw();
        let kept = start.to_data();
        let (mut expected, mut state) = (start.clone(), None);
        let (mut value, zero) = (start.clone(), start.zeros_like());
        let (mut first, mut second) = (zero.clone(), zero.clone());
        for step in 1..=4 {
            let gradient = draw();
            (expected, state) = burns.step(1e-2, expected, gradient.clone(), state);
            let powers = [0.9f64.powi(step), 0.98f64.powi(step)];
            let factors = Factors {
                betas: [0.9, 0.98],
                bias: powers.map(|power| 1.0 - power),
                eps: 1e-6,
                lr: 1e-2,
                keep: 1.0 - 1e-2 * 0.05,
            };
            (value, first, second) = adamw(value, gradient, [first, second], factors);
        }
        let off = (value - expected).abs().max().into_scalar::<f32>();
        assert!(off < 2e-6, "{off}");
        assert_eq!(start.to_data(), kept);
        assert_eq!(zero.abs().max().into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn updates_are_those_of_burns_optimizer() {
        check(Device::flex());
        #[cfg(feature = "tch")]
        check(Device::libtorch());
    }
}
