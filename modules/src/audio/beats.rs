//! BEATs: an audio transformer with gated relative positions.
//!
//! | port     | dims                | what                                                          |
//! |----------|---------------------|---------------------------------------------------------------|
//! | `fbank`  | `B F M`             | normalised logarithmic mel energies, as `audio/fbank` gives   |
//! | `mask`   | `B P`               | optional: 1 where a sample or a row is there, 0 after the end |
//! | `tokens` | `B (F/16)*(M/16) D` | after the last block; patches row-major, time outermost       |
//! | `pooled` | `B D`               | mean of the tokens that are there                             |
//! | `logits` | `B classes`         | with `classes`: mean over tokens of their scores              |
//!
//! Patches of 16 x 16. A convolution over the tokens adds positions; each head adds a learned number
//! for the distance of query and key, times a gate computed from the query. Norms stand after the
//! sums, and the residual stream is amplified (DeepNorm), or before, with `norm_first`. A token is
//! absent when all of its equal share of `mask` is, which is how the published code spreads the mask
//! over patches. Source: Chen et al. 2022, "BEATs" (arXiv 2212.09058); recipes §2.7.

use burn::module::{Module, Param};
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
use crate::layers::attention::AttentionMask;
use crate::layers::block::{self, Block, BlocksConfig, Context, Norms};
use crate::layers::linear::Linear;
use crate::layers::linear_ops::linear;
use crate::layers::norm::{Norm, NormKind};
use crate::layers::relative::{self, GatedBlock, PositionConv, present};
use crate::layers::size::{check_classes, check_share, side};
use crate::layout::Layout;
use crate::published::{count, dims, only, switch};
use crate::tensors::Tensors;

/// Rows and filters of a patch.
const PATCH: usize = 16;

/// The published size, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// 12 blocks of width 768 (90 M parameters).
    Base,
    /// 3 blocks of width 96.
    #[default]
    Tiny,
}

/// Numbers of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Size {
    /// Channels of a patch before the blocks.
    pub embedding: usize,
    /// Channels of a token, D.
    pub width: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads.
    pub heads: usize,
    /// Hidden channels of the MLP.
    pub hidden: usize,
    /// Tokens that the convolution sees.
    pub kernel: usize,
    /// Groups of the convolution.
    pub groups: usize,
    /// Numbers for distances.
    pub buckets: usize,
    /// Distance from which on all are alike.
    pub distance: usize,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size to start from.
    pub preset: Preset,
    /// All numbers, in place of the preset's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Norms before the branches instead of after the sums.
    pub norm_first: bool,
    /// Amplification of the residual stream, `(2 depth)^(1/4)`; only with norms after the sums.
    pub deep_norm: bool,
    /// Whether the patches have a bias.
    pub patch_bias: bool,
    /// Dropout of attention maps and at the end of branches, when the node trains.
    pub dropout: f64,
    /// Classes of `logits`; no head when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: None,
            norm_first: false,
            deep_norm: true,
            patch_bias: false,
            dropout: 0.0,
            classes: None,
        }
    }
}

/// The network.
#[derive(Module, Debug)]
pub struct Beats {
    /// `[embedding, 1, 16, 16]`.
    pub patch_embedding: Param<Tensor<4>>,
    /// `[embedding]`.
    pub patch_bias: Option<Param<Tensor<1>>>,
    /// Of the patches.
    pub patch_norm: Norm,
    /// From the patches to the blocks, where their widths differ.
    pub project: Option<Linear>,
    /// Positions.
    pub pos_conv: PositionConv,
    /// After the positions, or after the last block.
    pub norm: Norm,
    /// Numbers of distances, `[buckets, heads]`.
    pub relative: Param<Tensor<2>>,
    /// The stack.
    pub blocks: Vec<GatedBlock>,
    /// Scores of the classes.
    pub predictor: Option<Linear>,
    norm_first: bool,
    distance: usize,
}

impl Beats {
    /// Normalised patches `[B, N, embedding]` of `[B, F, M]`.
    pub fn patches(&self, fbank: Tensor<3>) -> Tensor<3> {
        let [batch, rows, columns] = fbank.dims();
        let (rows, columns) = (rows / PATCH, columns / PATCH);
        let x = fbank.slice([0..batch, 0..rows * PATCH, 0..columns * PATCH]);
        let x = x.reshape([batch, rows, PATCH, columns, PATCH]).permute([0, 1, 3, 2, 4]);
        let x = x.reshape([batch, rows * columns, PATCH * PATCH]);
        let kernel = self.patch_embedding.val();
        let width = kernel.dims()[0];
        let kernel = kernel.reshape([width, PATCH * PATCH]).transpose();
        let bias = self.patch_bias.as_ref().map(Param::val);
        self.patch_norm.forward(linear(x, kernel, bias))
    }

    /// Numbers `[1, heads, N, N]` for the distances of so many tokens.
    pub fn distances(&self, tokens: usize) -> Tensor<4> {
        relative::distances(self.relative.val(), tokens, self.distance)
    }

    /// Tokens that enter the first block, `[B, N, D]`; absent ones count as zeros.
    pub fn embed(&self, fbank: Tensor<3>, present: Option<&Tensor<2, Int>>) -> Tensor<3> {
        let x = self.patches(fbank);
        let x = match &self.project {
            Some(project) => project.forward(x),
            None => x,
        };
        let x = match present {
            Some(present) => x * present.clone().float().unsqueeze_dim::<3>(2),
            None => x,
        };
        let x = x.clone() + self.pos_conv.forward(x);
        if self.norm_first { x } else { self.norm.forward(x) }
    }

    /// What a block is given for tokens `[B, N, D]` that enter it.
    pub fn context(
        &self,
        layer: &GatedBlock,
        x: Tensor<3>,
        distances: Tensor<4>,
        present: Option<&Tensor<2, Int>>,
        call: &Call,
    ) -> Context {
        let entering = match &layer.block.norm1 {
            Some(norm) if self.norm_first => norm.forward(x),
            _ => x,
        };
        let mask = AttentionMask { spans: None, bias: Some(layer.bias(entering, distances)) };
        let mask = match present {
            Some(present) => mask.and_keys(present),
            None => mask,
        };
        Context { mask, ..Context::training(call) }
    }

    /// Tokens after the last block, `[B, N, D]`.
    fn encode(&self, x: Tensor<3>, present: Option<&Tensor<2, Int>>, call: &Call) -> Tensor<3> {
        let distances = self.distances(x.dims()[1]);
        let mut x = x;
        for (number, layer) in self.blocks.iter().enumerate() {
            let mut context = self.context(layer, x.clone(), distances.clone(), present, call);
            context.key = context.key.map(|key| key.with_number(number as u64));
            x = layer.block.forward(x, &context);
        }
        if self.norm_first { self.norm.forward(x) } else { x }
    }
}

impl Config {
    /// All numbers.
    pub fn size(&self) -> Size {
        let base = Size {
            embedding: 512,
            width: 768,
            depth: 12,
            heads: 12,
            hidden: 3072,
            kernel: 128,
            groups: 16,
            buckets: 320,
            distance: 800,
        };
        let tiny = Size {
            embedding: 64,
            width: 96,
            depth: 3,
            heads: 4,
            hidden: 192,
            kernel: 16,
            groups: 4,
            buckets: 32,
            distance: 64,
        };
        self.size.unwrap_or(match self.preset {
            Preset::Base => base,
            Preset::Tiny => tiny,
        })
    }

    fn blocks(&self) -> BlocksConfig {
        let Size { width, depth, heads, hidden, .. } = self.size();
        let factor = if self.deep_norm { (2.0 * depth as f64).powf(0.25) } else { 1.0 };
        let norms = if self.norm_first { Norms::Before } else { Norms::After(factor) };
        let norm = NormKind::Layer(1e-5);
        BlocksConfig {
            norm,
            norms,
            dropout: self.dropout,
            ..BlocksConfig::vit(width, depth, heads, hidden)
        }
    }
}

impl Kind for Config {
    type Module = Beats;

    fn ports(&self, _: &[String]) -> Ports {
        let (width, tokens) = (self.size().width, format!("(F/{PATCH})*(M/{PATCH})"));
        let ports = Ports::default()
            .input("fbank", "B F M")
            .about("normalised logarithmic mel energies")
            .stopped("mask", "B P")
            .int()
            .optional()
            .about("1 where a sample or a row is there")
            .output("tokens", format!("B {tokens} {width}"))
            .about("after the last block")
            .output("pooled", format!("B {width}"))
            .about("mean of the tokens that are there");
        match self.classes {
            Some(classes) => ports.output("logits", format!("B {classes}")).about("class scores"),
            None => ports,
        }
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let size = self.size();
        let mut problems: Vec<_> = check_share("dropout", self.dropout).into_iter().collect();
        problems.extend(check_classes(self.classes));
        let mut refuse = |option: &str, message: String, hint: &str| {
            problems.push(OptionProblem::new(format!("size.{option}"), message, hint));
        };
        let Size { width, heads, groups, buckets, kernel, .. } = size;
        let all = [size.embedding, width, size.depth, heads, size.hidden, kernel, groups];
        if all.iter().any(|number| !(1..=1 << 16).contains(number)) {
            refuse("", "a number is 0, or more than any model has".to_owned(), "write all from 1");
        } else if !width.is_multiple_of(heads) {
            let message = format!("{heads} heads do not divide a width of {width}");
            refuse("heads", message, "choose a divisor of the width");
        } else if !width.is_multiple_of(groups) {
            let message = format!("{groups} groups do not divide a width of {width}");
            refuse("groups", message, "choose a divisor of the width");
        }
        if buckets < 4 || !buckets.is_multiple_of(4) || size.distance <= buckets / 4 {
            let message = format!("{buckets} buckets for distances up to {}", size.distance);
            refuse("buckets", message, "a multiple of 4, less than four times the distance");
        }
        let (rows, places) = (side(dims, "F"), side(dims, "P"));
        if places > 0 && places < rows {
            let message = format!("a mask of {places} for {rows} rows");
            problems.push(OptionProblem::new("", message, "mask samples or rows"));
        }
        problems
    }

    fn init(&self, _: &Dims, init: &Init) -> Beats {
        let size = self.size();
        let (embedding, width) = (size.embedding, size.width);
        let head = width / size.heads;
        let layer = |block: Block| GatedBlock::new(block, size.heads, head, init);
        let bound = 1.0 / PATCH as f64;
        let project = || init.linear(embedding, width, true, 1.0);
        Beats {
            patch_embedding: init.uniform([embedding, 1, PATCH, PATCH], bound),
            patch_bias: self.patch_bias.then(|| init.uniform([embedding], bound)),
            patch_norm: Norm::layer(embedding, 1e-5, init),
            project: (embedding != width).then(project),
            pos_conv: PositionConv::new([width, size.kernel, size.groups], init),
            norm: Norm::layer(width, 1e-5, init),
            relative: init.normal([size.buckets, size.heads], 0.02),
            blocks: block::blocks(&self.blocks(), init).into_iter().map(layer).collect(),
            predictor: self.classes.map(|classes| init.linear(width, classes, true, 1.0)),
            norm_first: self.norm_first,
            distance: size.distance,
        }
    }

    fn forward(
        &self,
        module: &Beats,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let fbank: Tensor<3> = inputs.take("fbank")?;
        let mask: Option<Tensor<2, Int>> = inputs.take_if("mask")?;
        let [_, rows, columns] = fbank.dims();
        let tokens = rows / PATCH * (columns / PATCH);
        let there = mask.map(|mask| present(&mask, rows, tokens));
        let x = module.encode(module.embed(fbank, there.as_ref()), there.as_ref(), call);
        let mean = |x: Tensor<3>| -> Tensor<2> {
            match &there {
                None => x.mean_dim(1).squeeze_dim(1),
                Some(there) => {
                    let there = there.clone().float();
                    let count = there.clone().sum_dim(1).clamp_min(1.0);
                    (x * there.unsqueeze_dim::<3>(2)).sum_dim(1).squeeze_dim::<2>(1) / count
                }
            }
        };
        let mut outputs = Tensors::of("tokens", x.clone());
        if let Some(predictor) = &module.predictor {
            outputs = outputs.with("logits", mean(predictor.forward(x.clone())));
        }
        Ok(outputs.with("pooled", mean(x)))
    }

    fn layouts(&self) -> Vec<Layout> {
        // Every block has the table that all share.
        let again = |layout: Layout, number: usize| {
            let key = format!("encoder.layers.{number}.self_attn.relative_attention_bias.weight");
            layout.again(&key, "relative")
        };
        let official = (1..self.size().depth.min(1 << 10)).fold(Layout::new("official"), again);
        vec![official.rules(&[
            ("^patch_embedding", "patch_embedding.weight"),
            ("^patch_bias", "patch_embedding.bias"),
            ("^patch_norm", "layer_norm"),
            ("^project", "post_extract_proj"),
            ("^pos_conv", "encoder.pos_conv.0"),
            ("^norm", "encoder.layer_norm"),
            ("^relative", "encoder.layers.0.self_attn.relative_attention_bias.weight"),
            ("^blocks.", "encoder.layers."),
            (".gate_scale", ".self_attn.grep_a"),
            (".gate.", ".self_attn.grep_linear."),
            (".block.attn.proj.", ".self_attn.out_proj."),
            (".block.attn.q.", ".self_attn.q_proj."),
            (".block.attn.k.", ".self_attn.k_proj."),
            (".block.attn.v.", ".self_attn.v_proj."),
            (".block.norm1.", ".self_attn_layer_norm."),
            (".block.norm2.", ".final_layer_norm."),
            (".block.mlp.", "."),
        ])]
    }

    fn published(config: &Value) -> Option<Published> {
        if !only(config, &[("input_patch_size", json!(PATCH))]) {
            return None;
        }
        let of = |field: &str| count(config, field);
        let classes = of("predictor_class").filter(|_| config["finetuned_model"] == true);
        let mut options = json!({
            "size": {
                "embedding": of("embed_dim")?,
                "width": of("encoder_embed_dim")?,
                "depth": of("encoder_layers")?,
                "heads": of("encoder_attention_heads")?,
                "hidden": of("encoder_ffn_embed_dim")?,
                "kernel": of("conv_pos")?,
                "groups": of("conv_pos_groups")?,
                "buckets": of("num_buckets")?,
                "distance": of("max_distance")?,
            },
            "norm_first": config["layer_norm_first"].as_bool()?,
            "deep_norm": config["deep_norm"].as_bool()?,
            "patch_bias": switch(config, "conv_bias", false),
        });
        if let Some(classes) = classes {
            options["classes"] = classes.into();
        }
        Some(Published { options, dims: dims([]) })
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let size = self.size();
        let n = (side(dims, "F") / PATCH * (side(dims, "M") / PATCH)) as u64;
        let [d, hidden, depth] = [size.width, size.hidden, size.depth].map(|v| v as u64);
        let block = 2 * n * (4 * d * d + 2 * d * hidden) + 4 * n * n * d;
        side(dims, "B") as u64 * depth * block
    }
}

/// Kind `audio/beats`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("beats.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use burn::tensor::Device;

    #[test]
    fn the_base_model_has_ninety_million_parameters() {
        let config = Config { preset: Preset::Base, ..Config::default() };
        let module = config.init(&Dims::new(), &Init::new(1, "beats", &Device::flex()));
        let found = parameters::count(&module);
        assert!(found.abs_diff(90_000_000) < 900_000, "{found}"); // Chen et al. 2022, table 1
    }
}
