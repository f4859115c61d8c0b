//! VideoMAE's position table: interleaved sines and cosines that are no parameter.

use std::sync::{Arc, OnceLock};

use burn::tensor::{Tensor, TensorData};

use super::positions::{self, Lattice};

/// Steps of time of the published table, from which those of other clips are stretched.
const STEPS: usize = 8;

/// A fixed position table, computed when it is first used.
#[derive(Debug, Clone)]
pub struct FixedTable {
    lattice: Lattice,
    width: usize,
    side: Option<usize>,
    made: Arc<OnceLock<Vec<f32>>>,
}

impl FixedTable {
    /// For a lattice; stretched from 8 steps of a square grid of `side` when that is given.
    pub fn new(lattice: Lattice, width: usize, side: Option<usize>) -> Self {
        Self { lattice, width, side, made: Arc::default() }
    }

    /// Values, `[N, D]` row-major.
    pub fn values(&self) -> &[f32] {
        self.made.get_or_init(|| {
            let [frames, rows, columns] = self.lattice;
            match self.side {
                Some(side) => {
                    let grids = [[side, side], [rows, columns]];
                    let table = positions::interleaved(STEPS * side * side, self.width);
                    let table = match grids {
                        [from, to] if from == to => table,
                        [from, to] => positions::resize(&table, from, to, self.width),
                    };
                    positions::stretch(&table, STEPS, frames)
                }
                None => positions::interleaved(frames * rows * columns, self.width),
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
