//! What kernels for burn's CPU backend share: its tensors as f32 in one piece.

use burn::backend::ops::FloatTensorOps;
use burn::backend::{DType, Flex};
use burn::tensor::{Bytes, FloatDType, Shape};
use burn_flex::{FlexTensor, Layout};

/// A float tensor as f32, in one piece, in the order of its dims.
pub(crate) fn whole(x: FlexTensor) -> FlexTensor {
    let x = if x.dtype() == DType::F32 { x } else { Flex::float_cast(x, FloatDType::F32) };
    // The argument is dropped here, so that what nobody else holds can be written in place.
    let whole = x.to_contiguous();
    drop(x);
    whole
}

/// The numbers of what [`whole`] returned.
pub(crate) fn numbers(x: &FlexTensor) -> &[f32] {
    x.storage()
}

/// A tensor of these numbers.
pub(crate) fn tensor(numbers: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(numbers), Layout::contiguous(shape), DType::F32)
}

/// Back to the dtype that a caller had.
pub(crate) fn back(x: FlexTensor, dtype: DType) -> FlexTensor {
    if dtype == DType::F32 { x } else { Flex::float_cast(x, dtype.into()) }
}
