//! Cross entropy of class scores with one label per sample.
//!
//! | port     | dims  | what                                       |
//! |----------|-------|--------------------------------------------|
//! | `logits` | `B C` | class scores                               |
//! | `label`  | `B`   | class number                               |
//! | `other`  | `B`   | optional: class of what is mixed in        |
//! | `share`  | `B`   | with `other`: how much is of the label     |
//! | `loss`   | `1`   | mean over samples, in nats                 |
//!
//! With smoothing s the target is `1 - s` on the label plus `s / C` on every class (Szegedy et
//! al. 2016). A mixed sample (`data/mixup`) has the target of its label times `share`, plus that of the
//! other class times `1 - share`. Measures `accuracy`, the share of samples whose largest score is the label.

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
        self.smooth(chosen, log_p)
    }

    /// The loss of mixed samples: `share` (`[B]`) is of the first label, the rest of the second.
    pub fn mixed(
        &self,
        logits: Tensor<2>,
        labels: [Tensor<1, Int>; 2],
        share: Tensor<1>,
    ) -> Tensor<1> {
        let batch = logits.dims()[0];
        let log_p = activation::log_softmax(logits.cast(FloatDType::F32), 1);
        let of = |label: Tensor<1, Int>| log_p.clone().gather(1, label.reshape([batch, 1]));
        let share = share.cast(FloatDType::F32).reshape([batch, 1]);
        let rest = share.clone().neg().add_scalar(1.0);
        let [first, second] = labels.map(of);
        self.smooth((first * share + second * rest).mean(), log_p)
    }

    fn smooth(&self, chosen: Tensor<1>, log_p: Tensor<2>) -> Tensor<1> {
        if self.smoothing == 0.0 {
            return chosen.neg();
        }
        let spread = mean_of_rows(log_p).mul_scalar(self.smoothing);
        (chosen.mul_scalar(1.0 - self.smoothing) + spread).neg()
    }
}

/// The mean of scores `[N, V]`, row by row: the backend adds the parts of a whole large tensor in the
/// order in which threads finish them.
pub fn mean_of_rows(scores: Tensor<2>) -> Tensor<1> {
    scores.mean_dim(1).mean()
}

/// What to do about labels that are no class of a classifier.
pub const CLASSES: &str = "set `classes` to the data's";

/// Refuses labels that are no class: the backend would panic on them.
pub fn check_labels(label: &Tensor<1, Int>, classes: usize, hint: &str) -> Result<(), NodeError> {
    let labels = label.clone().inner().to_data().convert::<i64>();
    let wrong = labels.iter::<i64>().find(|&label| label < 0 || label >= classes as i64);
    wrong.map_or(Ok(()), |label| {
        Err(NodeError::Data {
            what: "port `label`".to_owned(),
            reason: format!("label {label} is no class of {classes}; {hint}"),
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

    fn ports(&self, wired: &[String]) -> Ports {
        // What is mixed in and how much of it come together.
        let mixes = wired.iter().any(|port| port == "other" || port == "share");
        let pair = |ports: Ports| if mixes { ports } else { ports.optional() };
        let ports = Ports::default()
            .input("logits", "B C")
            .about("class scores")
            .stopped("label", "B")
            .int()
            .about("class number")
            .stopped("other", "B")
            .int();
        let ports = pair(ports).about("class of what is mixed in").stopped("share", "B");
        pair(ports)
            .about("with `other`: how much is of the label")
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
        check_labels(&label, logits.dims()[1], CLASSES)?;
        let other: Option<Tensor<1, Int>> = inputs.take_if("other")?;
        let loss = match other {
            None => module.forward(logits.clone(), label.clone()),
            Some(other) => {
                check_labels(&other, logits.dims()[1], CLASSES)?;
                module.mixed(logits.clone(), [label.clone(), other], inputs.take("share")?)
            }
        };
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
        let share = Tensor::<1>::from_data([0.25, 1.0], &device);
        let other = Tensor::<1, Int>::from_data([1, 1], &device);
        let found = CrossEntropy::new(0.0).mixed(logits.clone(), [label.clone(), other], share);
        let of = 0.25 * log_p(2.0, 0.0) + 0.75 * log_p(0.0, 2.0) + log_p(0.0, 1.0);
        assert!((f64::from(found.into_scalar::<f32>()) + of / 2.0).abs() < 1e-6);
        let smooth = 0.9 * plain - 0.1 * all;
        assert!((f64::from(loss(0.1).into_scalar::<f32>()) - smooth).abs() < 1e-6);
        assert_eq!(accuracy(logits, label).into_scalar::<f32>(), 0.5);
    }
}
