//! Distances and likelihoods of normal distributions, in nats.

use burn::tensor::Tensor;

/// Mean and log variance of independent normal variables, `[N, C]` each.
#[derive(Debug, Clone)]
pub struct Gaussian {
    /// Mean.
    pub mean: Tensor<2>,
    /// Logarithm of the variance.
    pub log_variance: Tensor<2>,
}

impl Gaussian {
    /// Kullback-Leibler divergence of `other` from `self`, element-wise.
    pub fn divergence(&self, other: &Self) -> Tensor<2> {
        let wider = other.log_variance.clone() - self.log_variance.clone();
        let apart = (self.mean.clone() - other.mean.clone()).square();
        let squares = wider.clone().neg().exp() + apart * other.log_variance.clone().neg().exp();
        (wider + squares).sub_scalar(1.0).mul_scalar(0.5)
    }

    /// Negative logarithm of the probability of the bin of width 2/255 around each element of `x`,
    /// which lies in -1..1; the bins at the ends are open.
    pub fn discretised_nll(&self, x: &Tensor<2>) -> Tensor<2> {
        let centred = x.clone() - self.mean.clone();
        let scale = self.log_variance.clone().mul_scalar(-0.5).exp();
        let below = |side: f64| cumulative(scale.clone() * centred.clone().add_scalar(side));
        let (upper, lower) = (below(1.0 / 255.0), below(-1.0 / 255.0));
        let log = |p: Tensor<2>| p.clamp_min(1e-12).log();
        let inside = log(upper.clone() - lower.clone());
        let inside = inside.mask_where(x.clone().lower_elem(-0.999), log(upper));
        let above = log(lower.neg().add_scalar(1.0));
        inside.mask_where(x.clone().greater_elem(0.999), above).neg()
    }
}

/// The standard normal's cumulative distribution, by the tanh approximation (Page 1977).
fn cumulative(x: Tensor<2>) -> Tensor<2> {
    let cube = x.clone() * x.clone() * x.clone();
    let slope = (2.0 / std::f64::consts::PI).sqrt();
    let inner = (x + cube.mul_scalar(0.044715)).mul_scalar(slope);
    inner.tanh().add_scalar(1.0).mul_scalar(0.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn row(values: &[f32]) -> Tensor<2> {
        Tensor::<1>::from_data(values, &Device::flex()).unsqueeze()
    }

    #[test]
    fn the_divergence_is_that_of_the_formula_and_0_for_equals() {
        let normal = |mean: f32, variance: f32| Gaussian {
            mean: row(&[mean]),
            log_variance: row(&[variance.ln()]),
        };
        let one = normal(1.0, 2.0);
        assert_eq!(one.divergence(&one).into_scalar::<f32>(), 0.0);
        let found = one.divergence(&normal(0.0, 3.0)).into_scalar::<f32>();
        let expected = 0.5 * ((3.0f32 / 2.0).ln() - 1.0 + (2.0 + 1.0) / 3.0);
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }

    #[test]
    fn probabilities_of_all_bins_sum_to_one() {
        let values: Vec<f32> = (0..256).map(|i| i as f32 / 127.5 - 1.0).collect();
        let (mean, log_variance) = (row(&[0.3; 256]), row(&[(0.2f32 * 0.2).ln(); 256]));
        let nll = Gaussian { mean, log_variance }.discretised_nll(&row(&values));
        let sum = nll.neg().exp().sum().into_scalar::<f32>();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
    }
}
