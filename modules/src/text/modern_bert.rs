//! ModernBERT: a text transformer with rotary positions, mostly local attention and gated units.
//!
//! | port     | dims    | what                                                        |
//! |----------|---------|-------------------------------------------------------------|
//! | `ids`    | `B L`   | words; not with `first`                                     |
//! | `hidden` | `B L D` | with `first`: what enters that layer                        |
//! | `mask`   | `B L`   | optional: 1 where there is a token                          |
//! | `tokens` | `B L D` | after the last layer and, with `norm`, its norm             |
//! | `pooled` | `B D`   | first token of `tokens`                                     |
//! | `logits` | `B L V` | with `mlm`: scores of all words                             |
//!
//! Every third layer, from layer 0 on, sees all tokens; the others see 64 on each side. With `first` the
//! node is a run of layers of the same published weights: layers keep their numbers, and so what they
//! see and how their positions turn. InternVideo-Next predicts with the last five layers of the large
//! network (`models/latent_predictor`). The head of words is tied to the word embeddings.
//! Source: Warner et al. 2024, "ModernBERT" (arXiv 2412.13663); recipes §5.3.

use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::modern::Stack;
use crate::layers::modern::network::{ModernBert, Parts};
use crate::layers::modern::size::{Biased, SizeOptions};
use crate::layers::size::side;
use crate::layout::Layout;
use crate::published::{only, switch};
use crate::tensors::Tensors;

/// Published networks, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// 22 layers of width 768 (149 M parameters).
    Base,
    /// 28 layers of width 1024 (395 M parameters).
    Large,
    /// 4 layers of width 64.
    #[default]
    Tiny,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Network to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset.
    pub size: SizeOptions,
    /// First layer of a run; the whole network with its embeddings when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<usize>,
    /// Layers of the run; all that follow when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<usize>,
    /// Every so many layers one is global.
    pub global_every: usize,
    /// Tokens that a local layer sees on each side.
    pub near: usize,
    /// Bases of the rotary angles of global and of local layers.
    pub theta: [f64; 2],
    /// Added to the variance in norms.
    pub eps: f64,
    /// Which parts have biases.
    pub biases: Biased,
    /// Whether the norm after the last layer is there.
    pub norm: bool,
    /// Whether there is a head of words.
    pub mlm: bool,
}

impl Default for Config {
    fn default() -> Self {
        let Stack { global_every, near, theta, eps, biases, .. } = Stack::new(1, 1, 1, 1);
        let (preset, size) = (Preset::default(), SizeOptions::default());
        let (first, count, norm, mlm) = (None, None, true, false);
        Self { preset, size, first, count, global_every, near, theta, eps, biases, norm, mlm }
    }
}

impl Config {
    /// Words, layers of the whole network, deviation at the start.
    fn whole(&self) -> (usize, Stack, f64) {
        let (vocab, stack, sigma) = match self.preset {
            Preset::Base => (50_368, Stack::new(22, 768, 12, 1152), 0.02),
            Preset::Large => (50_368, Stack::new(28, 1024, 16, 2624), 0.02),
            Preset::Tiny => (1024, Stack::new(4, 64, 4, 96), 0.1),
        };
        let size = &self.size;
        let stack = Stack {
            width: size.width.unwrap_or(stack.width),
            heads: size.heads.unwrap_or(stack.heads),
            hidden: size.hidden.unwrap_or(stack.hidden),
            count: size.depth.unwrap_or(stack.count),
            global_every: self.global_every,
            near: self.near,
            theta: self.theta,
            eps: self.eps,
            biases: self.biases,
            ..stack
        };
        (size.vocab.unwrap_or(vocab), stack, size.sigma.unwrap_or(sigma))
    }

    /// The layers of the node.
    pub fn stack(&self) -> Stack {
        let (_, whole, _) = self.whole();
        let first = self.first.unwrap_or(0);
        let count = self.count.unwrap_or(whole.count.saturating_sub(first));
        Stack { first, count, ..whole }
    }
}

impl Kind for Config {
    type Module = ModernBert;

    fn ports(&self, _: &[String]) -> Ports {
        let (vocab, Stack { width, .. }, _) = self.whole();
        let ports = match self.first {
            None => Ports::default().stopped("ids", "B L").int().about("words"),
            Some(_) => Ports::default()
                .input("hidden", format!("B L {width}"))
                .about("what enters the first layer"),
        };
        let ports = ports
            .stopped("mask", "B L")
            .int()
            .optional()
            .about("1 where there is a token")
            .output("tokens", format!("B L {width}"))
            .about("after the last layer")
            .output("pooled", format!("B {width}"))
            .about("first token");
        match self.mlm {
            true => ports.output("logits", format!("B L {vocab}")).about("scores of all words"),
            false => ports,
        }
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let ((vocab, whole, sigma), part) = (self.whole(), self.stack());
        let mut problems = part.check();
        let mut refuse = |option: &str, message: String, hint: &str| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        if part.first + part.count > whole.count {
            let message = format!(
                "layers {} to {} of {}",
                part.first,
                part.first + part.count - 1,
                whole.count
            );
            refuse("count", message, "take fewer, or an earlier `first`");
        }
        if self.count.is_some() && self.first.is_none() {
            let message = "a run of layers needs its first one".to_owned();
            refuse("count", message, "add `first: 0`, and connect `hidden`");
        }
        if self.mlm && (self.first.is_some() || !self.norm) {
            let message = "the head of words needs the embeddings and the last norm".to_owned();
            refuse("mlm", message, "leave out `first`, `count` and `norm`");
        }
        if !(1..=1 << 24).contains(&vocab) {
            let message = format!("`vocab` is {vocab}, but must be from 1 to 16777216");
            refuse("size.vocab", message, "50368 are published");
        }
        for (name, value) in [("eps", self.eps), ("size.sigma", sigma)] {
            if !(value > 0.0 && value <= 10.0) {
                let message = format!("`{name}` is {value}, not above 0 and up to 10");
                refuse(name, message, "leave it out for the published one");
            }
        }
        problems
    }

    fn init(&self, _: &Dims, init: &Init) -> ModernBert {
        let ((vocab, _, sigma), stack) = (self.whole(), self.stack());
        let vocab = self.first.is_none().then_some(vocab);
        let parts = Parts { vocab, norm: self.norm, mlm: self.mlm };
        ModernBert::new(stack, parts, &init.with_sigma(sigma))
    }

    fn forward(
        &self,
        module: &ModernBert,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let x = match self.first {
            None => module.enter(module.rows(inputs.take("ids")?)?),
            Some(_) => inputs.take("hidden")?,
        };
        let mask: Option<Tensor<2, Int>> = inputs.take_if("mask")?;
        let mut states = module.stack.run(&module.blocks, x.clone(), mask.as_ref(), call);
        let x = module.leave(states.pop().unwrap_or(x));
        let [batch, _, width] = x.dims();
        let pooled = x.clone().slice_dim(1, 0..1).reshape([batch, width]);
        let mut outputs = Tensors::of("pooled", pooled);
        if let Some(scores) = module.scores(x.clone()) {
            outputs = outputs.with("logits", scores);
        }
        Ok(outputs.with("tokens", x))
    }

    fn layouts(&self) -> Vec<Layout> {
        let stack = self.stack();
        let named = |name, body: &str| {
            let layout = Layout::new(name).rules(&[
                ("^words.table", &format!("{body}embeddings.tok_embeddings.weight")),
                ("^words.norm.", &format!("{body}embeddings.norm.")),
                ("^norm.", &format!("{body}final_norm.")),
                ("^mlm.bias", "decoder.bias"),
                ("^mlm.", "head."),
            ]);
            let layout = layout.again("decoder.weight", "words.table");
            stack.layout(layout, &format!("{body}layers."), stack.first)
        };
        vec![named("hf", "model."), named("hf_body", "")]
    }

    fn published(config: &Value) -> Option<Published> {
        if config["model_type"] != "modernbert" {
            return None;
        }
        let gelu = serde_json::json!("gelu");
        let acts = [("hidden_activation", gelu.clone()), ("classifier_activation", gelu)];
        if !only(config, &acts) {
            return None;
        }
        let count = |name: &str| config[name].as_u64();
        let theta = |name: &str, of: &str| {
            let nested = config["rope_parameters"][of]["rope_theta"].as_f64();
            nested.or_else(|| config[name].as_f64())
        };
        let masked = config["architectures"][0] == "ModernBertForMaskedLM";
        let options = json!({
            "size": {
                "vocab": count("vocab_size")?,
                "width": count("hidden_size")?,
                "depth": count("num_hidden_layers")?,
                "heads": count("num_attention_heads")?,
                "hidden": count("intermediate_size")?,
            },
            "global_every": count("global_attn_every_n_layers")?,
            "near": count("local_attention")? / 2,
            "theta": [
                theta("global_rope_theta", "full_attention")?,
                theta("local_rope_theta", "sliding_attention")?,
            ],
            "eps": config["norm_eps"].as_f64()?,
            "biases": {
                "attention": switch(config, "attention_bias", false),
                "mlp": switch(config, "mlp_bias", false),
                "norm": switch(config, "norm_bias", false),
                "head": switch(config, "classifier_bias", false),
                "words": switch(config, "decoder_bias", true),
            },
            "mlm": masked,
        });
        Some(Published { options, dims: Dims::new() })
    }

    fn layer(&self, path: &str) -> usize {
        let first = self.first.unwrap_or(0);
        match path.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()) {
            Some(number) => number.parse::<usize>().map_or(0, |n| n + first + 1),
            None if path.starts_with("words") => 0,
            None => self.layers() + 1,
        }
    }

    fn layers(&self) -> usize {
        self.whole().1.count
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let (vocab, Stack { width, .. }, _) = self.whole();
        let tokens = side(dims, "L");
        let head = if self.mlm { 2 * tokens * width * (width + vocab) } else { 0 };
        side(dims, "B") as u64 * (self.stack().flops(tokens) + head as u64)
    }
}

/// Kind `text/modern_bert`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("modern_bert.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use crate::rng::Key;
    use burn::tensor::Device;
    use schemas::node::At;

    fn config(options: Value) -> Config {
        serde_json::from_value(options).unwrap()
    }

    fn count(options: Value) -> f64 {
        let config = config(options);
        assert_eq!(config.check(&Dims::new()), []);
        let module = config.init(&Dims::new(), &Init::new(0, "count", &Device::flex()));
        parameters::count(&module) as f64
    }

    /// Section 2.1 of the paper: 149 and 395 million parameters.
    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (preset, published) in [("base", 149e6), ("large", 395e6)] {
            let found = count(json!({ "preset": preset }));
            assert!((found / published - 1.0).abs() < 0.01, "{preset}: {found}");
        }
    }

    #[test]
    fn a_run_of_layers_keeps_its_numbers_in_files() {
        let config = config(json!({ "preset": "large", "first": 23, "norm": false }));
        assert_eq!(config.stack().count, 5);
        let key = |path| config.layouts()[0].slot(path);
        let slot = key("blocks.1.mlp.gate.weight");
        assert_eq!((slot.key.as_str(), slot.part), ("model.layers.24.mlp.Wi.weight", [1, 2]));
        let globals: Vec<bool> = (0..5).map(|place| config.stack().is_global(place)).collect();
        assert_eq!(globals, [false, true, false, false, true]);
    }

    #[test]
    fn words_that_are_none_and_runs_that_do_not_fit_are_refused() {
        let tiny = Config::default();
        let module = tiny.init(&Dims::new(), &Init::new(0, "words", &Device::flex()));
        let ids = Tensor::<2, Int>::from_data([[3, 1024]], &Device::flex());
        let call = Call::new(Key::new(0, "words"), At::default());
        let error = tiny.forward(&module, Tensors::of("ids", ids), &call).unwrap_err();
        assert!(error.to_string().contains("token 1 is 1024"), "{error}");
        let wrong = [
            json!({ "first": 3, "count": 2 }),
            json!({ "count": 2 }),
            json!({ "first": 0, "mlm": true }),
        ];
        for options in wrong {
            assert_eq!(config(options.clone()).check(&Dims::new()).len(), 1, "{options}");
        }
    }
}
