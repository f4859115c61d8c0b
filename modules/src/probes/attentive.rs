//! Attentive probe: attention pooling and a linear classifier on frozen tokens.
//!
//! | port     | dims    | what                                       |
//! |----------|---------|--------------------------------------------|
//! | `tokens` | `B N D` | tokens; the gradient ends here             |
//! | `label`  | `B`     | class number                               |
//! | `loss`   | `1`     | mean cross entropy, in nats                |
//!
//! The query of the pooling is the mean of the tokens. Measures `accuracy` before the update.
//! Source: Wang et al. 2024, "InternVideo2" (arXiv 2403.15377), attentive probing; recipes §4.3.

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
use crate::layers::norm::Norm;
use crate::layers::pool::AttentionPool;
use crate::layers::size::{check_classes, check_share, side};
use crate::losses::cross_entropy::{CLASSES, CrossEntropy, accuracy, check_labels};
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Number of classes.
    pub classes: usize,
    /// Heads of the pooling; a divisor of the width of the tokens.
    #[serde(default = "default_heads")]
    pub heads: usize,
    /// Label smoothing.
    #[serde(default)]
    pub smoothing: f64,
}

fn default_heads() -> usize {
    4
}

/// The probe.
#[derive(Module, Debug)]
pub struct AttentiveProbe {
    /// From tokens to one vector of the same width.
    pub pool: AttentionPool,
    /// LayerNorm, ε 1e-5.
    pub norm: Norm,
    /// `[D, classes]`.
    pub head: Linear,
}

impl AttentiveProbe {
    /// `[B, N, D]`; returns `[B, classes]`.
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<2> {
        self.head.forward(self.norm.forward(self.pool.forward(tokens)))
    }
}

impl Kind for Config {
    type Module = AttentiveProbe;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .stopped("tokens", "B N D")
            .about("tokens of a clip")
            .stopped("label", "B")
            .int()
            .about("class number")
            .loss("loss")
            .about("mean cross entropy, in nats")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems: Vec<_> = check_classes(Some(self.classes)).into_iter().collect();
        problems.extend(check_share("smoothing", self.smoothing));
        let width = side(dims, "D");
        if self.heads == 0 || !width.is_multiple_of(self.heads) {
            let message = format!("{} heads do not divide a width of {width}", self.heads);
            problems.push(OptionProblem::new("heads", message, "choose a divisor of the width"));
        }
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> AttentiveProbe {
        let width = side(dims, "D");
        AttentiveProbe {
            pool: AttentionPool::new(width, self.heads, width, init),
            norm: Norm::layer(width, 1e-5, init),
            head: init.linear(width, self.classes, true, 1.0),
        }
    }

    fn forward(
        &self,
        module: &AttentiveProbe,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let logits = module.forward(inputs.take("tokens")?);
        let label: Tensor<1, Int> = inputs.take("label")?;
        check_labels(&label, logits.dims()[1], CLASSES)?;
        let loss = CrossEntropy::new(self.smoothing).forward(logits.clone(), label.clone());
        Ok(Tensors::of("loss", loss).measure("accuracy", accuracy(logits, label)))
    }
}

/// Kind `probes/attentive`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("attentive.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_do_not_divide_the_width_are_refused() {
        let config: Config =
            serde_json::from_value(serde_json::json!({ "classes": 2, "heads": 5 })).unwrap();
        let dims = Dims::from([("D".to_owned(), 96)]);
        assert_eq!(config.check(&dims)[0].option, "heads");
    }
}
