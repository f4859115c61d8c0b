//! Drop path: whole branches left out per sample (Huang et al. 2016).

use burn::tensor::{Tensor, TensorData};

use crate::rng::Key;

/// Rates rise in a line from 0 at the first block to `last` at the last one.
pub fn rates(last: f64, depth: usize) -> Vec<f64> {
    let steps = depth.saturating_sub(1).max(1) as f64;
    (0..depth).map(|block| last * block as f64 / steps).collect()
}

/// Drops the branch `x` (`[B, N, D]`) of each sample with probability `rate`; divides those that
/// stay by `1 - rate`. Without a key nothing is dropped. The draws are made on the host.
pub fn drop_path(x: Tensor<3>, rate: f64, key: Option<&Key>) -> Tensor<3> {
    let Some(key) = key.filter(|_| rate > 0.0) else { return x };
    let batch = x.dims()[0];
    let keep = (1.0 / (1.0 - rate)) as f32;
    let factor = |sample: u64| {
        if key.with_number(sample).rng().chance(rate) { 0.0 } else { keep }
    };
    let factors: Vec<f32> = (0..batch as u64).map(factor).collect();
    let data = TensorData::new(factors, [batch, 1, 1]);
    let factors = Tensor::<3>::from_data(data, &x.device().inner()).cast(x.dtype());
    x * factors
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn branches_are_dropped_whole_and_the_mean_stays() {
        let x = Tensor::<3>::ones([1000, 2, 3], &Device::flex());
        let key = Key::new(1, "drop");
        let y = drop_path(x.clone(), 0.25, Some(&key));
        let mean = y.clone().mean().into_scalar::<f32>();
        assert!((mean - 1.0).abs() < 0.06, "{mean}");
        let values: Vec<f32> = y.into_data().try_to_vec().unwrap();
        assert!(values.chunks(6).all(|sample| sample.iter().all(|v| *v == sample[0])));
        let again = drop_path(x.clone(), 0.25, Some(&key)).into_data();
        assert_eq!(again, drop_path(x, 0.25, Some(&key)).into_data());
    }

    #[test]
    fn rates_rise_in_a_line() {
        assert_eq!(rates(0.2, 3), [0.0, 0.1, 0.2]);
        assert_eq!(rates(0.2, 1), [0.0]);
    }
}
