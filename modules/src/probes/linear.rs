//! Linear probe: a norm and a linear classifier on frozen features.
//!
//! | port       | dims  | what                                          |
//! |------------|-------|-----------------------------------------------|
//! | `features` | `B D` | one vector per clip; the gradient ends here   |
//! | `label`    | `B`   | class number                                  |
//! | `loss`     | `1`   | mean cross entropy, in nats                   |
//!
//! The LayerNorm keeps no running statistics, so that the probe reads any scale of features.
//! Measures `accuracy` before the update. Source: recipes §4.3.

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
use crate::layers::linear::Linear;
use crate::layers::norm::{FeatureNorm, Norm, standardise};
use crate::layers::size::{check_classes, check_share, side};
use crate::losses::cross_entropy::{CLASSES, CrossEntropy, accuracy, check_labels};
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Number of classes.
    pub classes: usize,
    /// Label smoothing.
    #[serde(default)]
    pub smoothing: f64,
    /// What comes before the matrix.
    #[serde(default)]
    pub norm: FeatureNorm,
}

/// The probe.
#[derive(Module, Debug)]
pub struct LinearProbe {
    /// LayerNorm, ε 1e-5; none with `norm: batch`.
    pub norm: Option<Norm>,
    /// `[D, classes]`.
    pub head: Linear,
}

impl LinearProbe {
    /// `[B, D]`; returns `[B, classes]`.
    pub fn forward(&self, features: Tensor<2>) -> Tensor<2> {
        self.head.forward(match &self.norm {
            Some(norm) => norm.forward(features),
            None => standardise(features),
        })
    }
}

impl Kind for Config {
    type Module = LinearProbe;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .stopped("features", "B D")
            .about("one vector per clip")
            .stopped("label", "B")
            .int()
            .about("class number")
            .loss("loss")
            .about("mean cross entropy, in nats")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let mut problems: Vec<_> = check_classes(Some(self.classes)).into_iter().collect();
        problems.extend(check_share("smoothing", self.smoothing));
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> LinearProbe {
        let width = side(dims, "D");
        let head = init.linear(width, self.classes, true, 1.0);
        let layer = self.norm == FeatureNorm::Layer;
        LinearProbe { norm: layer.then(|| Norm::layer(width, 1e-5, init)), head }
    }

    fn forward(
        &self,
        module: &LinearProbe,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let logits = module.forward(inputs.take("features")?);
        let label: Tensor<1, Int> = inputs.take("label")?;
        check_labels(&label, logits.dims()[1], CLASSES)?;
        let loss = CrossEntropy::new(self.smoothing).forward(logits.clone(), label.clone());
        Ok(Tensors::of("loss", loss).measure("accuracy", accuracy(logits, label)))
    }
}

/// Kind `probes/linear`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("linear.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn any_scale_of_features_gives_the_same_scores() {
        let config = Config { classes: 2, smoothing: 0.0, norm: FeatureNorm::Layer };
        let (dims, device) = (Dims::from([("D".to_owned(), 4)]), Device::flex());
        let probe = config.init(&dims, &Init::new(1, "probe", &device));
        let scores = |scale: f64| {
            let features = Tensor::<2>::from_data([[10.0, -20.0, 30.0, 5.0]], &device);
            probe.forward(features.mul_scalar(scale)).into_data().try_to_vec::<f32>().unwrap()
        };
        let (one, ten) = (scores(1.0), scores(10.0));
        assert!(one.iter().zip(&ten).all(|(a, b)| (a - b).abs() < 1e-5), "{one:?}, {ten:?}");
    }
}
