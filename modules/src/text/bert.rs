//! BERT: a text transformer, whole or split at a layer, on request with cross-attention.
//!
//! | port          | dims    | what                                                            |
//! |---------------|---------|-----------------------------------------------------------------|
//! | `ids`         | `B L`   | words; not with `mode: fusion`                                  |
//! | `types`       | `B L`   | optional: types of tokens, where the network knows types        |
//! | `hidden`      | `B L D` | with `mode: fusion`: `tokens` of a node with `mode: text`       |
//! | `mask`        | `B L`   | optional: 1 where there is a token                              |
//! | `memory`      | `B M E` | optional: tokens to attend to; E is `encoder_width`             |
//! | `memory_mask` | `B M`   | optional: 1 where there is a token of the memory                |
//! | `table`       | `V D`   | with `mode: fusion` and `mlm`: `table` of the node with the words |
//! | `tokens`      | `B L D` | after the last block                                            |
//! | `pooled`      | `B D`   | first token; with `pooler`, the pooled one                      |
//! | `logits`      | `B L V` | with `mlm`: scores of all words                                 |
//! | `nsp`         | `B 2`   | with `nsp`: whether the second text follows the first           |
//! | `table`       | `V D`   | with `mode: text`: the word embeddings                          |
//!
//! All modes have one set of published weights. `text` holds the embeddings and the blocks before `split`,
//! `fusion` the others and the heads: two nodes make the text tower of InternVideo2, where what is
//! fused is chosen between the two. The head of words is tied to the word embeddings, across nodes too:
//! `table` carries them and the gradient back. `causal` hides later tokens. BLIP's text encoder and decoder have no types and
//! cross-attention in every block.
//! Source: Devlin et al. 2018, "BERT" (arXiv 1810.04805); Li et al. 2022, "BLIP" (arXiv 2201.12086);
//! recipes §2.4.

use std::ops::Range;

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
use crate::layers::bert::heads::WordHead;
use crate::layers::bert::network::{self, Bert};
use crate::layers::bert::parts::{Mode, Parts};
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
    /// 12 blocks of width 768, uncased.
    BertBase,
    /// 24 blocks of width 1024, uncased.
    BertLarge,
    /// BERT-large, split at block 19, from which on it attends to 1408 channels.
    Internvideo2,
    /// Text encoder and decoder of BLIP with ViT-B.
    BlipBase,
    /// 4 blocks of width 64.
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
    pub size: TextSizeOptions,
    /// What the node does of it.
    pub mode: Mode,
    /// First block of `mode: fusion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<usize>,
    /// First block with cross-attention.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_from: Option<usize>,
    /// Channels of the memory, E.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder_width: Option<usize>,
    /// Whether there is a head of words.
    pub mlm: bool,
    /// Whether there is a head for pairs of texts; it needs the pooler.
    pub nsp: bool,
    /// Whether the first token goes through a layer.
    pub pooler: bool,
    /// Dropout of embeddings, attention maps and branches, when the node trains.
    pub dropout: f64,
    /// Activation of the MLPs.
    pub activation: Activation,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: TextSizeOptions::default(),
            mode: Mode::default(),
            split: None,
            cross_from: None,
            encoder_width: None,
            mlm: false,
            nsp: false,
            pooler: false,
            dropout: 0.1,
            activation: Activation::default(),
        }
    }
}

impl Config {
    /// All numbers.
    pub fn size(&self) -> TextSize {
        let preset = match self.preset {
            Preset::BertBase => TextSize::BASE,
            Preset::BertLarge | Preset::Internvideo2 => TextSize::LARGE,
            Preset::BlipBase => TextSize { vocab: 30524, types: 0, ..TextSize::BASE },
            Preset::Tiny => TextSize::TINY,
        };
        preset.with(&self.size)
    }

    fn split(&self) -> Option<usize> {
        self.split.or_else(|| (self.preset == Preset::Internvideo2).then_some(19))
    }

    /// First block with cross-attention and channels of the memory; none without.
    pub fn cross(&self) -> Option<[usize; 2]> {
        let preset = match self.preset {
            Preset::Internvideo2 => Some([19, 1408]),
            Preset::BlipBase => Some([0, 768]),
            _ => None,
        };
        let from = self.cross_from.or(preset.map(|[from, _]| from))?;
        Some([from, self.encoder_width.or(preset.map(|[_, width]| width)).unwrap_or(0)])
    }

    fn parts(&self) -> Parts {
        let depth = self.size().depth;
        Parts { mode: self.mode, depth, split: self.split(), cross: self.cross() }
    }

    /// Numbers of the blocks that the node runs.
    pub fn range(&self) -> Range<usize> {
        self.parts().range()
    }

    fn blocks(&self) -> BlocksConfig {
        let TextSize { width, depth, heads, hidden, eps, .. } = self.size();
        let plain = BlocksConfig::bert(width, depth, heads, hidden);
        let (dropout, activation, norm) = (self.dropout, self.activation, NormKind::Layer(eps));
        let plain = BlocksConfig { dropout, activation, norm, ..plain };
        match self.cross() {
            None => plain,
            Some([cross_from, memory]) => {
                BlocksConfig { cross_every: 1, cross_from, memory, ..plain }
            }
        }
    }

    fn check_heads(&self) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        let mut refuse = |option: &str, message: String, hint: &str| {
            problems.push(OptionProblem::new(option, message, hint));
        };
        if self.cross().is_none() && self.encoder_width.is_some() {
            let message = "no block attends to a memory".to_owned();
            refuse("encoder_width", message, "add `cross_from: 0`, or leave it out");
        }
        for (name, on) in [("mlm", self.mlm), ("nsp", self.nsp), ("pooler", self.pooler)] {
            if on && self.mode == Mode::Text {
                let message = format!("`{name}` stands after the last block, not in `mode: text`");
                refuse(name, message, "give it to `mode: fusion`; here write false");
            }
        }
        if self.nsp && !self.pooler {
            let message = "the head for pairs reads the pooled token".to_owned();
            refuse("nsp", message, "add `pooler: true`");
        }
        problems
    }
}

impl Kind for Config {
    type Module = Bert;

    fn ports(&self, _: &[String]) -> Ports {
        let TextSize { width, vocab, .. } = self.size();
        let mut ports = self
            .parts()
            .inputs(&self.size(), self.mlm)
            .output("tokens", format!("B L {width}"))
            .about("after the last block")
            .output("pooled", format!("B {width}"))
            .about("first token, or the pooled one");
        if self.mode == Mode::Text {
            ports = ports.output("table", format!("{vocab} {width}")).about("word embeddings");
        }
        if self.mlm {
            ports = ports.output("logits", format!("B L {vocab}")).about("scores of all words");
        }
        if self.nsp {
            ports = ports.output("nsp", "B 2").about("whether the second text follows");
        }
        ports
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let size = self.size();
        let mut problems = size.check(1);
        problems.extend(check_share("dropout", self.dropout));
        problems.extend(self.parts().check());
        problems.extend(self.check_heads());
        if let Some([_, width]) = self.cross() {
            problems.extend(check_encoder_width(width));
        }
        if self.mode != Mode::Fusion {
            problems.extend(check_length(side(dims, "L"), size.positions));
        }
        problems
    }

    fn init(&self, _: &Dims, init: &Init) -> Bert {
        let size = self.size();
        let (init, range) = (&init.with_sigma(size.sigma), self.range());
        let words = self.mode != Mode::Fusion;
        // Parameters are made when they are first read: those of other parts never are.
        let mut blocks = block::blocks(&self.blocks(), init);
        blocks.truncate(range.end);
        blocks.drain(..range.start.min(blocks.len()));
        Bert {
            embeddings: words.then(|| Tables::new(&size, init)),
            norm: words.then(|| Norm::layer(size.width, size.eps, init)),
            blocks,
            pooler: self.pooler.then(|| init.linear(size.width, size.width, true, 1.0)),
            mlm: self.mlm.then(|| WordHead::new(&size, self.activation, init)),
            nsp: self.nsp.then(|| init.linear(size.width, 2, true, 1.0)),
            first: range.start,
            dropout: self.dropout,
        }
    }

    fn forward(
        &self,
        module: &Bert,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let context = Context::training(call);
        let x: Tensor<3> = if self.mode == Mode::Fusion {
            inputs.take("hidden")?
        } else {
            let words = module.words(inputs.take("ids")?)?;
            module.embed(words, inputs.take_if("types")?, 0, context.key.as_ref())?
        };
        let tokens = x.dims()[1];
        let mask: Option<Tensor<2, Int>> = inputs.take_if("mask")?;
        let memory_mask: Option<Tensor<2, Int>> = inputs.take_if("memory_mask")?;
        let memory: Option<Tensor<3>> = inputs.take_if("memory")?;
        let context = Context {
            mask: network::seen(self.mode == Mode::Causal, mask.as_ref(), [tokens, tokens]),
            memory: memory.map(|memory| network::memory(memory, memory_mask.as_ref(), tokens)),
            ..context
        };
        let x = module.run(x, self.range(), &context, call);
        let pooled = module.pool(x.clone());
        let mut outputs = Tensors::new();
        if self.mode == Mode::Text {
            outputs = outputs.with("table", module.table()?);
        }
        if let Some(head) = module.mlm.as_ref().filter(|_| self.mlm) {
            let table = match inputs.take_if("table")? {
                Some(table) => table,
                None => module.table()?,
            };
            outputs = outputs.with("logits", head.forward(x.clone(), table));
        }
        if let Some(nsp) = module.nsp.as_ref().filter(|_| self.nsp) {
            outputs = outputs.with("nsp", nsp.forward(pooled.clone()));
        }
        Ok(outputs.with("tokens", x).with("pooled", pooled))
    }

    fn layouts(&self) -> Vec<Layout> {
        let Range { start, end } = self.range();
        layouts::of_bert(end.saturating_sub(start), start)
    }

    fn published(config: &Value) -> Option<Published> {
        published::of_bert(config)
    }

    fn layer(&self, path: &str) -> usize {
        match path.strip_prefix("blocks.").and_then(|rest| rest.split('.').next()) {
            Some(number) => number.parse::<usize>().map_or(0, |n| n + self.range().start + 1),
            None if path.starts_with("embeddings") || path.starts_with("norm") => 0,
            None => self.layers() + 1,
        }
    }

    fn vocabulary(&self) -> Option<usize> {
        Some(self.size().vocab).filter(|vocab| *vocab > 0)
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let (size, range) = (self.size(), self.range());
        let tokens = side(dims, "L");
        let mut one = size.flops(range.len(), tokens);
        if let Some([from, width]) = self.cross() {
            let asking = range.end.saturating_sub(from.max(range.start)) as u64;
            let memory = side(dims, "M");
            one += if memory == 0 { 0 } else { asking * size.cross_flops(tokens, memory, width) };
        }
        if self.mlm {
            one += 2 * (tokens * size.width * (size.width + size.vocab)) as u64;
        }
        side(dims, "B") as u64 * one
    }
}

/// Kind `text/bert`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("bert.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use burn::tensor::Device;
    use serde_json::json;

    fn count(options: Value) -> u64 {
        let config: Config = serde_json::from_value(options).unwrap();
        assert_eq!(config.check(&Dims::new()), []);
        parameters::count(&config.init(&Dims::new(), &Init::new(0, "bert", &Device::flex())))
    }

    /// Sizes of the published files, where a tied matrix is counted once: bert-base-uncased and
    /// bert-large-uncased with both heads; the text decoder of blip-image-captioning-base, which
    /// is 247,414,076 less 86,090,496 of the vision tower and 23,442,432 of the second matrix.
    #[test]
    fn presets_have_the_published_numbers_of_parameters() {
        let heads = json!({ "preset": "bert_base", "mlm": true, "nsp": true, "pooler": true });
        assert_eq!(count(heads), 110_106_428);
        let heads = json!({ "preset": "bert_large", "mlm": true, "nsp": true, "pooler": true });
        assert_eq!(count(heads), 336_226_108);
        assert_eq!(count(json!({ "preset": "bert_base", "pooler": true })), 109_482_240);
        let blip = json!({ "preset": "blip_base", "mode": "causal", "mlm": true });
        assert_eq!(count(blip), 247_414_076 - 86_090_496 - 23_442_432);
    }

    #[test]
    fn two_parts_have_what_the_whole_has() {
        let one = |mode: &str, mlm: bool| {
            count(json!({ "preset": "internvideo2", "mode": mode, "mlm": mlm }))
        };
        assert_eq!(one("text", false) + one("fusion", true), one("whole", true));
        // BERT-large with its head of words, and five cross-attentions from 1408 channels.
        let large = count(json!({ "preset": "bert_large", "mlm": true }));
        let cross = 2 * (1024 * 1024 + 1024) + 2 * (1408 * 1024 + 1024) + 2 * 1024;
        assert_eq!(one("whole", true), large + 5 * cross);
    }

    #[test]
    fn impossible_options_are_refused_with_a_way_out() {
        for (options, option) in [
            (json!({ "mode": "text" }), "split"),
            (json!({ "mode": "fusion", "split": 4 }), "split"),
            (json!({ "cross_from": 9, "encoder_width": 8 }), "cross_from"),
            (json!({ "cross_from": 0 }), "encoder_width"),
            (json!({ "encoder_width": 8 }), "encoder_width"),
            (json!({ "nsp": true }), "nsp"),
            (json!({ "mode": "text", "split": 2, "mlm": true }), "mlm"),
            (json!({ "size": { "heads": 5 } }), "size.heads"),
            (json!({ "size": { "vocab": 0 } }), "size.vocab"),
            (json!({ "dropout": 1.0 }), "dropout"),
        ] {
            let config: Config = serde_json::from_value(options.clone()).unwrap();
            let problems = config.check(&Dims::new());
            let found: Vec<_> = problems.iter().map(|problem| problem.option.as_str()).collect();
            assert_eq!(found, [option], "{options}");
            assert!(!problems[0].hint.is_empty());
        }
        let long = Dims::from([("L".to_owned(), 65)]);
        assert_eq!(Config::default().check(&long)[0].option, "size.positions");
    }
}
