//! Steps and noise drawn on the host, a function of keys alone.

use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::rng::Key;

/// Standard normal noise, `[keys * rows, channels]`: `rows` for each key.
pub fn noise(keys: &[Key], rows: usize, channels: usize, device: &Device) -> Tensor<2> {
    let each = rows * channels;
    let mut values = vec![0.0; keys.len() * each];
    // Each key has a stream of its own, so threads change nothing.
    let parts = values.par_chunks_mut(each.max(1));
    parts.zip(keys).for_each(|(part, key)| key.rng().normals(part));
    Tensor::from_data(TensorData::new(values, [keys.len() * rows, channels]), device)
}

/// Uniform steps of a chain of `steps`: `rows` for each key.
pub fn steps(keys: &[Key], rows: usize, steps: usize) -> Vec<usize> {
    let one = |key: &Key| {
        let mut rng = key.rng();
        (0..rows).map(|_| rng.below(steps)).collect::<Vec<_>>()
    };
    keys.iter().flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_noise_of_a_key_is_its_own() {
        let keys = [0, 1].map(|sample| Key::new(1, "noise").with_number(sample));
        let device = Device::flex();
        let both = noise(&keys, 3, 2, &device);
        let second = noise(&keys[1..], 3, 2, &device);
        assert_eq!(both.slice_dim(0, 3..6).into_data(), second.into_data());
        assert_eq!(steps(&keys, 4, 10)[4..], steps(&keys[1..], 4, 10));
        assert_eq!(noise(&keys, 0, 2, &device).dims(), [0, 2]);
    }
}
