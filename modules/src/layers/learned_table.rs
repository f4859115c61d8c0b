//! Learned position tables, stretched from their own grid to another one.
//!
//! Stretching is a product with a fixed matrix, so that the table keeps its gradient.

use burn::tensor::{FloatDType, Tensor, TensorData};

use crate::video::transform::Filter;
use crate::video::transform::resize::matrix;

/// How a table is stretched; corners are not aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Bicubic or bilinear.
    pub filter: Filter,
    /// Whether the filter widens when the grid shrinks.
    pub antialias: bool,
}

impl Stretch {
    /// Bicubic with the filter as it is (CLIP, SigLIP, InternViT).
    pub const BICUBIC: Self = Self { filter: Filter::Bicubic, antialias: false };
    /// Bilinear with a filter that widens (SigLIP 2 NaFlex).
    pub const BILINEAR: Self = Self { filter: Filter::Bilinear, antialias: true };

    fn axis(self, from: usize, to: usize) -> Vec<f32> {
        matrix(from, to, self.filter, self.antialias)
    }

    /// Rows of `table`, `[1, r c, D]` on a grid `from`, at the places of a grid `to`: `[1, N, D]`.
    pub fn grid(self, table: Tensor<3>, from: [usize; 2], to: [usize; 2]) -> Tensor<3> {
        if from == to {
            return table;
        }
        let (dtype, [_, _, width]) = (table.dtype(), table.dims());
        let device = table.device().inner();
        let axis = |i: usize| {
            let data = TensorData::new(self.axis(from[i], to[i]), [1, to[i], from[i]]);
            Tensor::<3>::from_data(data, &device)
        };
        let table = table.cast(FloatDType::F32).reshape([1, from[0], from[1] * width]);
        let table = axis(0).matmul(table).reshape([to[0], from[1], width]);
        let columns = axis(1).expand([to[0], to[1], from[1]]);
        columns.matmul(table).reshape([1, to[0] * to[1], width]).cast(dtype)
    }

    /// A grid of its own for each sample, `[B, tokens, D]`, padded with zeros.
    pub fn grids(
        self,
        table: Tensor<3>,
        from: [usize; 2],
        to: &[[usize; 2]],
        tokens: usize,
    ) -> Tensor<3> {
        let places = from[0] * from[1];
        let mut weights = vec![0.0; to.len() * tokens * places];
        for (sample, [rows, columns]) in to.iter().enumerate() {
            let (down, across) = (self.axis(from[0], *rows), self.axis(from[1], *columns));
            for token in 0..rows * columns {
                let (row, column) = (token / columns, token % columns);
                let out = &mut weights[(sample * tokens + token) * places..][..places];
                for (place, weight) in out.iter_mut().enumerate() {
                    let (r, c) = (place / from[1], place % from[1]);
                    *weight = down[row * from[0] + r] * across[column * from[1] + c];
                }
            }
        }
        let (dtype, [_, _, width]) = (table.dtype(), table.dims());
        let data = TensorData::new(weights, [to.len() * tokens, places]);
        let weights = Tensor::<2>::from_data(data, &table.device().inner());
        let table = table.cast(FloatDType::F32).reshape([places, width]);
        weights.matmul(table).reshape([to.len(), tokens, width]).cast(dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::positions;
    use burn::tensor::{Device, Distribution};

    fn table(device: &Device) -> Tensor<3> {
        Tensor::random([1, 12, 5], Distribution::Normal(0.0, 1.0), device)
    }

    #[test]
    fn a_learned_table_is_stretched_as_a_fixed_one() {
        let table = table(&Device::flex());
        let values: Vec<f32> = table.to_data().iter::<f32>().collect();
        let fixed = positions::resize(&values, [3, 4], [5, 2], 5);
        let found = Stretch::BICUBIC.grid(table, [3, 4], [5, 2]).into_data();
        for (a, b) in found.iter::<f32>().zip(fixed) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn samples_get_grids_of_their_own_and_the_table_a_gradient() {
        let table = table(&Device::flex().autodiff()).require_grad();
        let whole = Stretch::BILINEAR.grids(table.clone(), [3, 4], &[[2, 3], [3, 4]], 12);
        let one = Stretch::BILINEAR.grid(table.clone(), [3, 4], [2, 3]);
        let first = whole.clone().slice([0..1, 0..6]);
        assert!((first - one).abs().max().into_scalar::<f32>() < 1e-6);
        assert_eq!(whole.clone().slice([0..1, 6..12]).abs().max().into_scalar::<f32>(), 0.0);
        let all = whole.slice_dim(0, 1..2).sum().backward();
        let gradient = table.grad(&all).expect("a gradient");
        assert!((gradient.sub_scalar(1.0)).abs().max().into_scalar::<f32>() < 1e-6);
    }
}
