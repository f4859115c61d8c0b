//! Cosine loss: the angles between predicted vectors and those of a teacher.
//!
//! | port        | dims    | what                                                             |
//! |-------------|---------|------------------------------------------------------------------|
//! | `predicted` | `B M D` | predicted vectors                                                |
//! | `target`    | `B M D` | the teacher's vectors; `B N D`, of the whole clip, with `hidden`  |
//! | `hidden`    | `B M`   | optional: indices of the predicted patches                       |
//! | `loss`      | `1`     | mean over vectors of `factor (1 - cos)`                          |
//!
//! With the factor 2 it is the mean squared distance of unit vectors, between 0 and 4. Lengths do not
//! matter. `hidden` is as in `losses/latent_l1`. Measures `cosine`.
//! Source: Grill et al. 2020, "BYOL" (arXiv 2006.07733); InternVideo-Next, recipes §5.6.

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
use crate::layers::norm::unit;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Factor: 2 for `2 - 2 cos`, 1 for `1 - cos`.
    pub factor: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { factor: 2.0 }
    }
}

/// No parameters.
#[derive(Module, Debug)]
pub struct Cosine {
    front: usize,
}

impl Cosine {
    /// Mean cosine of the angles between vectors `[B, M, D]`.
    pub fn forward(&self, predicted: Tensor<3>, target: Tensor<3>) -> Tensor<1> {
        latent::mean((unit(predicted) * unit(target)).sum_dim(2))
    }
}

impl Kind for Config {
    type Module = Cosine;

    fn ports(&self, wired: &[String]) -> Ports {
        latent::ports(wired, "mean distance of the angles")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = latent::check(dims);
        if !(self.factor > 0.0 && self.factor.is_finite()) {
            let message = format!("`factor` is {}, but must be above 0", self.factor);
            problems.push(OptionProblem::new("factor", message, "write 2 or 1"));
        }
        problems
    }

    fn init(&self, dims: &Dims, _: &Init) -> Cosine {
        Cosine { front: latent::front(dims) }
    }

    fn forward(
        &self,
        module: &Cosine,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let [predicted, target] = latent::pair(&mut inputs, module.front)?;
        let cosine = module.forward(predicted, target);
        let loss = cosine.clone().neg().add_scalar(1.0).mul_scalar(self.factor);
        Ok(Tensors::of("loss", loss).measure("cosine", cosine.inner()))
    }
}

/// Kind `losses/cosine`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("cosine.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;
    use burn::tensor::Device;
    use schemas::node::At;

    fn loss(factor: f64, predicted: [f32; 2], target: [f32; 2]) -> f32 {
        let config = Config { factor };
        let device = Device::flex();
        let module = config.init(&Dims::new(), &Init::new(1, "cosine", &device));
        let vector = |x: [f32; 2]| Tensor::<3>::from_data([[x]], &device);
        let inputs = Tensors::of("predicted", vector(predicted)).with("target", vector(target));
        let call = Call::new(Key::new(0, "cosine"), At::default());
        let mut outputs = config.forward(&module, inputs, &call).unwrap();
        outputs.take::<Tensor<1>>("loss").unwrap().into_scalar::<f32>()
    }

    #[test]
    fn lengths_do_not_matter_and_the_factor_does() {
        assert_eq!(loss(2.0, [3.0, 0.0], [0.0, 7.0]), 2.0);
        assert_eq!(loss(1.0, [3.0, 0.0], [-0.5, 0.0]), 2.0);
        assert!(loss(2.0, [3.0, 4.0], [0.6, 0.8]).abs() < 1e-6);
    }

    #[test]
    fn a_factor_of_nothing_is_refused() {
        assert_eq!(Config { factor: 0.0 }.check(&Dims::new()).len(), 1);
    }
}
