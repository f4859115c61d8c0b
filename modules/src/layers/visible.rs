//! Choosing which patches stay visible.
//!
//! A choice is a list of patch indices, time-major and ascending. A mask of ratio r leaves
//! `N - floor(N r)` of N patches visible.

use schemas::frame::Frame;
use serde::{Deserialize, Serialize};

use crate::rng::Key;

/// Over what a share of the patches is hidden.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Per {
    /// The same number in every frame.
    #[default]
    Frame,
    /// One number for the whole clip.
    Clip,
}

/// Weighted sampling without replacement: indices by descending `score / noise`, where the noise
/// is drawn from Exp(1). Equal ratios keep their order.
pub fn order(scores: &[f32], noise: &[f32]) -> Vec<usize> {
    let ratio = |i: usize| scores[i] / noise[i];
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| ratio(*b).total_cmp(&ratio(*a)));
    order
}

/// As many Exp(1) draws as there are patches.
pub fn noise(key: &Key, patches: usize) -> Vec<f32> {
    let mut rng = key.rng();
    (0..patches).map(|_| rng.exponential() as f32).collect()
}

/// The first `count` of each group of an order per group, as ascending indices of the clip.
pub fn first(orders: &[Vec<usize>], count: usize) -> Vec<i64> {
    let mut chosen = Vec::with_capacity(orders.len() * count);
    let mut start = 0;
    for order in orders {
        let mut group: Vec<i64> = order[..count].iter().map(|i| (start + i) as i64).collect();
        group.sort_unstable();
        chosen.extend(group);
        start += order.len();
    }
    chosen
}

/// Choices of all samples as a frame `[B, V]`.
pub fn frame(samples: Vec<Vec<i64>>) -> Frame {
    let shape = [samples.len(), samples.first().map_or(0, Vec::len)];
    Frame::i64(shape, samples.into_iter().flatten())
}
