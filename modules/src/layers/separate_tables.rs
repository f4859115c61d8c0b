//! A learned position table in parts: places, frames and class tokens, summed where they meet.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::positions::{self, Lattice};
use crate::init::Init;

/// The parts. Sine-cosine starts; the rows of class tokens start at 0.
#[derive(Module, Debug)]
pub struct SeparateTables {
    /// Of places, `[1, H W, D]`.
    pub spatial: Param<Tensor<3>>,
    /// Of frames, `[1, T, D]`.
    pub temporal: Param<Tensor<3>>,
    /// Of class tokens, `[1, C, D]`.
    pub cls: Option<Param<Tensor<3>>>,
}

impl SeparateTables {
    /// For a lattice behind so many class tokens. The width must be a multiple of 4.
    pub fn new([frames, rows, columns]: Lattice, width: usize, front: usize, init: &Init) -> Self {
        let space = move || positions::plane(rows, columns, width);
        let time = move || positions::line(frames, width);
        Self {
            spatial: init.computed([1, rows * columns, width], space),
            temporal: init.computed([1, frames, width], time),
            cls: (front > 0).then(|| init.constant([1, front, width], 0.0)),
        }
    }

    /// The whole table, `[1, C + T H W, D]`, time outermost.
    pub fn whole(&self) -> Tensor<3> {
        let (space, time) = (self.spatial.val(), self.temporal.val());
        let ([_, places, width], frames) = (space.dims(), time.dims()[1]);
        let sum = space.unsqueeze::<4>() + time.reshape([1, frames, 1, width]);
        let sum = sum.reshape([1, frames * places, width]);
        match &self.cls {
            Some(front) => Tensor::cat(vec![front.val(), sum], 1),
            None => sum,
        }
    }
}
