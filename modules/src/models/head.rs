//! Classifier head: a norm and a linear layer on one vector per clip.
//!
//! | port       | dims        | what                  |
//! |------------|-------------|-----------------------|
//! | `features` | `B D`       | one vector per clip   |
//! | `logits`   | `B classes` | class scores          |
//!
//! The matrix starts a thousand times smaller than other matrices, so that training starts at
//! equal scores. Source: recipes §4.1.

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
use crate::layers::dropout_ops::dropout;
use crate::layers::linear::Linear;
use crate::layers::norm::{FeatureNorm, Norm, standardise};
use crate::layers::size::{check_classes, check_share, side};
use crate::rng::Key;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Number of classes.
    pub classes: usize,
    /// What comes before the matrix.
    #[serde(default)]
    pub norm: FeatureNorm,
    /// Dropout between norm and matrix.
    #[serde(default)]
    pub dropout: f64,
}

/// The head.
#[derive(Module, Debug)]
pub struct Head {
    /// LayerNorm, ε 1e-5; none with `norm: batch`.
    pub fc_norm: Option<Norm>,
    /// `[D, classes]`.
    pub head: Linear,
    dropout: f64,
}

impl Head {
    /// `[B, D]`; returns `[B, classes]`. Dropout is active with a key.
    pub fn forward(&self, features: Tensor<2>, key: Option<&Key>) -> Tensor<2> {
        let features = match &self.fc_norm {
            Some(norm) => norm.forward(features),
            None => standardise(features),
        };
        self.head.forward(dropout(features, self.dropout, key))
    }
}

impl Kind for Config {
    type Module = Head;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("features", "B D")
            .about("one vector per clip")
            .output("logits", format!("B {}", self.classes))
            .about("class scores")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let mut problems: Vec<_> = check_classes(Some(self.classes)).into_iter().collect();
        problems.extend(check_share("dropout", self.dropout));
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> Head {
        let width = side(dims, "D");
        let head = init.linear(width, self.classes, true, 1000.0);
        let layer = self.norm == FeatureNorm::Layer;
        let fc_norm = layer.then(|| Norm::layer(width, 1e-5, init));
        Head { fc_norm, head, dropout: self.dropout }
    }

    fn forward(
        &self,
        module: &Head,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let key = call.training.then_some(&call.key);
        Ok(Tensors::of("logits", module.forward(inputs.take("features")?, key)))
    }
}

/// Kind `models/head`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("head.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn training_starts_at_nearly_equal_scores() {
        let config = Config { classes: 3, dropout: 0.0, norm: FeatureNorm::Layer };
        let (dims, device) = (Dims::from([("D".to_owned(), 4)]), Device::flex());
        let head = config.init(&dims, &Init::new(1, "head", &device));
        let features = Tensor::<2>::from_data([[1.0, -2.0, 3.0, 0.5]], &device);
        let scores = head.forward(features, None).into_data().try_to_vec::<f32>().unwrap();
        assert!(scores.len() == 3 && scores.iter().all(|score| score.abs() < 1e-2), "{scores:?}");
    }
}
