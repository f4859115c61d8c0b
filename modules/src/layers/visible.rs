//! Choosing which patches stay visible.
//!
//! A choice is a list of patch indices, time-major and ascending. A mask of ratio r leaves
//! `N - floor(N r)` of N patches visible. Every mask gives the visible patches and the hidden ones.

use schemas::frame::{Frame, Frames};
use schemas::node::Forwarded;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use super::size::Size;
use crate::kind::Call;
use crate::rng::{Key, Rng};

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

/// The ports of a mask that looks at the shape of a clip only, and leaves `seen` patches visible.
pub fn ports_of_clip(size: &Size, seen: &str) -> Ports {
    let inputs =
        Ports::default().stopped("video", "B 3 T H W").about("any clip; only its shape is used");
    ports(inputs, seen, &size.tokens(), &size.lattice())
}

/// What [`ports_of_clip`] promises: the visible patches of each sample, of `all`, chosen with draws of
/// its own.
pub fn give_drawn(
    inputs: &Frames,
    call: &Call,
    all: usize,
    choose: impl Fn(&mut Rng) -> Vec<i64>,
) -> Forwarded {
    let batch = inputs.get("video").map_or(0, |video| video.shape()[0]) as u64;
    let one = |sample| choose(&mut call.key.with_number(sample).rng());
    give((0..batch).map(one).collect(), all)
}

/// The outputs of a mask that leaves `seen` of `all` patches of a lattice visible; all are dims.
pub fn ports(inputs: Ports, seen: &str, all: &str, lattice: &str) -> Ports {
    inputs
        .plain("visible", format!("B {seen}"))
        .int()
        .lattice(lattice)
        .about("indices of visible patches, ascending")
        .plain("hidden", format!("B {all}-{seen}"))
        .int()
        .lattice(lattice)
        .about("indices of hidden patches, ascending")
}

/// What [`ports`] promises: the visible patches of each sample, and the others of `all`.
pub fn give(samples: Vec<Vec<i64>>, all: usize) -> Forwarded {
    let hidden = samples.iter().map(|seen| others(seen, all)).collect();
    give_both(samples, hidden)
}

/// What [`ports`] promises, where some patches are neither visible nor hidden.
pub fn give_both(visible: Vec<Vec<i64>>, hidden: Vec<Vec<i64>>) -> Forwarded {
    let frames = [("visible", frame(visible)), ("hidden", frame(hidden))];
    let frames = Frames::from(frames.map(|(port, frame)| (port.to_owned(), frame)));
    Forwarded { frames, ..Forwarded::default() }
}

/// The numbers below `all` that are not in an ascending list.
pub fn others(seen: &[i64], all: usize) -> Vec<i64> {
    (0..all as i64).filter(|index| seen.binary_search(index).is_err()).collect()
}

/// Choices of all samples as a frame `[B, V]`.
fn frame(samples: Vec<Vec<i64>>) -> Frame {
    let shape = [samples.len(), samples.first().map_or(0, Vec::len)];
    Frame::i64(shape, samples.into_iter().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_visible_or_hidden() {
        let given = give(vec![vec![1, 2], vec![0, 4]], 5).frames;
        assert_eq!(given["visible"].to_i64(), [1, 2, 0, 4]);
        assert_eq!(given["hidden"].to_i64(), [0, 3, 4, 1, 2, 3]);
        assert_eq!(given["hidden"].shape(), [2, 3]);
    }
}
