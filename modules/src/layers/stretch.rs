//! Learned position tables of one lattice, stretched to another: in time linearly, in space
//! bicubically, corners not aligned. Gradients reach the table.

use burn::tensor::{Tensor, TensorData};

use super::positions::{self, Lattice};

/// Weights `[to, from]` of linear interpolation, as PyTorch's.
fn linear(from: usize, to: usize) -> Vec<f32> {
    let mut unit = vec![0.0; from * from];
    (0..from).for_each(|place| unit[place * from + place] = 1.0);
    positions::stretch(&unit, from, to)
}

/// Weights `[to, from]` of bicubic interpolation between planes.
fn plane(from: [usize; 2], to: [usize; 2]) -> Vec<f32> {
    let all: usize = from.iter().product();
    // Each place of the old plane as a channel of its own.
    let mut unit = vec![0.0; all * all];
    (0..all).for_each(|place| unit[place * all + place] = 1.0);
    positions::resize(&unit, from, to, all)
}

/// A table `[1, front + N, D]` for the lattice `from`, of which the first rows stay, as a table
/// `[1, front + M, D]` for the lattice `to`.
pub fn table(table: Tensor<3>, front: usize, from: Lattice, to: Lattice) -> Tensor<3> {
    if from == to {
        return table;
    }
    let [_, rows, width] = table.dims();
    let device = table.device().inner();
    let matrix = |values: Vec<f32>, [to, from]: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values, [to, from]), &device).cast(table.dtype())
    };
    let [old, new] = [from, to].map(|[_, rows, columns]| [rows, columns]);
    let [before, after] = [old, new].map(|[rows, columns]| rows * columns);
    let mut patches = table.clone().slice_dim(1, front..rows).squeeze_dim::<2>(0);
    if from[0] != to[0] {
        let weights = matrix(linear(from[0], to[0]), [to[0], from[0]]);
        patches = weights.matmul(patches.reshape([from[0], before * width]));
    }
    let mut patches = patches.reshape([to[0], before, width]);
    if old != new {
        let weights = matrix(plane(old, new), [after, before]).unsqueeze::<3>();
        patches = weights.matmul(patches);
    }
    let patches = patches.reshape([1, to[0] * after, width]);
    match front {
        0 => patches,
        _ => Tensor::cat(vec![table.slice_dim(1, 0..front), patches], 1),
    }
}

/// The mean over time of a table `[1, front + T A, D]`, of which the first rows stay, for pictures of
/// `places` patches: `[1, front + A, D]`.
pub fn still(table: Tensor<3>, front: usize, places: usize) -> Tensor<3> {
    let [_, rows, width] = table.dims();
    let patches = table.clone().slice_dim(1, front..rows);
    let patches = patches.reshape([(rows - front) / places, places, width]).mean_dim(0);
    match front {
        0 => patches,
        _ => Tensor::cat(vec![table.slice_dim(1, 0..front), patches], 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn values(table: Tensor<3>) -> Vec<f32> {
        table.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn frames_between_two_are_their_mean_and_class_rows_stay() {
        let rows = [[[9.0f32], [1.0], [3.0]]];
        let found = table(Tensor::from_data(rows, &Device::flex()), 1, [2, 1, 1], [4, 1, 1]);
        assert_eq!(values(found), [9.0, 1.0, 1.5, 2.5, 3.0]);
    }

    #[test]
    fn planes_stretch_as_they_do_without_gradient() {
        let given: Vec<f32> = (0..32).map(|i| (i as f32).sin()).collect();
        let rows = Tensor::<1>::from_data(given.as_slice(), &Device::flex()).reshape([1, 16, 2]);
        let found = values(table(rows, 0, [1, 4, 4], [1, 6, 3]));
        let expected = positions::resize(&given, [4, 4], [6, 3], 2);
        assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
