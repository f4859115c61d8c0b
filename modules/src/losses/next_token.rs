//! Next token loss: cross entropy of word scores with the word that comes next.
//!
//! | port     | dims    | what                                                         |
//! |----------|---------|--------------------------------------------------------------|
//! | `logits` | `B L V` | scores of all words after each token                         |
//! | `labels` | `B L`   | the words themselves, -100 for those that need not be told   |
//! | `mask`   | `B L`   | optional: 0 where the label does not count, as at padding     |
//! | `loss`   | `1`     | mean over labelled words, in nats; 0 without any             |
//!
//! The scores of a token are compared with the label of the token after it. A label of -100 at padding,
//! at a prompt or at what a user says takes that word out of the loss. With smoothing s the target is
//! `1 - s` on the label plus `s / V` on every word (Szegedy et al. 2016; BLIP takes 0.1).
//! Measures `accuracy`, `perplexity` and `exact`, the share of texts all of whose labels have the largest
//! score: those that greedy writing answers to the letter.
//! Source: Radford et al. 2018, "Improving language understanding by generative pre-training"; recipes
//! §3.2.

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
use crate::layers::labelled::{IGNORED, Labelled};
use crate::layers::size::check_share;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Share of the target spread over all words.
    pub smoothing: f64,
}

/// No parameters.
#[derive(Module, Debug)]
pub struct NextToken {
    smoothing: f64,
}

impl Kind for Config {
    type Module = NextToken;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("logits", "B L V")
            .about("scores of all words after each token")
            .stopped("labels", "B L")
            .int()
            .about("the words themselves, -100 for those that need not be told")
            .stopped("mask", "B L")
            .int()
            .optional()
            .about("0 where the label does not count")
            .loss("loss")
            .about("mean cross entropy over labelled words, in nats")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        check_share("smoothing", self.smoothing).into_iter().collect()
    }

    fn init(&self, _: &Dims, _: &Init) -> NextToken {
        NextToken { smoothing: self.smoothing }
    }

    fn forward(
        &self,
        module: &NextToken,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let logits: Tensor<3> = inputs.take("logits")?;
        let mut labels: Tensor<2, Int> = inputs.take("labels")?;
        if let Some(mask) = inputs.take_if::<Tensor<2, Int>>("mask")? {
            labels = labels.mask_fill(mask.equal_elem(0), IGNORED);
        }
        let [_, length, words] = logits.dims();
        let chosen = Labelled::find(&labels, words)?.shifted(length);
        let found = chosen.score(logits, module.smoothing);
        let perplexity = found.loss.clone().inner().exp();
        Ok(Tensors::of("loss", found.loss)
            .measure("accuracy", found.accuracy)
            .measure("exact", found.exact)
            .measure("perplexity", perplexity))
    }
}

/// Kind `losses/next_token`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("next_token.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use schemas::node::At;

    use crate::rng::Key;

    fn loss(smoothing: f64, labels: [[i64; 3]; 2]) -> f64 {
        let device = Device::flex();
        let logits = [[[2.0, 0.0], [0.0, 1.0], [9.0, 9.0]], [[0.0, 3.0], [7.0, 0.0], [0.0, 0.0]]];
        let inputs = Tensors::of("logits", Tensor::<3>::from_data(logits, &device))
            .with("labels", Tensor::<2, Int>::from_data(labels, &device));
        let config = Config { smoothing };
        let module = config.init(&Dims::new(), &Init::new(0, "next", &device));
        let call = Call::new(Key::new(0, "next"), At::default());
        let mut found = config.forward(&module, inputs, &call).unwrap();
        f64::from(found.take::<Tensor<1>>("loss").unwrap().into_scalar::<f32>())
    }

    #[test]
    fn a_label_is_told_by_the_token_before_it() {
        let log_p = |label: f64, other: f64| label - (label.exp() + other.exp()).ln();
        // The first label of a text is told by nobody.
        let found = loss(0.0, [[1, 0, -100], [0, 1, 0]]);
        let expected = -(log_p(2.0, 0.0) + log_p(3.0, 0.0) + log_p(7.0, 0.0)) / 3.0;
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        let found = loss(0.1, [[-100, 0, -100], [-100; 3]]);
        let spread = 0.05 * (log_p(2.0, 0.0) + log_p(0.0, 2.0));
        assert!((found + 0.9 * log_p(2.0, 0.0) + spread).abs() < 1e-6, "{found}");
        assert_eq!(loss(0.0, [[1, -100, -100], [0, -100, -100]]), 0.0);
    }
}
