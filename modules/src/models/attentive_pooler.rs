//! Attentive pooler: blocks over frozen tokens, and one learned query that reads them.
//!
//! | port     | dims        | what                                              |
//! |----------|-------------|---------------------------------------------------|
//! | `tokens` | `B N D`     | tokens of an encoder                              |
//! | `pooled` | `B D`       | what the query found                              |
//! | `logits` | `B classes` | with `classes`: a linear layer on `pooled`        |
//!
//! Some blocks of self-attention, then a block in which a learned query asks all tokens: its keys and
//! values are normed, the query is not, and there is no output projection. V-JEPA 2 judges frozen
//! encoders with it: 3 blocks, as many heads as the encoder has.
//! Source: Assran et al. 2025, "V-JEPA 2" (arXiv 2506.09985), section 5; recipes §6.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::vjepa2::official_blocks;
use crate::init::Init;
use crate::kind::{self, Call, Kind, Names, Published};
use crate::layers::attention::{Attention, AttentionConfig, Look};
use crate::layers::block::{self, Block, BlocksConfig, Context};
use crate::layers::linear::Linear;
use crate::layers::mlp::{Activation, Mlp};
use crate::layers::norm::{Norm, NormKind};
use crate::layers::size::{check_classes, side};
use crate::layout::Layout;
use crate::published::count;
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Blocks of self-attention before the query asks.
    pub depth: usize,
    /// Attention heads; a divisor of the width of the tokens.
    pub heads: usize,
    /// Hidden channels of the MLPs; four times the width when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// Added to the variance in the norms: 1e-6 in transformers, 1e-5 in the official code.
    pub eps: f64,
    /// Classes of `logits`; no classifier when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Deviation that matrices start with: 0.02 as published, more for narrow encoders.
    pub sigma: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { depth: 3, heads: 16, hidden: None, eps: 1e-6, classes: None, sigma: 0.02 }
    }
}

/// The block in which the query asks.
#[derive(Module, Debug)]
pub struct Asking {
    /// Of the tokens.
    pub norm1: Norm,
    /// From the query to the tokens, without output projection.
    pub attn: Attention,
    /// Of the MLP.
    pub norm2: Norm,
    /// MLP.
    pub mlp: Mlp,
}

/// The pooler.
#[derive(Module, Debug)]
pub struct AttentivePooler {
    /// `[1, 1, D]`.
    pub query: Param<Tensor<3>>,
    /// Self-attention.
    pub blocks: Vec<Block>,
    /// The query asks.
    pub asking: Asking,
    /// `[D, classes]`.
    pub head: Option<Linear>,
}

impl AttentivePooler {
    /// `[B, N, D]`, after the blocks; returns `[B, D]`.
    pub fn pool(&self, x: Tensor<3>) -> Tensor<2> {
        let [batch, _, width] = x.dims();
        let x = self.asking.norm1.forward(x);
        let query = self.query.val().expand([batch, 1, width]);
        let found = self.asking.attn.ask(query.clone(), x.clone(), x, Look::default());
        let query = query + found;
        let query = query.clone() + self.asking.mlp.forward(self.asking.norm2.forward(query));
        query.squeeze_dim(1)
    }
}

impl Kind for Config {
    type Module = AttentivePooler;

    fn ports(&self, _: &[String]) -> Ports {
        let ports = Ports::default()
            .input("tokens", "B N D")
            .about("tokens of an encoder")
            .output("pooled", "B D")
            .about("what the query found");
        match self.classes {
            Some(classes) => ports.output("logits", format!("B {classes}")).about("class scores"),
            None => ports,
        }
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems: Vec<_> = check_classes(self.classes).into_iter().collect();
        let mut refuse = |option: &str, message: String, hint: &str| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        if self.depth > 1 << 10 {
            let message = format!("`depth` is {}, more than any pooler has", self.depth);
            refuse("depth", message, "3 is published");
        }
        let width = side(dims, "D");
        if self.heads == 0 || !width.is_multiple_of(self.heads) {
            let message = format!("{} heads do not divide tokens of width {width}", self.heads);
            refuse("heads", message, "take as many as the encoder has");
        }
        if self.hidden.is_some_and(|hidden| !(1..=1 << 20).contains(&hidden)) {
            let message = "`hidden` is not from 1 to 1048576".to_owned();
            refuse("hidden", message, "leave it out for four times the width");
        }
        for (name, value) in [("eps", self.eps), ("sigma", self.sigma)] {
            if !(value > 0.0 && value <= 1.0) {
                let message = format!("`{name}` is {value}, not above 0 and up to 1");
                refuse(name, message, "leave it out for the published one");
            }
        }
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> AttentivePooler {
        let (width, heads) = (side(dims, "D"), self.heads);
        let hidden = self.hidden.unwrap_or(4 * width);
        let init = &init.with_sigma(self.sigma);
        let plain = BlocksConfig::vit(width, self.depth, heads, hidden);
        let blocks = BlocksConfig { norm: NormKind::Layer(self.eps), ..plain };
        let asks = AttentionConfig { project: false, ..AttentionConfig::new(width, heads) };
        let shrink = (2.0 * (self.depth + 1) as f64).sqrt();
        let norm = || Norm::layer(width, self.eps, init);
        AttentivePooler {
            query: init.normal([1, 1, width], 0.02),
            blocks: block::blocks(&blocks, init),
            asking: Asking {
                norm1: norm(),
                attn: Attention::new(&asks, 1.0, init),
                norm2: norm(),
                mlp: Mlp::new([width, hidden, width], Activation::Gelu, shrink, init),
            },
            head: self.classes.map(|classes| init.linear(width, classes, true, 1.0)),
        }
    }

    fn forward(
        &self,
        module: &AttentivePooler,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let x: Tensor<3> = inputs.take("tokens")?;
        let (_, x) = block::run(&module.blocks, x, &[], &Context::training(call), call);
        let pooled = module.pool(x);
        let outputs = match &module.head {
            Some(head) => Tensors::of("logits", head.forward(pooled.clone())),
            None => Tensors::new(),
        };
        Ok(outputs.with("pooled", pooled))
    }

    fn layouts(&self) -> Vec<Layout> {
        let hf = Layout::new("hf").rules(&[
            ("^query", "pooler.query_tokens"),
            ("^head.", "classifier."),
            ("^asking.attn.", "pooler.cross_attention_layer.cross_attn."),
            ("^asking.", "pooler.cross_attention_layer."),
            ("^blocks.", "pooler.self_attention_layers."),
            (".attn.", ".self_attn."),
            ("_attn.q.", "_attn.q_proj."),
            ("_attn.k.", "_attn.k_proj."),
            ("_attn.v.", "_attn.v_proj."),
            ("_attn.proj.", "_attn.out_proj."),
            (".norm1.", ".layer_norm1."),
            (".norm2.", ".layer_norm2."),
        ]);
        let official = Layout::new("official").rules(&[
            ("^query", "pooler.query_tokens"),
            ("^head.", "linear."),
            ("^asking.attn.q.", "pooler.cross_attention_block.xattn.q."),
            ("^asking.attn.k.weight", "pooler.cross_attention_block.xattn.kv.weight[0/2]"),
            ("^asking.attn.k.bias", "pooler.cross_attention_block.xattn.kv.bias[0/2]"),
            ("^asking.attn.v.weight", "pooler.cross_attention_block.xattn.kv.weight[1/2]"),
            ("^asking.attn.v.bias", "pooler.cross_attention_block.xattn.kv.bias[1/2]"),
            ("^asking.", "pooler.cross_attention_block."),
            ("^blocks.", "pooler.blocks."),
        ]);
        vec![hf, official_blocks(official)]
    }

    fn published(config: &Value) -> Option<Published> {
        if config["model_type"] != "vjepa2" {
            return None;
        }
        let labels = config["id2label"].as_object().map(serde_json::Map::len);
        let mut options = json!({
            "depth": count(config, "num_pooler_layers")?,
            "heads": count(config, "num_attention_heads")?,
            "eps": config["layer_norm_eps"].as_f64().unwrap_or(1e-6),
        });
        if let Some(classes) = labels.or_else(|| count(config, "num_labels")) {
            options["classes"] = classes.into();
        }
        let dims = Dims::from([("D".to_owned(), count(config, "hidden_size")?)]);
        Some(Published { options, dims })
    }

    fn reference_names(&self) -> &'static [Names] {
        &[("tokens", &["encoder_out", "tokens"]), ("logits", &["cls_logits", "logits"])]
    }

    fn layers(&self) -> usize {
        self.depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let [n, d] = ["N", "D"].map(|symbol| side(dims, symbol) as u64);
        let hidden = self.hidden.map_or(4 * d, |hidden| hidden as u64);
        let block = 2 * n * (4 * d * d + 2 * d * hidden) + 4 * n * n * d;
        side(dims, "B") as u64 * (self.depth as u64 * block + 4 * n * d * d)
    }
}

/// Kind `models/attentive_pooler`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("attentive_pooler.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use burn::tensor::Device;

    fn dims() -> Dims {
        [("B", 2), ("N", 5), ("D", 32)].map(|(name, value)| (name.to_owned(), value)).into()
    }

    #[test]
    fn keys_of_the_official_code_are_fused_and_those_of_transformers_are_not() {
        let config = Config { depth: 1, classes: Some(3), ..Config::default() };
        let module = config.init(&dims(), &Init::new(0, "pooler", &Device::flex()));
        let all = parameters::list(&module);
        let keys = |layout: usize| -> Vec<String> {
            all.iter().map(|p| config.layouts()[layout].slot(&p.path).key).collect()
        };
        let [hf, official] = [keys(0), keys(1)];
        assert!(hf.contains(&"pooler.self_attention_layers.0.self_attn.out_proj.bias".to_owned()));
        assert!(hf.contains(&"pooler.cross_attention_layer.cross_attn.v_proj.weight".to_owned()));
        assert!(official.contains(&"pooler.blocks.0.attn.qkv.bias".to_owned()));
        assert!(official.contains(&"pooler.cross_attention_block.xattn.kv.bias".to_owned()));
        assert!(official.contains(&"linear.weight".to_owned()));
        assert!(!hf.iter().any(|key| key.contains("cross_attn.out_proj")));
    }

    #[test]
    fn heads_must_divide_the_width() {
        let config = Config { heads: 5, ..Config::default() };
        assert_eq!(config.check(&dims())[0].option, "heads");
        assert_eq!(Config::default().check(&dims()), []);
    }
}
