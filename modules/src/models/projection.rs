//! Projection: one linear layer from features to the space in which they are compared.
//!
//! | port               | dims        | what                                                  |
//! |--------------------|-------------|-------------------------------------------------------|
//! | `features`         | `B D`       | one vector per sample; may be absent beside `tokens`  |
//! | `tokens`           | `B N D`     | optional: several vectors per sample                  |
//! | `projected`        | `B width`   | the vector of each sample; else the mean of `tokens`  |
//! | `projected_tokens` | `B N width` | with `tokens`: all vectors                            |
//!
//! The losses of a contrast make unit vectors of it, so it gives no unit vectors. Clips and texts have
//! a projection each; `side` says which one of a published checkpoint it is.
//! Source: Wang et al. 2024, "InternVideo2" (arXiv 2403.15377); recipes §2.5.

use burn::module::Module;
use burn::tensor::Tensor;
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::linear::Linear;
use crate::layers::size::side;
use crate::layout::Layout;
use crate::published;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Channels of the space.
    pub width: usize,
    /// Whether a bias is added.
    #[serde(default = "yes")]
    pub bias: bool,
    /// Word in the keys of published checkpoints: `vision`, `text` or `audio`.
    #[serde(default = "vision")]
    pub side: String,
}

fn yes() -> bool {
    true
}

fn vision() -> String {
    "vision".to_owned()
}

/// The layer.
#[derive(Module, Debug)]
pub struct Projection {
    /// `[D, width]`.
    pub proj: Linear,
}

impl Kind for Config {
    type Module = Projection;

    fn ports(&self, wired: &[String]) -> Ports {
        let is = |port: &str| wired.iter().any(|name| name == port);
        let ports = Ports::default().input("features", "B D").about("one vector per sample");
        let ports = if is("tokens") { ports.optional() } else { ports };
        let mut ports = ports.input("tokens", "B N D").optional().about("several of them");
        let vector = format!("B {}", self.width);
        ports = ports.output("projected", vector).about("the vector of each sample");
        if is("tokens") {
            let dims = format!("B N {}", self.width);
            ports = ports.output("projected_tokens", dims).about("all vectors");
        }
        ports
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        const MOST: usize = 1 << 16;
        let mut problems = Vec::new();
        if !(1..=MOST).contains(&self.width) {
            let message = format!("`width` is {}, not from 1 to {MOST}", self.width);
            problems.push(OptionProblem::new("width", message, "512 and 768 are usual"));
        }
        let letters = self.side.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if self.side.is_empty() || !letters {
            let message = format!("`side` is `{}`, no word of a key", self.side);
            problems.push(OptionProblem::new("side", message, "write `vision` or `text`"));
        }
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> Projection {
        Projection { proj: init.linear(side(dims, "D"), self.width, self.bias, 1.0) }
    }

    fn forward(
        &self,
        module: &Projection,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let key = call.training.then_some(&call.key);
        let tokens: Option<Tensor<3>> = inputs.take_if("tokens")?;
        let features: Option<Tensor<2>> = match &tokens {
            Some(_) => inputs.take_if("features")?,
            None => Some(inputs.take("features")?),
        };
        let mut outputs = Tensors::new();
        let projected = features.map(|features| module.proj.named(features, "features", key));
        let mut mean = None;
        if let Some(tokens) = tokens {
            let tokens = module.proj.named(tokens, "tokens", key);
            let [batch, _, width] = tokens.dims();
            mean = Some(tokens.clone().mean_dim(1).reshape([batch, width]));
            outputs = outputs.with("projected_tokens", tokens);
        }
        if let Some(projected) = projected.or(mean) {
            outputs = outputs.with("projected", projected);
        }
        Ok(outputs)
    }

    fn all_published(config: &Value) -> Vec<Published> {
        let Some([vision, text, width]) = published::stage2_widths(config) else {
            return Vec::new();
        };
        let one = |(side, inputs): (&str, usize)| {
            let options = json!({ "width": width, "side": side });
            Published { options, dims: published::dims([("D", inputs)]) }
        };
        [("vision", vision), ("text", text)].map(one).into()
    }

    fn layouts(&self) -> Vec<Layout> {
        vec![Layout::new("official").rule("^proj.", &format!("{}_proj.", self.side))]
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let vectors = side(dims, "B") * side(dims, "N").max(1);
        2 * (vectors * side(dims, "D") * self.width) as u64
    }
}

/// Kind `models/projection`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("projection.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use schemas::node::At;

    use crate::parameters;
    use crate::rng::Key;

    fn config(options: Value) -> Config {
        serde_json::from_value(options).unwrap()
    }

    fn made(config: &Config, inputs: usize) -> Projection {
        let dims = Dims::from([("D".to_owned(), inputs)]);
        config.init(&dims, &Init::new(1, "projection", &Device::flex()))
    }

    /// InternVideo2's stage 2, 1B: `Linear(768, 512)` for clips and `Linear(1024, 512)` for texts.
    #[test]
    fn the_published_ones_have_their_numbers_of_parameters() {
        let stage2 = json!({
            "fusion_layer": 19, "temp": 0.07, "vision_width": 768, "hidden_size": 1024,
            "embed_dim": 512,
        });
        let found = Config::all_published(&stage2);
        let count = |published: &Published| {
            let config = config(published.options.clone());
            assert_eq!(config.check(&published.dims), []);
            parameters::count(&made(&config, published.dims["D"]))
        };
        let counts: Vec<u64> = found.iter().map(count).collect();
        assert_eq!(counts, [768 * 512 + 512, 1024 * 512 + 512]);
        let keys = |options: &Value| config(options.clone()).layouts()[0].slot("proj.bias").key;
        assert_eq!(keys(&found[0].options), "vision_proj.bias");
        assert_eq!(keys(&found[1].options), "text_proj.bias");
        assert!(Config::all_published(&json!({ "model_type": "bert" })).is_empty());
    }

    #[test]
    fn vectors_and_tokens_go_through_the_same_layer() {
        let config = config(json!({ "width": 3, "bias": false }));
        let (module, device) = (made(&config, 2), Device::flex());
        let tokens = Tensor::<3>::from_data([[[1.0, -2.0], [0.5, 4.0]]], &device);
        let first: Tensor<2> = tokens.clone().slice_dim(1, 0..1).squeeze_dim(1);
        let call = Call::new(Key::new(0, "projection"), At::default());
        let both = Tensors::of("features", first).with("tokens", tokens.clone());
        let mut given = config.forward(&module, both, &call).unwrap();
        let values = |tensor: Tensor<2>| tensor.into_data().try_to_vec::<f32>().unwrap();
        let whole: Tensor<3> = given.take("projected_tokens").unwrap();
        let row: Tensor<2> = whole.slice_dim(1, 0..1).squeeze_dim(1);
        assert_eq!(values(given.take("projected").unwrap()), values(row));
        let mut alone = config.forward(&module, Tensors::of("tokens", tokens), &call).unwrap();
        let all: Tensor<3> = alone.take("projected_tokens").unwrap();
        let mean: Tensor<2> = all.mean_dim(1).squeeze_dim(1);
        assert_eq!(values(alone.take("projected").unwrap()), values(mean));
        let error = config.forward(&module, Tensors::new(), &call).unwrap_err().to_string();
        assert!(error.contains("features"), "{error}");
    }

    #[test]
    fn ports_follow_what_is_connected() {
        let config = config(json!({ "width": 3 }));
        let ports = |wired: &[&str]| {
            let wired: Vec<String> = wired.iter().map(|&name| name.to_owned()).collect();
            config.ports(&wired)
        };
        let tokens = |wired: &[&str]| ports(wired).find_output("projected_tokens").is_some();
        assert!(ports(&["tokens"]).find_output("projected").is_some());
        assert_eq!([tokens(&[]), tokens(&["features"])], [false, false]);
        assert_eq!([tokens(&["tokens"]), tokens(&["features", "tokens"])], [true, true]);
        let optional = |wired: &[&str]| ports(wired).find_input("features").unwrap().optional;
        assert_eq!([optional(&[]), optional(&["tokens"])], [false, true]);
    }

    #[test]
    fn options_that_cannot_be_are_named() {
        let refused = config(json!({ "width": 0, "side": "text.proj" })).check(&Dims::new());
        let found: Vec<_> = refused.iter().map(|problem| problem.option.as_str()).collect();
        assert_eq!(found, ["width", "side"]);
    }
}
