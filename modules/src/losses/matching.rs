//! Matching loss: whether a clip and a text belong together.
//!
//! | port       | dims  | what                                                             |
//! |------------|-------|------------------------------------------------------------------|
//! | `features` | `N D` | one vector per pair, for the loss's own head                     |
//! | `logits`   | `N 2` | with `head: false`, instead: scores of no match and of match     |
//! | `label`    | `N`   | optional: 1 for a match                                          |
//! | `loss`     | `1`   | mean cross entropy over pairs, in nats                           |
//! | `scores`   | `N 2` | scores of no match and of match                                  |
//!
//! Without `label` the first 1 in `groups` of the pairs are matches: a batch with a hard negative clip
//! and a hard negative text for each pair is three groups. Measures `accuracy`.
//! Source: Li et al. 2021, "ALBEF" (arXiv 2107.07651), section 3.2; recipes §2.5 and §2.6.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cross_entropy::{CrossEntropy, accuracy, check_labels};
use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::linear::Linear;
use crate::layers::size::side;
use crate::layout::Layout;
use crate::published;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether the loss has a linear layer from features to scores.
    pub head: bool,
    /// Equal groups of pairs, of which the first one matches.
    pub groups: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { head: true, groups: 3 }
    }
}

/// The head, if any.
#[derive(Module, Debug)]
pub struct Matching {
    /// `[D, 2]`.
    pub head: Option<Linear>,
}

impl Kind for Config {
    type Module = Matching;

    fn ports(&self, wired: &[String]) -> Ports {
        // A symbol of its own: without labels the pairs must be groups of one size.
        let labelled = wired.iter().any(|port| port == "label");
        let pairs = if labelled { "N" } else { "G" };
        let ports = if self.head {
            Ports::default().input("features", format!("{pairs} D")).about("one vector per pair")
        } else {
            let ports = Ports::default().input("logits", format!("{pairs} 2"));
            ports.about("scores of no match and of match")
        };
        ports
            .stopped("label", if labelled { "N" } else { "G" })
            .int()
            .optional()
            .about("1 for a match; without it the first group matches")
            .loss("loss")
            .about("mean cross entropy over pairs, in nats")
            .plain("scores", format!("{pairs} 2"))
            .about("scores of no match and of match")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let pairs = side(dims, "G");
        if self.groups == 0 {
            let message = "`groups` is 0, but must be at least 1";
            problems.push(OptionProblem::new("groups", message, "3 is usual"));
        } else if !pairs.is_multiple_of(self.groups) {
            let message = format!("{pairs} pairs are not {} equal groups", self.groups);
            let hint = "set `groups` to the number of batches that were joined, or connect `label`";
            problems.push(OptionProblem::new("groups", message, hint));
        }
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> Matching {
        Matching { head: self.head.then(|| init.linear(side(dims, "D"), 2, true, 1.0)) }
    }

    fn forward(
        &self,
        module: &Matching,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let logits: Tensor<2> = match &module.head {
            Some(head) => head.forward(inputs.take::<Tensor<2>>("features")?),
            None => inputs.take("logits")?,
        };
        let pairs = logits.dims()[0];
        let label: Tensor<1, Int> = match inputs.take_if("label")? {
            Some(label) => label,
            None => {
                let matches = pairs / self.groups.max(1);
                let labels: Vec<i64> = (0..pairs).map(|pair| i64::from(pair < matches)).collect();
                Tensor::from_data(TensorData::new(labels, [pairs]), &logits.device().inner())
            }
        };
        check_labels(&label, 2, "write 1 for a match and 0 for none")?;
        let loss = CrossEntropy::new(0.0).forward(logits.clone(), label.clone());
        let outputs = Tensors::of("loss", loss).with("scores", logits.clone());
        Ok(outputs.measure("accuracy", accuracy(logits, label)))
    }

    fn published(config: &Value) -> Option<Published> {
        let [_, text, _] = published::stage2_widths(config)?;
        Some(Published { options: json!({}), dims: published::dims([("D", text)]) })
    }

    fn layouts(&self) -> Vec<Layout> {
        vec![Layout::new("official").rule("^head.", "itm_head.")]
    }
}

/// Kind `losses/matching`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("matching.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use schemas::node::At;

    use crate::rng::Key;

    fn loss(label: Option<[i64; 3]>) -> f64 {
        let device = Device::flex();
        let scores = Tensor::<2>::from_data([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0]], &device);
        let mut inputs = Tensors::of("logits", scores);
        if let Some(label) = label {
            inputs = inputs.with("label", Tensor::<1, Int>::from_data(label, &device));
        }
        let config = Config { head: false, ..Config::default() };
        let module = config.init(&Dims::new(), &Init::new(0, "match", &device));
        let call = Call::new(Key::new(0, "match"), At::default());
        let mut found = config.forward(&module, inputs, &call).unwrap();
        f64::from(found.take::<Tensor<1>>("loss").unwrap().into_scalar::<f32>())
    }

    #[test]
    fn without_labels_the_first_group_matches() {
        let log_p = |label: f64, other: f64| label - (label.exp() + other.exp()).ln();
        let expected = -(log_p(2.0, 0.0) + log_p(1.0, 0.0) + log_p(0.0, 1.0)) / 3.0;
        assert!((loss(None) - expected).abs() < 1e-6);
        assert!((loss(Some([1, 0, 0])) - expected).abs() < 1e-6);
        assert!((loss(Some([1, 0, 1])) - expected).abs() > 0.1);
    }

    #[test]
    fn groups_that_do_not_divide_the_pairs_are_refused() {
        let pairs = Dims::from([("G".to_owned(), 8)]);
        assert_eq!(Config::default().check(&pairs)[0].option, "groups");
        assert_eq!(Config { groups: 4, ..Config::default() }.check(&pairs), []);
    }
}
