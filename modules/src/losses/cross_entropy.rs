//! Cross entropy of class scores with one label per sample.
//!
//! | port     | dims  | what                                       |
//! |----------|-------|--------------------------------------------|
//! | `logits` | `B C` | class scores                               |
//! | `label`  | `B`   | class number                               |
//! | `loss`   | `1`   | mean over samples, in nats                 |
//!
//! With smoothing s the target is `1 - s` on the label plus `s / C` on every class (Szegedy et
//! al. 2016). Measures `accuracy`, the share of samples whose largest score is the label.

use burn::module::Module;
use burn::tensor::{FloatDType, Int, Tensor, activation};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::size::check_share;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Share of the target spread over all classes.
    pub smoothing: f64,
}

/// No parameters.
#[derive(Module, Debug)]
pub struct CrossEntropy {
    smoothing: f64,
}

impl CrossEntropy {
    /// The loss with this label smoothing.
    pub fn new(smoothing: f64) -> Self {
        Self { smoothing }
    }

    /// `logits`: `[B, C]`, `label`: `[B]`; returns `[1]`.
    pub fn forward(&self, logits: Tensor<2>, label: Tensor<1, Int>) -> Tensor<1> {
        let batch = logits.dims()[0];
        let log_p = activation::log_softmax(logits.cast(FloatDType::F32), 1);
        let chosen = log_p.clone().gather(1, label.reshape([batch, 1])).mean();
        if self.smoothing == 0.0 {
            return chosen.neg();
        }
        let spread = log_p.mean().mul_scalar(self.smoothing);
        (chosen.mul_scalar(1.0 - self.smoothing) + spread).neg()
    }
}

/// Refuses labels that are no class: the backend would panic on them.
pub fn check_labels(label: &Tensor<1, Int>, classes: usize) -> Result<(), NodeError> {
    let labels = label.clone().inner().to_data().convert::<i64>();
    let wrong = labels.iter::<i64>().find(|&label| label < 0 || label >= classes as i64);
    wrong.map_or(Ok(()), |label| {
        Err(NodeError::Data {
            what: "port `label`".to_owned(),
            reason: format!("label {label} is no class of {classes}; set `classes` to the data's"),
        })
    })
}

/// Share of samples (`[B, C]`, `[B]`) whose largest score is the label.
pub fn accuracy(logits: Tensor<2>, label: Tensor<1, Int>) -> Tensor<1> {
    let batch = logits.dims()[0];
    let best = logits.inner().argmax(1).reshape([batch]);
    best.equal(label.inner()).float().mean()
}

impl Kind for Config {
    type Module = CrossEntropy;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("logits", "B C")
            .about("class scores")
            .stopped("label", "B")
            .int()
            .about("class number")
            .loss("loss")
            .about("mean cross entropy, in nats")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        check_share("smoothing", self.smoothing).into_iter().collect()
    }

    fn init(&self, _: &Dims, _: &Init) -> CrossEntropy {
        CrossEntropy::new(self.smoothing)
    }

    fn forward(
        &self,
        module: &CrossEntropy,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let logits: Tensor<2> = inputs.take("logits")?;
        let label: Tensor<1, Int> = inputs.take("label")?;
        check_labels(&label, logits.dims()[1])?;
        let loss = module.forward(logits.clone(), label.clone());
        Ok(Tensors::of("loss", loss).measure("accuracy", accuracy(logits, label)))
    }
}

/// Kind `losses/cross_entropy`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("cross_entropy.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn smoothing_spreads_the_target_over_all_classes() {
        let device = Device::flex();
        let logits = Tensor::<2>::from_data([[2.0, 0.0], [0.0, 1.0]], &device);
        let label = Tensor::<1, Int>::from_data([0, 0], &device);
        let log_p = |a: f64, b: f64| a - (a.exp() + b.exp()).ln();
        let plain = -(log_p(2.0, 0.0) + log_p(0.0, 1.0)) / 2.0;
        let all = (log_p(2.0, 0.0) + log_p(0.0, 2.0) + log_p(0.0, 1.0) + log_p(1.0, 0.0)) / 4.0;
        let loss = |s| CrossEntropy::new(s).forward(logits.clone(), label.clone());
        assert!((f64::from(loss(0.0).into_scalar::<f32>()) - plain).abs() < 1e-6);
        let smooth = 0.9 * plain - 0.1 * all;
        assert!((f64::from(loss(0.1).into_scalar::<f32>()) - smooth).abs() < 1e-6);
        assert_eq!(accuracy(logits, label).into_scalar::<f32>(), 0.5);
    }
}
