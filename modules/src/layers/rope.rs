//! Rotary positions: pairs of channels turn by an angle that grows with the position.
//!
//! Source: Su et al. 2021, "RoFormer" (arXiv 2104.09864); Llama 3.1's rescaled frequencies; Qwen2-VL
//! (arXiv 2409.12191) for positions of several axes; V-JEPA 2 (arXiv 2506.09985).

use std::f64::consts::TAU;

use burn::tensor::{Device, Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::positions::Lattice;
use super::rope_ops;

/// Which channels of a head are a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Channel i and channel i + d/2 (Llama).
    Halves,
    /// Neighbours (V-JEPA 2).
    Neighbours,
}

/// Llama 3.1's rescaling, which lets slow pairs turn more slowly.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rescale {
    /// Factor by which slow pairs turn more slowly.
    pub factor: f64,
    /// Pairs that turn less than this often over the original context are slow.
    pub low_freq_factor: f64,
    /// Pairs that turn more than this often over the original context stay.
    pub high_freq_factor: f64,
    /// The original context, in tokens.
    pub original_max_position_embeddings: usize,
}

/// Angle per position of each pair of `width` channels: `theta^(-2 i / width)`.
pub fn frequencies(width: usize, theta: f64, rescale: Option<&Rescale>) -> Vec<f64> {
    let one = |pair: usize| theta.powf(-2.0 * pair as f64 / width as f64);
    let all = (0..width / 2).map(one);
    let Some(rescale) = rescale else { return all.collect() };
    let Rescale { factor, low_freq_factor: low, high_freq_factor: high, .. } = *rescale;
    let slower = |frequency: f64| {
        let turns = rescale.original_max_position_embeddings as f64 * frequency / TAU;
        let share = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        (1.0 - share) * frequency / factor + share * frequency
    };
    all.map(slower).collect()
}

/// Cosines and sines for tokens at given positions.
#[derive(Debug, Clone)]
pub struct Rope {
    /// `[samples, 1, N, channels]`; one sample stands for all.
    cos: Tensor<4>,
    sin: Tensor<4>,
    pairs: Pairs,
}

impl Rope {
    /// From angles `[samples, N, channels]`, row-major, one for each channel that turns; the other
    /// channels of a head stay.
    pub fn new(
        angles: &[f64],
        [samples, tokens]: [usize; 2],
        pairs: Pairs,
        device: &Device,
    ) -> Self {
        let channels = angles.len() / (samples * tokens).max(1);
        let table = |of: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|angle| of(*angle) as f32).collect();
            let data = TensorData::new(values, [samples, 1, tokens, channels]);
            Tensor::<4>::from_data(data, &device.clone().inner())
        };
        Self { cos: table(f64::cos), sin: table(f64::sin), pairs }
    }

    /// One axis, halves paired: positions `[samples][N]`.
    pub fn line(positions: &[Vec<usize>], frequencies: &[f64], device: &Device) -> Self {
        let tokens = positions.first().map_or(0, Vec::len);
        let mut angles = Vec::with_capacity(positions.len() * tokens * 2 * frequencies.len());
        for position in positions.iter().flatten() {
            let turned = frequencies.iter().map(|frequency| *position as f64 * frequency);
            angles.extend(turned.clone().chain(turned));
        }
        Self::new(&angles, [positions.len(), tokens], Pairs::Halves, device)
    }

    /// Several axes, halves paired, as in Qwen2-VL: `sections[a]` pairs turn with axis a; positions
    /// `[axis][N]`, the same for all samples.
    pub fn sections(
        positions: &[Vec<usize>],
        sections: &[usize],
        frequencies: &[f64],
        device: &Device,
    ) -> Self {
        let axis_of: Vec<usize> = sections
            .iter()
            .enumerate()
            .flat_map(|(axis, n)| std::iter::repeat_n(axis, *n))
            .collect();
        let tokens = positions.first().map_or(0, Vec::len);
        let mut angles = Vec::with_capacity(tokens * 2 * frequencies.len());
        let mut place = |token: usize| {
            let turned = frequencies
                .iter()
                .zip(&axis_of)
                .map(|(frequency, axis)| positions[*axis][token] as f64 * frequency);
            angles.extend(turned.clone().chain(turned));
        };
        (0..tokens).for_each(&mut place);
        Self::new(&angles, [1, tokens], Pairs::Halves, device)
    }

    /// Several axes, neighbours paired, as in V-JEPA 2: each axis turns `2 floor(d / 2 axes)` channels
    /// of a head of d, and the last channels stay. The released weights repeat the angles of an axis
    /// as a whole, instead of giving the two channels of a pair the same angle. Positions are
    /// `[samples][N][axis]`.
    pub fn grid<const A: usize>(
        positions: &[Vec<[usize; A]>],
        head: usize,
        device: &Device,
    ) -> Self {
        let each = 2 * (head / A / 2);
        let frequencies = frequencies(each, 10_000.0, None);
        let tokens = positions.first().map_or(0, Vec::len);
        let mut angles = Vec::with_capacity(positions.len() * tokens * A * each);
        for position in positions.iter().flatten().flatten() {
            let turned = frequencies.iter().map(|frequency| *position as f64 * frequency);
            angles.extend(turned.clone().chain(turned));
        }
        Self::new(&angles, [positions.len(), tokens], Pairs::Neighbours, device)
    }

    /// [`Rope::grid`] for the tokens of a lattice: all of them, or those of these indices, `[B, N]`.
    pub fn lattice(
        [frames, rows, columns]: Lattice,
        index: Option<&Tensor<2, Int>>,
        head: usize,
        device: &Device,
    ) -> Self {
        let place = |i: usize| [i / (rows * columns), i / columns % rows, i % columns];
        let Some(index) = index else {
            let all = (0..frames * rows * columns).map(place).collect();
            return Self::grid(&[all], head, device);
        };
        let tokens = index.dims()[1].max(1);
        let index: Vec<usize> = index.to_data().iter::<i64>().map(|i| i as usize).collect();
        let row = |row: &[usize]| row.iter().map(|i| place(*i)).collect();
        Self::grid(&index.chunks(tokens).map(row).collect::<Vec<_>>(), head, device)
    }

    /// Turns queries or keys `[B, heads, N, d]`.
    pub fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        let width = x.dims()[3];
        let turned = self.cos.dims()[3];
        if turned < width {
            let head = self.turn(x.clone().slice_dim(3, 0..turned));
            return Tensor::cat(vec![head, x.slice_dim(3, turned..width)], 3);
        }
        rope_ops::turn(x, self.tables(), self.pairs)
    }

    /// Cosines and sines, `[samples, 1, N, channels]`.
    pub fn tables(&self) -> [Tensor<4>; 2] {
        [self.cos.clone(), self.sin.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    /// The score of a query and a key depends on their distance alone.
    #[test]
    fn scores_depend_on_distances() {
        let device = Device::flex();
        let draw = || Tensor::<4>::random([1, 1, 1, 12], Distribution::Normal(0.0, 1.0), &device);
        let (q, k) = (draw(), draw());
        let score = |at: usize, to: usize| {
            let rope = |p: usize| Rope::line(&[vec![p]], &frequencies(12, 100.0, None), &device);
            (rope(at).turn(q.clone()) * rope(to).turn(k.clone())).sum().into_scalar::<f32>()
        };
        assert!((score(3, 7) - score(13, 17)).abs() < 1e-4);
        assert!((score(3, 7) - score(3, 8)).abs() > 1e-4);
    }

    #[test]
    fn sections_on_one_axis_are_a_line() {
        let device = Device::flex();
        let x = Tensor::<4>::random([1, 2, 3, 8], Distribution::Normal(0.0, 1.0), &device);
        let turns = frequencies(8, 100.0, None);
        let line = Rope::line(&[vec![4, 5, 6]], &turns, &device).turn(x.clone());
        let positions = [vec![4, 5, 6], vec![4, 5, 6]];
        let both = Rope::sections(&positions, &[1, 3], &turns, &device).turn(x);
        assert_eq!(line.into_data(), both.into_data());
    }

    #[test]
    fn channels_that_fit_no_axis_stay() {
        let device = Device::flex();
        let x = Tensor::<4>::random([1, 1, 1, 16], Distribution::Normal(0.0, 1.0), &device);
        let y = Rope::grid(&[vec![[3, 1, 2]]], 16, &device).turn(x.clone());
        let tail = |t: Tensor<4>| t.slice_dim(3, 12..16).into_data();
        assert_eq!(tail(x.clone()), tail(y.clone()));
        let norm = |t: Tensor<4>| t.square().sum().into_scalar::<f32>();
        assert!(norm(x.clone() - y) > 1e-3 * norm(x));
    }
}
