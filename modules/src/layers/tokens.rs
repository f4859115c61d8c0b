//! Gathering of tokens by index.

use burn::tensor::{Int, Tensor, TensorData};

/// Rows of `x` (`[B, N, D]`) named by `index` (`[B, V]`); returns `[B, V, D]`.
pub fn gather(x: Tensor<3>, index: Tensor<2, Int>) -> Tensor<3> {
    let [batch, tokens, width] = x.dims();
    let visible = index.dims()[1];
    let starts: Vec<i64> = (0..batch).map(|sample| (sample * tokens) as i64).collect();
    let starts = Tensor::<2, Int>::from_data(TensorData::new(starts, [batch, 1]), &index.device());
    let flat = (index + starts).reshape([batch * visible]);
    x.reshape([batch * tokens, width]).select(0, flat).reshape([batch, visible, width])
}
