//! Gated mean: one vector per clip, a mean of its tokens with learned weights.
//!
//! | port     | dims    | what                                  |
//! |----------|---------|---------------------------------------|
//! | `tokens` | `B N D` | tokens of an encoder                  |
//! | `pooled` | `B D`   | their mean, weighted by `softmax(g)`  |
//!
//! The gate `g` is one number per token: `w · x + b`, divided by the temperature.

use burn::module::Module;
use burn::tensor::{Tensor, activation};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::linear::Linear;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Divides the gates; large values give the plain mean.
    pub temperature: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { temperature: 1.0 }
    }
}

/// The module: its parameters are its fields.
#[derive(Module, Debug)]
pub struct GatedMean {
    /// `[D, 1]`.
    pub gate: Linear,
    temperature: f64,
}

impl GatedMean {
    /// `[B, N, D]`; returns `[B, D]`.
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<2> {
        let gates = self.gate.forward(tokens.clone()).div_scalar(self.temperature);
        let weights = activation::softmax(gates, 1);
        (tokens * weights).sum_dim(1).squeeze_dim(1)
    }
}

impl Kind for Config {
    type Module = GatedMean;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("tokens", "B N D")
            .about("tokens of an encoder")
            .output("pooled", "B D")
            .about("their weighted mean")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let wrong = self.temperature.is_nan() || self.temperature <= 0.0;
        let message = format!("`temperature` is {}, but must be above 0", self.temperature);
        let problem = OptionProblem::new("temperature", message, "write, for example, 1.0");
        if wrong { vec![problem] } else { Vec::new() }
    }

    fn init(&self, dims: &Dims, init: &Init) -> GatedMean {
        let gate = init.linear(dims["D"], 1, true, 1.0);
        GatedMean { gate, temperature: self.temperature }
    }

    fn forward(
        &self,
        module: &GatedMean,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        Ok(Tensors::of("pooled", module.forward(inputs.take("tokens")?)))
    }
}

/// Kind `models/gated_mean`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("gated_mean.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn a_high_temperature_gives_the_plain_mean() {
        let (config, device) = (Config { temperature: 1e9 }, Device::flex());
        let dims = Dims::from([("D".to_owned(), 2)]);
        let module = config.init(&dims, &Init::new(1, "pool", &device));
        let tokens = Tensor::<3>::from_data([[[1.0, 2.0], [3.0, 6.0]]], &device);
        let pooled = module.forward(tokens).into_data().try_to_vec::<f32>().unwrap();
        assert!((pooled[0] - 2.0).abs() < 1e-5 && (pooled[1] - 4.0).abs() < 1e-5, "{pooled:?}");
    }
}
