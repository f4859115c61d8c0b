//! Masked token loss: cross entropy of word scores where a word was hidden.
//!
//! | port     | dims    | what                                              |
//! |----------|---------|---------------------------------------------------|
//! | `logits` | `B L V` | scores of all words for each token                |
//! | `labels` | `B L`   | the word that was hidden, -100 elsewhere          |
//! | `loss`   | `1`     | mean over hidden words, in nats; 0 without any    |
//!
//! Measures `accuracy`, the share of hidden words whose score is the largest.
//! Source: Devlin et al. 2018, "BERT" (arXiv 1810.04805), task 1; recipes §2.6.

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
use crate::layers::labelled::Labelled;
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
pub struct MaskedToken {
    smoothing: f64,
}

impl Kind for Config {
    type Module = MaskedToken;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("logits", "B L V")
            .about("scores of all words for each token")
            .stopped("labels", "B L")
            .int()
            .about("the word that was hidden, -100 elsewhere")
            .loss("loss")
            .about("mean cross entropy over hidden words, in nats")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        check_share("smoothing", self.smoothing).into_iter().collect()
    }

    fn init(&self, _: &Dims, _: &Init) -> MaskedToken {
        MaskedToken { smoothing: self.smoothing }
    }

    fn forward(
        &self,
        module: &MaskedToken,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let logits: Tensor<3> = inputs.take("logits")?;
        let labels: Tensor<2, Int> = inputs.take("labels")?;
        let chosen = Labelled::find(&labels, logits.dims()[2])?;
        let found = chosen.score(logits, module.smoothing);
        Ok(Tensors::of("loss", found.loss).measure("accuracy", found.accuracy))
    }
}

/// Kind `losses/masked_token`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("masked_token.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use schemas::node::At;

    use crate::rng::Key;

    fn loss(logits: [[[f32; 2]; 2]; 1], labels: [[i64; 2]; 1]) -> Result<f32, NodeError> {
        let device = Device::flex();
        let inputs = Tensors::of("logits", Tensor::<3>::from_data(logits, &device))
            .with("labels", Tensor::<2, Int>::from_data(labels, &device));
        let config = Config::default();
        let module = config.init(&Dims::new(), &Init::new(0, "mlm", &device));
        let call = Call::new(Key::new(0, "mlm"), At::default());
        let loss: Tensor<1> = config.forward(&module, inputs, &call)?.take("loss")?;
        Ok(loss.into_scalar::<f32>())
    }

    #[test]
    fn only_hidden_words_count() {
        let logits = [[[1.0, 0.0], [5.0, 5.0]]];
        let expected = -(1.0f32 / (1.0 + (-1.0f32).exp())).ln();
        assert!((loss(logits, [[0, -100]]).unwrap() - expected).abs() < 1e-6);
        assert_eq!(loss(logits, [[-100, -100]]).unwrap(), 0.0);
    }

    #[test]
    fn a_label_that_is_no_word_is_refused() {
        let error = loss([[[0.0; 2]; 2]], [[0, 2]]).unwrap_err().to_string();
        assert!(error.contains("sample 0, token 1") && error.contains("-100"), "{error}");
    }
}
