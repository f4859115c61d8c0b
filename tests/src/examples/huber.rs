//! Huber distance of two sets of tokens: quadratic near zero, linear far away.
//!
//! | port        | dims    | what                                            |
//! |-------------|---------|-------------------------------------------------|
//! | `predicted` | `B N D` | tokens that learn                               |
//! | `target`    | `B N D` | tokens to come near to; the gradient ends here  |
//! | `loss`      | `1`     | mean over all elements, in their unit squared   |
//!
//! With `d = |predicted - target|` an element counts `d²/2` up to `delta`, and
//! `delta (d - delta/2)` above. Measures `far`, the share of elements above `delta`.
//! Source: Huber 1964, "Robust estimation of a location parameter".

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
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Distance where the quadratic part ends.
    pub delta: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { delta: 1.0 }
    }
}

/// No parameters.
#[derive(Module, Debug)]
pub struct Huber {
    delta: f64,
}

impl Huber {
    /// Two tensors of one shape; returns `[1]`.
    pub fn forward(&self, predicted: Tensor<3>, target: Tensor<3>) -> Tensor<1> {
        let distance = (predicted - target).abs();
        let near = distance.clone().clamp_max(self.delta);
        // near (distance - near/2) is the quadratic part below delta and the linear one above.
        (near.clone() * (distance - near.div_scalar(2.0))).mean()
    }
}

impl Kind for Config {
    type Module = Huber;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("predicted", "B N D")
            .about("tokens that learn")
            .stopped("target", "B N D")
            .about("tokens to come near to")
            .loss("loss")
            .about("mean Huber distance")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let wrong = self.delta.is_nan() || self.delta <= 0.0;
        let message = format!("`delta` is {}, but must be above 0", self.delta);
        let problem = OptionProblem::new("delta", message, "write, for example, 1.0");
        if wrong { vec![problem] } else { Vec::new() }
    }

    fn init(&self, _: &Dims, _: &Init) -> Huber {
        Huber { delta: self.delta }
    }

    fn forward(&self, module: &Huber, mut inputs: Tensors, _: &Call) -> Result<Tensors, NodeError> {
        let (predicted, target): (Tensor<3>, Tensor<3>) =
            (inputs.take("predicted")?, inputs.take("target")?);
        let distance = (predicted.clone().inner() - target.clone().inner()).abs();
        let far = distance.greater_elem(self.delta).float().mean();
        Ok(Tensors::of("loss", module.forward(predicted, target)).measure("far", far))
    }
}

/// Kind `losses/huber`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("huber.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn a_far_element_counts_linearly() {
        let tensor = |x: f32| Tensor::<3>::from_data([[[x]]], &Device::flex());
        let loss = |x| Huber { delta: 1.0 }.forward(tensor(x), tensor(0.0)).into_scalar::<f32>();
        assert_eq!((loss(0.5), loss(3.0)), (0.125, 2.5));
    }
}
