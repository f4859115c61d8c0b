//! Smooth L1 loss: as squares near the target and as distances far from it.
//!
//! | port        | dims    | what                                                             |
//! |-------------|---------|------------------------------------------------------------------|
//! | `predicted` | `B M D` | predicted vectors                                                |
//! | `target`    | `B M D` | the teacher's vectors; `B N D`, of the whole clip, with `hidden`  |
//! | `hidden`    | `B M`   | optional: indices of the predicted patches                       |
//! | `loss`      | `1`     | mean over vectors and channels                                   |
//!
//! A channel that is d off costs `d^2 / 2 beta` below `beta`, and `|d| - beta / 2` above (Huber).
//! `normalise` and `hidden` are as in `losses/latent_l1`.
//! Source: Girshick 2015, "Fast R-CNN" (arXiv 1504.08083); Baevski et al. 2022, "data2vec" (arXiv
//! 2202.03555); Bardes et al. 2024, "V-JEPA" (arXiv 2404.08471).

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
    /// Where squares end.
    pub beta: f64,
    /// Whether targets are normalised over their channels.
    pub normalise: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { beta: 1.0, normalise: true }
    }
}

/// No parameters.
#[derive(Module, Debug)]
pub struct SmoothL1 {
    beta: f64,
    normalise: bool,
    front: usize,
}

impl SmoothL1 {
    /// Both `[B, M, D]`; returns `[1]`.
    pub fn forward(&self, predicted: Tensor<3>, target: Tensor<3>) -> Tensor<1> {
        let target = if self.normalise { latent::standard(target) } else { target };
        let apart = (predicted - target).abs();
        let near = apart.clone().clamp_max(self.beta);
        latent::mean(near.clone().square().div_scalar(2.0 * self.beta) + (apart - near))
    }
}

impl Kind for Config {
    type Module = SmoothL1;

    fn ports(&self, wired: &[String]) -> Ports {
        latent::ports(wired, "mean smooth distance of the channels")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = latent::check(dims);
        if !(self.beta > 0.0 && self.beta.is_finite()) {
            let message = format!("`beta` is {}, but must be above 0", self.beta);
            problems.push(OptionProblem::new("beta", message, "1 is usual"));
        }
        problems
    }

    fn init(&self, dims: &Dims, _: &Init) -> SmoothL1 {
        let Self { beta, normalise } = *self;
        SmoothL1 { beta, normalise, front: latent::front(dims) }
    }

    fn forward(
        &self,
        module: &SmoothL1,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let [predicted, target] = latent::pair(&mut inputs, module.front)?;
        Ok(Tensors::of("loss", module.forward(predicted, target)))
    }
}

/// Kind `losses/smooth_l1`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("smooth_l1.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn near_channels_cost_squares_and_far_ones_distances() {
        let module = SmoothL1 { beta: 0.5, normalise: false, front: 0 };
        let device = Device::flex().autodiff();
        let predicted = Tensor::<3>::from_data([[[0.25, -2.0]]], &device).require_grad();
        let loss = module.forward(predicted.clone(), Tensor::zeros([1, 1, 2], &device));
        assert_eq!(loss.clone().into_scalar::<f32>(), (0.0625 + 1.75) / 2.0);
        let slope = predicted.grad(&loss.backward()).unwrap().into_data();
        assert_eq!(slope.try_to_vec::<f32>().unwrap(), [0.25, -0.5]);
    }

    #[test]
    fn a_width_of_nothing_is_refused() {
        let config = Config { beta: 0.0, ..Config::default() };
        assert_eq!(config.check(&Dims::new()).len(), 1);
    }
}
