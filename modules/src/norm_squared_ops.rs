//! The sum of squares of one tensor, in one pass on the CPU.
//!
//! Pieces are added in the order in which they lie, so that the bits do not depend on threads.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;

#[backend_extension(Flex: cfg(feature = "flex"), LibTorch: cfg(feature = "tch"))]
pub(crate) trait NormSquaredOps: Backend {
    /// `Σ x²` as f32, `[1]`.
    fn norm_squared(x: FloatTensor<Self>) -> FloatTensor<Self>;
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::Flex;
    use burn::tensor::Shape;
    use burn_flex::FlexTensor;
    use rayon::prelude::*;

    use super::NormSquaredOps;
    use crate::layers::flex::{numbers, tensor, whole};
    use crate::layers::lanes::{sum, wide};

    /// Numbers that one task works on.
    const TASK: usize = 1 << 14;

    impl NormSquaredOps for Flex {
        fn norm_squared(x: FlexTensor) -> FlexTensor {
            let x = whole(x);
            let piece = |x: &[f32]| wide(|| sum(x.len(), |place| x[place] * x[place]));
            let pieces: Vec<f32> = numbers(&x).par_chunks(TASK).map(piece).collect();
            let all: f64 = pieces.into_iter().map(f64::from).sum();
            tensor(vec![all as f32], Shape::new([1]))
        }
    }
}

#[cfg(feature = "tch")]
mod libtorch {
    use burn::backend::LibTorch;
    use burn_tch::TchTensor;
    use tch::Kind;

    use super::NormSquaredOps;

    impl NormSquaredOps for LibTorch {
        fn norm_squared(x: TchTensor) -> TchTensor {
            // Row by row: a sum over a whole large tensor adds its pieces in the order in which threads
            // finish them.
            let x = x.tensor.to_kind(Kind::Float);
            let rows = x.size().first().copied().unwrap_or(1).max(1);
            let norms = x.reshape([rows, -1]).norm_scalaropt_dim(2, 1i64, false);
            let sums = norms.square();
            TchTensor::new(sums.sum(Kind::Float).reshape([1]))
        }
    }
}

/// `Σ x²` as f32, `[1]`.
pub(crate) fn norm_squared<const R: usize>(x: Tensor<R>) -> Tensor<1> {
    Tensor::from_dispatch(<Dispatch as NormSquaredOps>::norm_squared(x.into_dispatch()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Distribution};

    fn check(device: Device) {
        let x = Tensor::<2>::random([301, 150], Distribution::Normal(0.0, 1.0), &device);
        let values: Vec<f32> = x.to_data().try_to_vec().unwrap();
        let expected: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum();
        let found = f64::from(norm_squared(x).into_scalar::<f32>());
        assert!((found - expected).abs() < 1e-5 * expected, "{found}, not {expected}");
        let nothing = Tensor::<1>::zeros([0], &device);
        assert_eq!(norm_squared(nothing).into_scalar::<f32>(), 0.0);
    }

    #[test]
    fn it_is_the_sum_of_squares() {
        check(Device::flex());
        #[cfg(feature = "tch")]
        check(Device::libtorch());
    }
}
