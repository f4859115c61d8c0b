//! Q-Former: learned queries read a memory, alone or together with a text.
//!
//! | port          | dims      | what                                                          |
//! |---------------|-----------|---------------------------------------------------------------|
//! | `memory`      | `B M E`   | tokens to read; not with `mode: text`; E is `encoder_width`   |
//! | `memory_mask` | `B M`     | optional: 1 where there is a token of the memory              |
//! | `ids`         | `B L`     | words; not with `mode: query`                                 |
//! | `embeddings`  | `B L D`   | instead, with `size.vocab: 0`: sums of words and places       |
//! | `mask`        | `B L`     | optional: 1 where there is a token of the text                |
//! | `tokens`      | `B N D`   | after the last block: Q queries, then L tokens of the text    |
//! | `queries`     | `B Q D`   | the queries alone; not with `mode: text`                      |
//! | `pooled`      | `B D`     | first token                                                   |
//! | `logits`      | `B L V`   | with `mlm`: scores of all words for the tokens of the text    |
//!
//! Modes: `query` knows no text; `joint` lets queries and text see each other (matching, instructions);
//! `text` knows no queries; `causal` is captioning: the keys and values of the queries are computed
//! first and kept, then each word sees them and the words before it. Queries go through an MLP of
//! their own, and they alone read the memory, in every `cross_every`-th block. `extra_queries` start as 0 and may be
//! added to a trained network; weights without them can be read.
//! Source: Li et al. 2023, "BLIP-2" (arXiv 2301.12597), section 3.1; Li et al. 2024, "MVBench" (arXiv
//! 2311.17005); recipes §3.1.

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
use crate::layers::bert::embeddings::Tables;
use crate::layers::bert::heads::{WordHead, first_token};
use crate::layers::bert::qformer::{QFormer, Text};
use crate::layers::bert::size::{TextSize, TextSizeOptions, check_encoder_width, check_length};
use crate::layers::bert::{layouts, published};
use crate::layers::block::{self, BlocksConfig, Context};
use crate::layers::mlp::Activation;
use crate::layers::norm::{Norm, NormKind};
use crate::layers::size::{check_share, side};
use crate::layout::Layout;
use crate::tensors::Tensors;

/// Published networks, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// 12 blocks of width 768, 32 queries, a memory of 1408 channels.
    Blip2,
    /// The same with a memory of 1024 channels and a drop path of 0.2; 64 `extra_queries` come with the
    /// third stage of training.
    Videochat2,
    /// 4 blocks of width 64, 8 queries.
    #[default]
    Tiny,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Queries read the memory.
    #[default]
    Query,
    /// Queries read the memory and see the text, which sees them.
    Joint,
    /// The text alone.
    Text,
    /// Each word sees the queries, which do not see it, and the words before it.
    Causal,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Network to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset; there are no types of tokens.
    pub size: TextSizeOptions,
    /// What the node does.
    pub mode: Mode,
    /// Learned queries, Q without the extra ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queries: Option<usize>,
    /// More of them, which start as 0.
    pub extra_queries: usize,
    /// Channels of the memory, E.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_width: Option<usize>,
    /// Every how many blocks queries read the memory, from the first on.
    pub cross_every: usize,
    /// Whether the network knows text: an MLP and embeddings of its own.
    pub text: bool,
    /// Whether there is a head of words.
    pub mlm: bool,
    /// Dropout of embeddings, attention maps and branches, when the node trains.
    pub dropout: f64,
    /// Drop path rate of the last block, when the node trains; that of the preset when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_path: Option<f64>,
    /// Activation of the MLPs.
    pub activation: Activation,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: TextSizeOptions::default(),
            mode: Mode::default(),
            queries: None,
            extra_queries: 0,
            encoder_width: None,
            cross_every: 2,
            text: true,
            mlm: false,
            dropout: 0.1,
            drop_path: None,
            activation: Activation::default(),
        }
    }
}

impl Config {
    /// All numbers.
    pub fn size(&self) -> TextSize {
        let preset = match self.preset {
            // One word more than BERT: the one that begins a caption.
            Preset::Blip2 | Preset::Videochat2 => TextSize { vocab: 30523, ..TextSize::BASE },
            Preset::Tiny => TextSize::TINY,
        };
        TextSize { types: 0, ..preset }.with(&self.size)
    }

    fn queries(&self) -> usize {
        self.queries.unwrap_or(if self.preset == Preset::Tiny { 8 } else { 32 })
    }

    fn encoder_width(&self) -> usize {
        self.encoder_width.unwrap_or(match self.preset {
            Preset::Blip2 => 1408,
            Preset::Videochat2 => 1024,
            Preset::Tiny => 96,
        })
    }

    fn drop_path(&self) -> f64 {
        let preset = if self.preset == Preset::Videochat2 { 0.2 } else { 0.0 };
        self.drop_path.unwrap_or(preset)
    }

    /// Whether words have embeddings here.
    fn worded(&self) -> bool {
        self.text && self.size().vocab > 0
    }

    fn blocks(&self) -> BlocksConfig {
        let TextSize { width, depth, heads, hidden, eps, .. } = self.size();
        BlocksConfig {
            dropout: self.dropout,
            drop_path: self.drop_path(),
            activation: self.activation,
            norm: NormKind::Layer(eps),
            cross_every: self.cross_every,
            memory: self.encoder_width(),
            two_mlps: self.text,
            ..BlocksConfig::bert(width, depth, heads, hidden)
        }
    }

    fn text(&self, module: &QFormer, inputs: &mut Tensors) -> Result<Option<Text>, NodeError> {
        if self.mode == Mode::Query {
            return Ok(None);
        }
        let tokens = match &module.embeddings {
            Some(tables) => tables.place(tables.of_words(inputs.take("ids")?)?, None, 0)?,
            None => inputs.take("embeddings")?,
        };
        Ok(Some(Text { tokens, mask: inputs.take_if("mask")? }))
    }
}

impl Kind for Config {
    type Module = QFormer;

    fn ports(&self, _: &[String]) -> Ports {
        let TextSize { vocab, width, .. } = self.size();
        let queries = self.queries() + self.extra_queries;
        let mut ports = Ports::default();
        if self.mode != Mode::Text {
            ports = ports
                .input("memory", format!("B M {}", self.encoder_width()))
                .about("tokens to read")
                .stopped("memory_mask", "B M")
                .int()
                .optional()
                .about("1 where there is a token of the memory");
        }
        if self.mode != Mode::Query {
            ports = if self.worded() {
                ports.stopped("ids", "B L").int().about("words")
            } else {
                let ports = ports.input("embeddings", format!("B L {width}"));
                ports.about("sums of words and places")
            };
            ports = ports.stopped("mask", "B L").int().optional().about("1 where there is a token");
        }
        let tokens = match self.mode {
            Mode::Query => queries.to_string(),
            Mode::Joint | Mode::Causal => format!("L+{queries}"),
            Mode::Text => "L".to_owned(),
        };
        ports = ports.output("tokens", format!("B {tokens} {width}")).about("after the last block");
        if self.mode != Mode::Text {
            let dims = format!("B {queries} {width}");
            ports = ports.output("queries", dims).about("the queries alone");
        }
        ports = ports.output("pooled", format!("B {width}")).about("first token");
        if self.mlm && self.mode != Mode::Query {
            ports = ports.output("logits", format!("B L {vocab}")).about("scores of all words");
        }
        ports
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let size = self.size();
        let mut problems = size.check(usize::from(self.mlm));
        let mut refuse = |option: &str, message: String, hint: &str| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        if !(1..=1 << 16).contains(&self.queries()) || self.extra_queries > 1 << 16 {
            let message = format!("{} and {} queries", self.queries(), self.extra_queries);
            refuse("queries", message, "write 1 to 65536, 32 is published; extra ones may be 0");
        }
        if !(1..=size.depth).contains(&self.cross_every) {
            let message = format!("`cross_every` is {}, not from 1 to the depth", self.cross_every);
            refuse("cross_every", message, "2 is published");
        }
        if size.types > 0 {
            let message = "a Q-Former knows no types of tokens".to_owned();
            refuse("size.types", message, "leave it out");
        }
        if !self.text && (self.mode != Mode::Query || self.mlm) {
            let message = "with `text: false` there are queries alone".to_owned();
            refuse("text", message, "leave it out, or use `mode: query` without `mlm`");
        }
        problems.extend(check_share("dropout", self.dropout));
        problems.extend(check_share("drop_path", self.drop_path()));
        problems.extend(check_encoder_width(self.encoder_width()));
        problems.extend(check_length(side(dims, "L"), size.positions));
        problems
    }

    fn init(&self, _: &Dims, init: &Init) -> QFormer {
        let size = self.size();
        let init = &init.with_sigma(size.sigma);
        let extra =
            (self.extra_queries > 0).then(|| init.constant([self.extra_queries, size.width], 0.0));
        QFormer {
            query_tokens: init.normal([self.queries(), size.width], 0.02),
            extra_query_tokens: extra,
            embeddings: self.worded().then(|| Tables::new(&size, init)),
            norm: Norm::layer(size.width, size.eps, init),
            blocks: block::blocks(&self.blocks(), init),
            mlm: self.mlm.then(|| WordHead::new(&size, self.activation, init)),
            dropout: self.dropout,
        }
    }

    fn forward(
        &self,
        module: &QFormer,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let context = Context::training(call);
        let text = self.text(module, &mut inputs)?;
        let mask: Option<Tensor<2, Int>> = inputs.take_if("memory_mask")?;
        let memory: Option<Tensor<3>> = match self.mode {
            Mode::Text => None,
            _ => Some(inputs.take("memory")?),
        };
        let (queries, words) = match (memory, text) {
            (Some(memory), Some(text)) if self.mode == Mode::Causal => {
                let (queries, words) = module.caption((memory, mask), text, &context);
                (Some(queries), Some(words))
            }
            (memory, text) => module.run(memory.map(|m| (m, mask)), text, &context, call),
        };
        let parts: Vec<Tensor<3>> = [&queries, &words].into_iter().flatten().cloned().collect();
        let tokens = Tensor::cat(parts, 1);
        let mut outputs = Tensors::of("pooled", first_token(tokens.clone())).with("tokens", tokens);
        if let Some(queries) = queries {
            outputs = outputs.with("queries", queries);
        }
        if let (Some(head), Some(tables), Some(words)) = (&module.mlm, &module.embeddings, words) {
            outputs = outputs.with("logits", head.forward(words, tables.words.val()));
        }
        Ok(outputs)
    }

    fn layouts(&self) -> Vec<Layout> {
        layouts::of_qformer(self.size().depth, self.text)
    }

    fn published(config: &Value) -> Option<Published> {
        published::of_qformer(config)
    }

    fn layer(&self, path: &str) -> usize {
        match path.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()) {
            Some(number) => number.parse::<usize>().map_or(0, |n| n + 1),
            None if path.starts_with("mlm") => self.layers() + 1,
            None => 0,
        }
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let (size, memory) = (self.size(), side(dims, "M"));
        let queries = if self.mode == Mode::Text { 0 } else { self.queries() + self.extra_queries };
        let readers = size.depth.div_ceil(self.cross_every.max(1)) as u64;
        let read = readers * size.cross_flops(queries, memory, self.encoder_width());
        let read = if queries == 0 { 0 } else { read };
        side(dims, "B") as u64 * (size.flops(size.depth, queries + side(dims, "L")) + read)
    }
}

/// Kind `models/qformer`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("qformer.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use burn::tensor::Device;
    use serde_json::json;

    fn count(options: Value) -> f64 {
        let config: Config = serde_json::from_value(options).unwrap();
        assert_eq!(config.check(&Dims::new()), []);
        let module = config.init(&Dims::new(), &Init::new(0, "qformer", &Device::flex()));
        parameters::count(&module) as f64
    }

    /// BLIP-2, section 3.1: "In total, Q-Former contains 188M parameters."
    #[test]
    fn presets_have_the_published_numbers_of_parameters() {
        let found = count(json!({ "preset": "blip2", "mlm": true }));
        assert!((found / 188e6 - 1.0).abs() < 0.01, "{found}");
        // 384 channels less of the memory, for the keys and values of six blocks; 64 queries more.
        let other = json!({ "preset": "videochat2", "mlm": true, "extra_queries": 64 });
        assert_eq!(count(other), found - 12.0 * 384.0 * 768.0 + 64.0 * 768.0);
    }

    #[test]
    fn impossible_options_are_refused_with_a_way_out() {
        for (options, option) in [
            (json!({ "queries": 0 }), "queries"),
            (json!({ "cross_every": 0 }), "cross_every"),
            (json!({ "size": { "types": 2 } }), "size.types"),
            (json!({ "size": { "vocab": 0 }, "mlm": true }), "size.vocab"),
            (json!({ "text": false, "mode": "joint" }), "text"),
            (json!({ "encoder_width": 0 }), "encoder_width"),
            (json!({ "drop_path": 1.5 }), "drop_path"),
        ] {
            let config: Config = serde_json::from_value(options.clone()).unwrap();
            let problems = config.check(&Dims::new());
            let found: Vec<_> = problems.iter().map(|problem| problem.option.as_str()).collect();
            assert_eq!(found, [option], "{options}");
            assert!(!problems[0].hint.is_empty());
        }
    }
}
