//! VideoMAE's position table: interleaved sines and cosines that are no parameter.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Tensor, TensorData};

use super::positions::{self, Lattice};

/// A fixed position table, computed when it is first used.
#[derive(Debug, Clone)]
pub struct FixedTable {
    lattice: Lattice,
    width: usize,
    side: Option<usize>,
    made: Arc<OnceLock<Vec<f32>>>,
}

impl FixedTable {
    /// For a lattice; stretched from a square grid of `side` when that is given.
    pub fn new(lattice: Lattice, width: usize, side: Option<usize>) -> Self {
        Self { lattice, width, side, made: Arc::default() }
    }

    /// Values, `[N, D]` row-major.
    pub fn values(&self) -> &[f32] {
        self.made.get_or_init(|| {
            let [frames, rows, columns] = self.lattice;
            match self.side {
                Some(side) if [side, side] != [rows, columns] => {
                    let table = positions::interleaved(frames * side * side, self.width);
                    positions::resize(&table, [side, side], [rows, columns], self.width)
                }
                _ => positions::interleaved(frames * rows * columns, self.width),
            }
        })
    }

    /// `[1, N, D]` on the device and in the precision of `like`, without gradient.
    pub fn tensor(&self, like: &Tensor<3>) -> Tensor<3> {
        let tokens: usize = self.lattice.iter().product();
        let data = TensorData::new(self.values().to_vec(), [1, tokens, self.width]);
        Tensor::<3>::from_data(data, &like.device().inner()).cast(like.dtype())
    }
}
