//! Latent L1 loss: predicted vectors against those of a teacher, channel by channel.
//!
//! | port        | dims    | what                                                             |
//! |-------------|---------|------------------------------------------------------------------|
//! | `predicted` | `B M D` | predicted vectors                                                |
//! | `target`    | `B M D` | the teacher's vectors; `B N D`, of the whole clip, with `hidden`  |
//! | `hidden`    | `B M`   | optional: indices of the predicted patches                       |
//! | `loss`      | `1`     | mean over vectors and channels of `|p - t|^e / e`                |
//!
//! e is the exponent, 1 or 2. With `normalise` each target gets mean 0 and variance 1 over its
//! channels first (LayerNorm without weight and bias), so that a teacher cannot shrink to 0. Class
//! tokens that a teacher gives before its patches are left out.
//! Source: Assran et al. 2025, "V-JEPA 2" (arXiv 2506.09985), section 2.1; recipes §6.

use burn::module::Module;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::latent;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Exponent e of the distance: 1 or 2.
    pub exponent: u8,
    /// Whether targets are normalised over their channels.
    pub normalise: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { exponent: 1, normalise: true }
    }
}

/// No parameters.
#[derive(Module, Debug)]
pub struct LatentL1 {
    exponent: u8,
    normalise: bool,
    front: usize,
}

impl LatentL1 {
    /// What is to be predicted, from the teacher's vectors `[B, M, D]`.
    pub fn target(&self, x: Tensor<3>) -> Tensor<3> {
        if self.normalise { latent::standard(x) } else { x }
    }

    /// Both `[B, M, D]`; returns `[1]`.
    pub fn forward(&self, predicted: Tensor<3>, target: Tensor<3>) -> Tensor<1> {
        let apart = predicted - target;
        latent::mean(match self.exponent {
            1 => apart.abs(),
            _ => apart.square().div_scalar(2.0),
        })
    }
}

impl Kind for Config {
    type Module = LatentL1;

    fn ports(&self, wired: &[String]) -> Ports {
        latent::ports(wired, "mean distance of the channels")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = latent::check(dims);
        if !(1..=2).contains(&self.exponent) {
            let message = format!("`exponent` is {}, but must be 1 or 2", self.exponent);
            problems.push(OptionProblem::new("exponent", message, "1 is published"));
        }
        problems
    }

    fn init(&self, dims: &Dims, _: &Init) -> LatentL1 {
        let Self { exponent, normalise } = *self;
        LatentL1 { exponent, normalise, front: latent::front(dims) }
    }

    fn forward(
        &self,
        module: &LatentL1,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let [predicted, target] = latent::pair(&mut inputs, module.front)?;
        Ok(Tensors::of("loss", module.forward(predicted, module.target(target))))
    }
}

/// Kind `losses/latent_l1`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("latent_l1.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn loss(exponent: u8, normalise: bool, predicted: [f32; 2], target: [f32; 2]) -> f32 {
        let module = LatentL1 { exponent, normalise, front: 0 };
        let vector = |x: [f32; 2]| Tensor::<3>::from_data([[x]], &Device::flex());
        let target = module.target(vector(target));
        module.forward(vector(predicted), target).into_scalar::<f32>()
    }

    #[test]
    fn the_exponent_makes_it_a_mean_of_distances_or_of_half_squares() {
        assert_eq!(loss(1, false, [1.0, 2.0], [4.0, 1.0]), 2.0);
        assert_eq!(loss(2, false, [1.0, 2.0], [4.0, 1.0]), 2.5);
    }

    #[test]
    fn normalised_targets_have_one_scale() {
        let [small, large] = [1e-1, 1e3].map(|by| loss(1, true, [1.0, -1.0], [by, -by]));
        assert!(small < 1e-3 && large < 1e-3, "{small} {large}");
    }

    #[test]
    fn other_exponents_are_refused() {
        let config = Config { exponent: 3, ..Config::default() };
        assert_eq!(config.check(&Dims::new()).len(), 1);
    }
}
