//! Patches: pixels of named patches of a clip as vectors, what a diffusion loss paints.
//!
//! | port      | dims        | what                                                      |
//! |-----------|-------------|-----------------------------------------------------------|
//! | `video`   | `B 3 T H W` | any clip                                                  |
//! | `hidden`  | `B M`       | indices of the patches                                    |
//! | `patches` | `B M C`     | their numbers as they are: colour, then frame, row, column |
//!
//! C = 3 t p p. No parameters, no gradient.
//! Source: InternVideo-Next; recipes §5.4.

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::patch_embed::patches;
use crate::layers::size::{Size, check_named, side};
use crate::layers::tokens;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Pixels per side of a patch.
    pub patch: usize,
    /// Frames per patch.
    pub tubelet: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { patch: Size::TINY.patch, tubelet: 1 }
    }
}

/// No parameters.
#[derive(Module, Debug)]
pub struct Patches {
    patch: usize,
    tubelet: usize,
}

impl Patches {
    /// Patches `hidden` (`[B, M]`) of a clip; returns `[B, M, C]`.
    pub fn forward(&self, video: Tensor<5>, hidden: Tensor<2, Int>) -> Tensor<3> {
        let all = patches(video, [self.tubelet, self.patch, self.patch]);
        let [batch, number, channels, pixels] = all.dims();
        tokens::gather(all.reshape([batch, number, channels * pixels]), hidden)
    }
}

impl Config {
    fn size(&self) -> Size {
        Size { patch: self.patch, tubelet: self.tubelet, ..Size::TINY }
    }
}

impl Kind for Config {
    type Module = Patches;

    fn ports(&self, _: &[String]) -> Ports {
        let size = self.size();
        Ports::default()
            .stopped("video", "B 3 T H W")
            .about("any clip")
            .stopped("hidden", "B M")
            .int()
            .lattice(size.lattice())
            .about("indices of the patches")
            .plain("patches", format!("B M {}", size.voxels()))
            .lattice(size.lattice())
            .about("their numbers as they are")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = self.size().check_cut();
        for (name, value) in [("patch", self.patch), ("tubelet", self.tubelet)] {
            if value > 1 << 12 {
                let message = format!("`{name}` is {value}, more than any model has");
                problems.push(OptionProblem::new(name, message, "give a number up to 4096"));
            }
        }
        let all: usize =
            if problems.is_empty() { self.size().cut(dims).iter().product() } else { 0 };
        problems.extend(check_named("hidden", side(dims, "M"), all));
        problems
    }

    fn init(&self, _: &Dims, _: &Init) -> Patches {
        Patches { patch: self.patch, tubelet: self.tubelet }
    }

    fn forward(
        &self,
        module: &Patches,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let video: Tensor<5> = inputs.take("video")?;
        let patches = module.forward(video, inputs.take("hidden")?);
        Ok(Tensors::of("patches", patches.detach()))
    }
}

/// Kind `models/patches`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("patches.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn colours_come_one_after_the_other() {
        let device = Device::flex();
        let video = Tensor::<1, Int>::arange(0..24, &device).float().reshape([1, 3, 1, 2, 4]);
        let hidden = Tensor::<2, Int>::from_data([[1]], &device);
        let found = Patches { patch: 2, tubelet: 1 }.forward(video, hidden);
        let found = found.into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(found, [2., 3., 6., 7., 10., 11., 14., 15., 18., 19., 22., 23.]);
    }

    #[test]
    fn patches_of_nothing_are_refused() {
        assert_eq!(Config { patch: 0, tubelet: 1 }.check(&Dims::new())[0].option, "patch");
    }
}
