//! What attention remembers of earlier tokens.

use std::ops::Range;

use burn::tensor::{Int, Tensor};

/// Keys and values of earlier tokens, `[B, heads, N, d]` each.
///
/// They lie in tensors with room for more, so that a new token does not copy those before it.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    held: Option<[Tensor<4>; 2]>,
    count: usize,
}

impl Cache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Puts tokens behind those that are held; returns all.
    pub(super) fn extend(&mut self, keys: Tensor<4>, values: Tensor<4>) -> [Tensor<4>; 2] {
        let new = self.count..self.count + keys.dims()[2];
        self.count = new.end;
        let Some(held) = self.held.take() else {
            // The first tokens may be the only ones: room is made when more come.
            return self.held.insert([keys, values]).clone();
        };
        let [k, v] = held;
        let held = [put(k, keys, new.clone()), put(v, values, new.clone())];
        self.held.insert(held).clone().map(|t| t.slice_dim(2, 0..new.end))
    }

    /// The samples of these numbers, in this order, as a beam search goes on with some of them.
    pub fn select(&mut self, samples: Tensor<1, Int>) {
        self.held = self.held.take().map(|held| held.map(|t| t.select(0, samples.clone())));
    }
}

/// Writes tokens into places of a tensor, which gets room for half as many more when it has none.
fn put(held: Tensor<4>, part: Tensor<4>, places: Range<usize>) -> Tensor<4> {
    let [batch, heads, room, width] = held.dims();
    let held = if places.end <= room {
        held
    } else {
        let more = [batch, heads, places.end + places.end / 2 + 8 - room, width];
        let more = Tensor::zeros(more, (&held.device(), held.dtype()));
        Tensor::cat(vec![held, more], 2)
    };
    held.slice_assign([0..batch, 0..heads, places, 0..width], part)
}
