//! Positions by distance: a convolution over tokens, and numbers for distances behind a gate.
//!
//! Source: Chen et al. 2022, "BEATs" (arXiv 2212.09058); Chi et al. 2021, gated relative position bias
//! (arXiv 2106.16138); Raffel et al. 2019, buckets of distances (arXiv 1910.10683).

use burn::module::{Module, Param};
use burn::tensor::module::conv1d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Int, Tensor, TensorData, activation};

use super::attention::Attention;
use super::block::Block;
use super::linear::Linear;
use super::mlp::Activation;
use crate::init::Init;

/// A convolution over tokens whose kernel has a learned length at each place (Salimans and Kingma
/// 2016, over the third dim).
#[derive(Module, Debug)]
pub struct PositionConv {
    /// Lengths, `[1, 1, kernel]`.
    pub weight_g: Param<Tensor<3>>,
    /// Directions, `[D, D / groups, kernel]`.
    pub weight_v: Param<Tensor<3>>,
    /// `[D]`.
    pub bias: Param<Tensor<1>>,
    groups: usize,
}

impl PositionConv {
    /// Over `kernel` tokens, in `groups` of channels.
    pub fn new([width, kernel, groups]: [usize; 3], init: &Init) -> Self {
        let sigma = (4.0 / (kernel * width) as f64).sqrt();
        // The lengths begin as those of the drawn directions, on average.
        let length = sigma * ((width * (width / groups)) as f64).sqrt();
        Self {
            weight_g: init.constant([1, 1, kernel], length as f32),
            weight_v: init.normal([width, width / groups, kernel], sigma),
            bias: init.constant([width], 0.0),
            groups,
        }
    }

    /// `[B, N, D]`; returns what is added, `[B, N, D]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let tokens = x.dims()[1];
        let v = self.weight_v.val();
        let kernel = v.dims()[2];
        let norm = v.clone().square().sum_dim(0).sum_dim(1).sqrt();
        let weight = v * (self.weight_g.val() / norm);
        let options = ConvOptions::new([1], [kernel / 2], [1], self.groups);
        let y = conv1d(x.swap_dims(1, 2), weight, Some(self.bias.val()), options);
        // An even kernel gives one token too many.
        let y = y.slice_dim(2, 0..tokens);
        Activation::Gelu.apply(y).swap_dims(1, 2)
    }
}

/// A block, and the gate of its relative positions.
#[derive(Module, Debug)]
pub struct GatedBlock {
    /// The block.
    pub block: Block,
    /// From a query's channels to eight numbers, four for each half of the gate.
    pub gate: Linear,
    /// `[1, heads, 1, 1]`.
    pub gate_scale: Param<Tensor<4>>,
}

impl GatedBlock {
    /// A block with a gate.
    pub fn new(block: Block, heads: usize, head: usize, init: &Init) -> Self {
        let gate = init.linear(head, 8, true, 1.0);
        Self { block, gate, gate_scale: init.constant([1, heads, 1, 1], 1.0) }
    }

    /// Numbers `[B, heads, N, N]` for tokens `[B, N, D]` that enter the attention, from those of the
    /// distances, `[1, heads, N, N]`.
    pub fn bias(&self, x: Tensor<3>, distances: Tensor<4>) -> Tensor<4> {
        let Attention { q, .. } = &self.block.attn;
        let [batch, tokens, _] = x.dims();
        let heads = self.gate_scale.lazy_shape()[1];
        let q = q.forward(x);
        let width = q.dims()[2] / heads;
        let q = q.reshape([batch, tokens, heads, width]).swap_dims(1, 2);
        let parts = self.gate.forward(q).reshape([batch * heads, tokens, 2, 4]).sum_dim(3);
        let parts = activation::sigmoid(parts).reshape([batch, heads, tokens, 2]);
        let (a, b) = (parts.clone().slice_dim(3, 0..1), parts.slice_dim(3, 1..2));
        let gate = a * (b * self.gate_scale.val()).sub_scalar(1.0);
        gate.add_scalar(2.0) * distances
    }
}

/// The bucket of a distance from query to key: near ones have their own, far ones share them
/// logarithmically; half of the buckets are for keys that come later.
pub fn bucket(offset: i64, buckets: usize, most: usize) -> i64 {
    let half = (buckets / 2) as i64;
    let (later, near) = (if offset > 0 { half } else { 0 }, half / 2);
    let distance = offset.abs();
    if distance < near {
        return later + distance;
    }
    let share = (distance as f64 / near as f64).ln() / (most as f64 / near as f64).ln();
    later + (near + (share * (half - near) as f64) as i64).min(half - 1)
}

/// Numbers `[1, heads, N, N]` for the distances of so many tokens, from a table `[buckets, heads]`.
pub fn distances(table: Tensor<2>, tokens: usize, most: usize) -> Tensor<4> {
    let [buckets, heads] = table.dims();
    let n = tokens as i64;
    let pairs = (0..n).flat_map(|query| (0..n).map(move |key| key - query));
    let places: Vec<i64> = pairs.map(|offset| bucket(offset, buckets, most)).collect();
    let places = TensorData::new(places, [tokens * tokens]);
    let places = Tensor::<1, Int>::from_data(places, &table.device().inner());
    table.select(0, places).reshape([1, tokens, tokens, heads]).permute([0, 3, 1, 2])
}

/// Shares a mask `[B, P]` out among `to` places: one is there unless all of its share is absent.
pub fn share_out(mask: &Tensor<2, Int>, to: usize) -> Tensor<2, Int> {
    let [batch, from] = mask.dims();
    let each = from / to.max(1);
    let held = mask.clone().slice_dim(1, 0..each * to).reshape([batch, to, each]);
    held.max_dim(2).squeeze_dim(2)
}

/// Which tokens are there, from a mask of samples or of rows.
pub fn present(mask: &Tensor<2, Int>, rows: usize, tokens: usize) -> Tensor<2, Int> {
    let mask = if mask.dims()[1] == rows { mask.clone() } else { share_out(mask, rows) };
    share_out(&mask, tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn near_distances_have_buckets_of_their_own_and_far_ones_share() {
        let found: Vec<i64> = [-9, -2, -1, 0, 1, 2, 9, 400].map(|d| bucket(d, 16, 40)).to_vec();
        assert_eq!(found, [5, 2, 1, 0, 9, 10, 13, 15]);
    }

    #[test]
    fn a_share_is_absent_when_all_of_it_is() {
        let mask = Tensor::<2, Int>::from_data([[1, 1, 0, 0, 0, 0, 1]], &Device::flex());
        let found = share_out(&mask, 3).into_data();
        assert_eq!(found.iter::<i64>().collect::<Vec<_>>(), [1, 0, 0]);
    }
}
