//! Causal language model: Llama, Mistral or Qwen2, with tokens of other networks among its words.
//!
//! | port         | dims    | what                                                                |
//! |--------------|---------|---------------------------------------------------------------------|
//! | `ids`        | `B L`   | words; may be left out where `embeddings` come                      |
//! | `embeddings` | `B L D` | optional: what enters the first block, instead of rows for `ids`    |
//! | `mask`       | `B L`   | optional: 1 = word, 0 = padding, on the left or on the right        |
//! | `visual`     | `B Q D` | with `placeholder`, optional: rows for the placeholders of a sample |
//! | `labels`     | `B L`   | optional: words to be told, -100 where there is none                |
//! | `tokens`     | `B L D` | after the last norm                                                 |
//! | `logits`     | `B L V` | scores of the next word, unless `head: false`                       |
//! | `labels`     | `B L`   | where labels come: the same, with -100 at placeholders              |
//!
//! The network is a stack of blocks with RMSNorm before each branch, rotary positions, gated SiLU units
//! and few heads of keys. Llama 3.1 rescales slow rotations, Mistral sees a window of keys (query i sees
//! the keys from `i - window + 1` to i), Qwen2 has biases of queries, keys and values, and small models
//! share the embedding table with the head. Positions count the ones of the mask.
//!
//! The rows of `visual` take the places of the words `placeholder`, in their order. This is an input of
//! the model rather than a node before it, since the embedding table lives here, often shared with the
//! head, and a graph has no cycles.
//! Source: Touvron et al. 2023, "Llama 2" (arXiv 2307.09288); Llama team 2024, "The Llama 3 Herd of Models"
//! (arXiv 2407.21783); Jiang et al. 2023, "Mistral 7B" (arXiv 2310.06825); Yang et al. 2024, "Qwen2" (arXiv
//! 2407.10671); recipes §3.1 for the splice.

use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::init::Init;
use crate::kind::{self, Call, Kind, Published};
use crate::layers::attention::{AttentionConfig, Biases};
use crate::layers::block::{self, BlocksConfig, Context};
use crate::layers::causal::{CausalLm, Reach};
use crate::layers::language::{Biased, LanguageOptions, LanguageSize, Preset};
use crate::layers::language_config;
use crate::layers::mlp::Activation;
use crate::layers::norm::{Norm, NormKind};
use crate::layers::rope::{Rescale, frequencies};
use crate::layers::size::side;
use crate::layers::splice::Places;
use crate::layout::Layout;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset.
    pub size: LanguageOptions,
    /// Base of the rotary angles, instead of the preset's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub theta: Option<f64>,
    /// Llama 3.1's rescaling of these angles, instead of the preset's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rescale: Option<Rescale>,
    /// Keys that a query sees, itself included; all earlier ones when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// Biases of the attention, instead of the preset's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub biases: Option<Biased>,
    /// Whether the head is the embedding table, instead of the preset's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tied: Option<bool>,
    /// Whether there are scores of the next word; a text tower needs none.
    pub head: bool,
    /// Word whose places are taken by the rows of `visual`; it may be beyond the vocabulary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placeholder: Option<i64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: LanguageOptions::default(),
            theta: None,
            rescale: None,
            window: None,
            biases: None,
            tied: None,
            head: true,
            placeholder: None,
        }
    }
}

impl Config {
    /// All numbers.
    pub fn size(&self) -> LanguageSize {
        let size = self.preset.size().with(&self.size);
        LanguageSize {
            theta: self.theta.unwrap_or(size.theta),
            rescale: self.rescale.or(size.rescale),
            biases: self.biases.unwrap_or(size.biases),
            tied: self.tied.unwrap_or(size.tied),
            ..size
        }
    }

    fn blocks(&self) -> BlocksConfig {
        let LanguageSize { width, depth, heads, kv_heads, head, hidden, eps, biases, .. } =
            self.size();
        let biases = match biases {
            Biased::None => Biases::NONE,
            Biased::Inputs => Biases::INPUTS,
            Biased::All => Biases::ALL,
        };
        let attention =
            AttentionConfig { kv_heads, head, biases, ..AttentionConfig::new(width, heads) };
        BlocksConfig {
            attention,
            activation: Activation::Silu,
            gated: true,
            norm: NormKind::Rms(eps),
            ..BlocksConfig::vit(width, depth, heads, hidden)
        }
    }

    /// What enters the first block, and the labels where there are any.
    fn enter(
        &self,
        module: &CausalLm,
        inputs: &mut Tensors,
    ) -> Result<(Tensor<3>, Option<Tensor<2, Int>>), NodeError> {
        let labels: Option<Tensor<2, Int>> = inputs.take_if("labels")?;
        if let Some(x) = inputs.take_if("embeddings")? {
            return Ok((x, labels));
        }
        let ids: Tensor<2, Int> = inputs.take("ids")?;
        let visual: Option<Tensor<3>> = inputs.take_if("visual")?;
        let (Some(placeholder), Some(visual)) = (self.placeholder, visual) else {
            return Ok((module.embed(ids)?, labels));
        };
        let places = Places::of(&ids, placeholder, visual.dims()[1])?;
        let x = module.embed(places.words(ids))?;
        let labels = labels.map(|labels| places.unlabelled(labels));
        Ok((places.splice(x, visual), labels))
    }
}

impl Kind for Config {
    type Module = CausalLm;

    fn ports(&self, wired: &[String]) -> Ports {
        let LanguageSize { width, vocabulary, .. } = self.size();
        let is = |port: &str| wired.iter().any(|name| name == port);
        let ids = Ports::default().stopped("ids", "B L").int().about("words");
        let ports = if is("embeddings") { ids.optional() } else { ids }
            .input("embeddings", format!("B L {width}"))
            .optional()
            .about("what enters the first block, instead of rows for `ids`")
            .stopped("mask", "B L")
            .int()
            .optional()
            .about("1 = word, 0 = padding");
        let ports = match self.placeholder {
            None => ports,
            Some(_) => ports
                .input("visual", format!("B Q {width}"))
                .optional()
                .about("rows for the placeholders of a sample, in order"),
        };
        let ports = ports
            .stopped("labels", "B L")
            .int()
            .optional()
            .about("words to be told, -100 where there is none")
            .output("tokens", format!("B L {width}"))
            .about("after the last norm");
        let ports = match self.head {
            false => ports,
            true => {
                ports.output("logits", format!("B L {vocabulary}")).about("scores of the next word")
            }
        };
        match is("labels") {
            false => ports,
            true => ports.plain("labels", "B L").int().about("with -100 at placeholders"),
        }
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let size = self.size();
        let mut problems = size.check();
        if self.window == Some(0) {
            let message = "`window` is 0, so that a query would see no key";
            problems.push(OptionProblem::new("window", message, "leave it out for all keys"));
        }
        if self.placeholder.is_some_and(|word| word < 0) {
            let message = "`placeholder` is below 0, but words are numbered from 0";
            problems.push(OptionProblem::new("placeholder", message, "write the word's number"));
        }
        let (length, context) = (side(dims, "L"), size.context);
        if length > context {
            let message =
                format!("texts of {length} tokens are longer than the context, {context}");
            let hint = "shorten the texts, or raise `size.context`";
            problems.push(OptionProblem::new("size.context", message, hint));
        }
        problems
    }

    fn init(&self, _: &Dims, init: &Init) -> CausalLm {
        let size = self.size();
        let init = &init.with_sigma(size.sigma);
        let LanguageSize { vocabulary, width, eps, .. } = size;
        let own = self.head && !size.tied;
        CausalLm {
            embed: init.normal([vocabulary, width], 0.02),
            blocks: block::blocks(&self.blocks(), init),
            norm: Norm::rms(width, eps, init),
            head: own.then(|| init.linear(width, vocabulary, false, 1.0)),
            reach: Reach {
                frequencies: frequencies(size.head, size.theta, size.rescale.as_ref()),
                window: self.window,
                context: size.context,
                tied: self.head && size.tied,
            },
        }
    }

    fn forward(
        &self,
        module: &CausalLm,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let (x, labels) = self.enter(module, &mut inputs)?;
        let mask: Option<Tensor<2, Int>> = inputs.take_if("mask")?;
        let tokens = x.dims()[1];
        module.check_length(tokens)?;
        let key = call.training.then(|| call.key.clone());
        let context = Context { key, ..module.context(tokens, mask.as_ref()) };
        let (_, x) = block::run(&module.blocks, x, &[], &context, call);
        let tokens = module.norm.forward(x);
        let mut outputs = Tensors::of("tokens", tokens.clone());
        if let Some(logits) = module.logits(tokens, context.key.as_ref()) {
            outputs = outputs.with("logits", logits);
        }
        Ok(match labels {
            Some(labels) => outputs.with("labels", labels),
            None => outputs,
        })
    }

    fn layouts(&self) -> Vec<Layout> {
        let outside = |name, before: &str| {
            Layout::new(name)
                .rule("^embed", &format!("{before}embed_tokens.weight"))
                .rule("^blocks.", &format!("{before}layers."))
                .rule("^norm.", &format!("{before}norm."))
        };
        let inside = |layout: Layout| {
            let tied = self.size().tied;
            let layout = if tied { layout.again("lm_head.weight", "embed") } else { layout };
            layout.rules(&[
                ("^head.", "lm_head."),
                (".norm1.", ".input_layernorm."),
                (".norm2.", ".post_attention_layernorm."),
                (".attn.q.", ".self_attn.q_proj."),
                (".attn.k.", ".self_attn.k_proj."),
                (".attn.v.", ".self_attn.v_proj."),
                (".attn.proj.", ".self_attn.o_proj."),
                (".mlp.gate.", ".mlp.up_proj."),
                (".mlp.fc1.", ".mlp.gate_proj."),
                (".mlp.fc2.", ".mlp.down_proj."),
            ])
        };
        vec![inside(outside("hf", "model.")), inside(outside("hf_base", ""))]
    }

    fn published(config: &Value) -> Option<Published> {
        Some(Published { options: language_config::options(config)?, dims: Dims::new() })
    }

    fn vocabulary(&self) -> Option<usize> {
        Some(self.size().vocabulary)
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let (size, tokens) = (self.size(), side(dims, "L"));
        let head = 2 * (tokens * size.width) as u64 * size.vocabulary as u64;
        side(dims, "B") as u64 * (size.flops(tokens) + if self.head { head } else { 0 })
    }
}

/// Kind `text/causal_lm`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("causal_lm.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use crate::rng::Key;
    use burn::tensor::Device;
    use schemas::node::At;
    use serde_json::json;

    fn config(options: Value) -> Config {
        serde_json::from_value(options).unwrap()
    }

    fn run(config: &Config, module: &CausalLm, inputs: Tensors) -> Result<Tensors, NodeError> {
        config.forward(module, inputs, &Call::new(Key::new(1, "lm"), At::default()))
    }

    fn words<const L: usize>(rows: [[i64; L]; 2]) -> Tensor<2, Int> {
        Tensor::from_data(rows, &Device::flex())
    }

    /// Numbers of values in the published files, as their model cards on the Hugging Face hub give them.
    #[test]
    fn presets_have_the_published_parameters() {
        for (preset, published) in [
            ("llama2_7b", 6_738_415_616),
            ("llama3_8b", 8_030_261_248),
            ("llama3.2_1b", 1_235_814_400),
            ("mistral_7b", 7_241_732_096),
            ("qwen2_0.5b", 494_032_768),
            ("qwen2_1.5b", 1_543_714_304),
            ("qwen2_7b", 7_615_616_512),
            ("vicuna_7b", 6_738_415_616),
        ] {
            let config = config(json!({ "preset": preset }));
            assert!(config.check(&Dims::new()).is_empty(), "{preset}");
            let module = config.init(&Dims::new(), &Init::new(1, "lm", &Device::flex()));
            assert_eq!(parameters::count(&module), published, "{preset}");
        }
    }

    #[test]
    fn options_that_do_not_fit_are_named() {
        let named = |options: Value, dims: &Dims| {
            let problems = config(options).check(dims);
            problems.into_iter().map(|problem| problem.option).collect::<Vec<_>>()
        };
        let none = Dims::new();
        assert_eq!(named(json!({ "size": { "kv_heads": 3 } }), &none), ["size.kv_heads"]);
        assert_eq!(named(json!({ "size": { "head": 7 } }), &none), ["size.head"]);
        assert_eq!(named(json!({ "window": 0, "theta": 0.5 }), &none), ["theta", "window"]);
        let long = Dims::from([("L".to_owned(), 513)]);
        assert_eq!(named(json!({}), &long), ["size.context"]);
    }

    #[test]
    fn padding_on_either_side_changes_no_word() {
        let config = config(json!({ "window": 2 }));
        let module = config.init(&Dims::new(), &Init::new(1, "lm", &Device::flex()));
        let given = words([[5, 6, 7, 8, 0, 0], [0, 0, 5, 6, 7, 8]]);
        let mask = words([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]);
        let padded = Tensors::of("ids", given).with("mask", mask);
        let both: Tensor<3> = run(&config, &module, padded).unwrap().take("logits").unwrap();
        let alone = Tensors::of("ids", words([[5, 6, 7, 8], [5, 6, 7, 8]]));
        let alone: Tensor<3> = run(&config, &module, alone).unwrap().take("logits").unwrap();
        let part = |x: &Tensor<3>, sample: usize, first: usize| {
            x.clone().slice([sample..sample + 1, first..first + 4, 0..512])
        };
        for found in [part(&both, 0, 0), part(&both, 1, 2)] {
            let off = (found - part(&alone, 0, 0)).abs().max().into_scalar::<f32>();
            assert!(off < 1e-4, "{off}");
        }
    }

    #[test]
    fn rows_of_another_network_get_gradients_and_no_labels() {
        let config = config(json!({ "placeholder": 9999 }));
        let device = Device::flex().autodiff();
        let module = config.init(&Dims::new(), &Init::new(1, "lm", &device));
        let ids = words([[1, 9999, 9999, 2], [9999, 3, 9999, 4]]);
        let visual = Tensor::<3>::ones([2, 2, 96], &device).require_grad();
        let given = Tensors::of("ids", ids.clone()).with("visual", visual.clone());
        let mut outputs = run(&config, &module, given.with("labels", ids.clone())).unwrap();
        let labels: Tensor<2, Int> = outputs.take("labels").unwrap();
        let labels: Vec<i64> = labels.into_data().iter::<i64>().collect();
        assert_eq!(labels, [1, -100, -100, 2, -100, 3, -100, 4]);
        let logits: Tensor<3> = outputs.take("logits").unwrap();
        let gradient = visual.grad(&logits.square().sum().backward()).unwrap();
        let rows: Vec<f32> = gradient.abs().sum_dim(2).into_data().try_to_vec().unwrap();
        assert!(rows.iter().all(|row| *row > 0.0), "{rows:?}");
        // Without rows the placeholder is a word like any other, and here there is none.
        let message = run(&config, &module, Tensors::of("ids", ids)).unwrap_err().to_string();
        assert!(message.contains("word 9999 of sample 0, place 1"), "{message}");
    }
}
