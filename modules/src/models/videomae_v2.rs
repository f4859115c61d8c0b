//! VideoMAE V2 encoder: a video transformer without class token, InternVideo2's motion teacher.
//!
//! | port      | dims        | what                                                         |
//! |-----------|-------------|--------------------------------------------------------------|
//! | `video`   | `B 3 T H W` | RGB, ImageNet mean and deviation                             |
//! | `visible` | `B V`       | optional: indices of visible patches, time-major, ascending  |
//! | `layers`  | `K B S D`   | tapped residual stream, ascending, as unit vectors           |
//! | `tokens`  | `B S D`     | after the last block and its norm                            |
//! | `pooled`  | `B D`       | mean over tokens; with `classes` the norm comes after it     |
//! | `logits`  | `B classes` | with `classes`: linear head on `pooled`                      |
//!
//! S = V with `visible`, as the encoder of a masked autoencoder (`models/videomae_decoder` is the
//! other half), else T/t H/p W/p. The final LayerNorm is applied to the last tap only. With `classes` the
//! network has a norm of the pooled feature instead of a norm of the tokens, as the fine-tuned
//! checkpoints do. Positions are a fixed interleaved sine-cosine table.
//! Source: Wang et al. 2023, "VideoMAE V2" (arXiv 2303.16727); recipes §1.3.

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::Init;
use crate::kind::{self, Call, Kind, Names, Published};
use crate::layers::attention::AttentionConfig;
use crate::layers::block::{self, Block, BlocksConfig, Context};
use crate::layers::fixed_table::FixedTable;
use crate::layers::linear::Linear;
use crate::layers::norm::{Norm, NormKind, unit};
use crate::layers::patch_embed::PatchEmbed;
use crate::layers::size::{
    Size, SizeOptions, check_classes, check_named, check_no_pool, check_share, check_taps, side,
};
use crate::layers::tokens;
use crate::layout::Layout;
use crate::published::{count, dims, hidden, is_a, only, says, sides, videomae_biases};
use crate::tensors::Tensors;

/// Published sizes, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// 40 blocks of width 1408, patches of 14 pixels.
    #[serde(rename = "g")]
    G,
    /// 12 blocks of width 768, patches of 16 pixels.
    #[serde(rename = "b")]
    B,
    /// 4 blocks of width 96, patches of 16 pixels.
    #[default]
    #[serde(rename = "tiny")]
    Tiny,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset; those of the pooling have no use here.
    pub size: SizeOptions,
    /// Blocks whose output `layers` holds; 4, or all when there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taps: Option<usize>,
    /// Distance between tapped blocks, counted from the last one; may be a fraction.
    pub tap_interval: f64,
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
    /// Start of the layer scale; 0 for none.
    pub layer_scale: f64,
    /// Cosine attention with a learned temperature per head.
    pub cosine_attention: bool,
    /// Attention across the heads of a token, as the released InternVideo2 code runs this
    /// teacher (recipes §8 D1); the weights were trained with attention across tokens.
    pub across_heads: bool,
    /// Side of the square grid that the position table is made for, then stretched from; the
    /// grid of the video when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_side: Option<usize>,
    /// Classes of `logits`; no head when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Whether queries and values have biases.
    pub qkv_bias: bool,
    /// ε of the norms; Hugging Face writes 1e-12.
    pub norm_eps: f64,
    /// ε of the norm before the head; Hugging Face has 1e-5.
    pub head_norm_eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: SizeOptions::default(),
            taps: None,
            tap_interval: 1.0,
            drop_path: 0.0,
            layer_scale: 0.0,
            cosine_attention: false,
            across_heads: false,
            table_side: None,
            classes: None,
            qkv_bias: true,
            norm_eps: 1e-6,
            head_norm_eps: 1e-6,
        }
    }
}

/// The encoder. Field names are those of the published checkpoints.
#[derive(Module, Debug)]
pub struct VideoMaeV2 {
    /// Convolution to tokens.
    pub patch_embed: PatchEmbed,
    /// The stack.
    pub blocks: Vec<Block>,
    /// Of the tokens after the last block.
    pub norm: Option<Norm>,
    /// Of the pooled feature.
    pub fc_norm: Option<Norm>,
    /// `[D, classes]`.
    pub head: Option<Linear>,
    /// Positions.
    #[module(skip)]
    pub table: FixedTable,
}

impl VideoMaeV2 {
    /// Tokens of the first block, `[B, S, D]`: all patches or the visible ones, with positions.
    pub fn embed(&self, video: Tensor<5>, visible: Option<Tensor<2, Int>>) -> Tensor<3> {
        let x = self.patch_embed.forward(video);
        let x = x.clone() + self.table.tensor(&x);
        match visible {
            Some(visible) => tokens::gather(x, visible),
            None => x,
        }
    }
}

impl Config {
    /// All numbers.
    pub fn size(&self) -> Size {
        let preset = match self.preset {
            Preset::G => Size::vit(40, 1408, 16, 6144),
            Preset::B => Size { patch: 16, ..Size::vit(12, 768, 12, 3072) },
            Preset::Tiny => Size::TINY,
        };
        let size = Size { tubelet: 2, ..preset }.with(&self.size);
        Size { pool_heads: 1, pooled: size.width, ..size }
    }

    fn taps(&self) -> usize {
        self.taps.unwrap_or(self.size().depth.min(4))
    }

    fn blocks(&self) -> BlocksConfig {
        let Size { width, depth, heads, hidden, .. } = self.size();
        let plain = BlocksConfig::videomae(width, depth, heads, hidden).qkv_bias(self.qkv_bias);
        let (cosine, across_heads) = (self.cosine_attention, self.across_heads);
        let attention = AttentionConfig { cosine, across_heads, ..plain.attention };
        let (layer_scale, drop_path) = (self.layer_scale, self.drop_path);
        let norm = NormKind::Layer(self.norm_eps);
        BlocksConfig { attention, layer_scale, drop_path, norm, ..plain }
    }
}

impl Config {
    fn of_transformers(config: &Value) -> Option<Published> {
        if !only(config, &[("hidden_act", json!("gelu"))]) {
            return None;
        }
        let [height, width] = sides(config, "image_size")?;
        let mut options = json!({
            "size": {
                "patch": count(config, "patch_size")?,
                "tubelet": count(config, "tubelet_size")?,
                "width": count(config, "hidden_size")?,
                "depth": count(config, "num_hidden_layers")?,
                "heads": count(config, "num_attention_heads")?,
                "hidden": count(config, "intermediate_size")?,
            },
            "qkv_bias": videomae_biases(config),
            "norm_eps": config["layer_norm_eps"].as_f64()?,
            "head_norm_eps": 1e-5,
        });
        if is_a(config, "VideoMAEForVideoClassification") {
            options["classes"] = config["id2label"].as_object()?.len().into();
        }
        let frames = count(config, "num_frames")?;
        let dims = dims([("B", 1), ("T", frames), ("H", height), ("W", width)]);
        Some(Published { options, dims })
    }
}

impl Kind for Config {
    type Module = VideoMaeV2;

    fn ports(&self, wired: &[String]) -> Ports {
        let size = self.size();
        let masked = wired.iter().any(|port| port == "visible");
        let seen = if masked { "V".to_owned() } else { size.tokens() };
        let (taps, width) = (self.taps(), size.width);
        let ports = Ports::default()
            .input("video", "B 3 T H W")
            .about("RGB, ImageNet mean and deviation")
            .stopped("visible", "B V")
            .int()
            .optional()
            .lattice(size.lattice())
            .about("indices of visible patches, ascending")
            .output("layers", format!("{taps} B {seen} {width}"))
            .lattice(size.lattice())
            .tag("norm", "l2")
            .about("tapped blocks, ascending, unit vectors")
            .output("tokens", format!("B {seen} {width}"))
            .lattice(size.lattice())
            .about("after the last block and its norm")
            .output("pooled", format!("B {width}"))
            .about("mean over tokens");
        match self.classes {
            Some(classes) => ports.output("logits", format!("B {classes}")).about("class scores"),
            None => ports,
        }
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let size = self.size();
        let mut problems = size.check(2);
        problems.extend(check_taps(size.depth, self.taps(), self.tap_interval));
        problems.extend(check_share("drop_path", self.drop_path));
        problems.extend(check_classes(self.classes));
        problems.extend(check_no_pool(&self.size));
        if self.table_side.is_some_and(|side| !(1..=1 << 12).contains(&side)) {
            let message = "`table_side` is not from 1 to 4096";
            problems.push(OptionProblem::new("table_side", message, "14 is the published one"));
        }
        let all: usize = if problems.is_empty() { size.cut(dims).iter().product() } else { 0 };
        problems.extend(check_named("visible", side(dims, "V"), all));
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> VideoMaeV2 {
        let size = self.size();
        let init = &init.with_sigma(size.sigma);
        let (lattice, width) = (size.cut(dims), size.width);
        let norm = |eps| Norm::layer(width, eps, init);
        VideoMaeV2 {
            patch_embed: PatchEmbed::new(width, size.tubelet, size.patch, init),
            blocks: block::blocks(&self.blocks(), init),
            norm: self.classes.is_none().then(|| norm(self.norm_eps)),
            fc_norm: self.classes.map(|_| norm(self.head_norm_eps)),
            head: self.classes.map(|classes| init.linear(width, classes, true, 1000.0)),
            table: FixedTable::new(lattice, width, self.table_side),
        }
    }

    fn forward(
        &self,
        module: &VideoMaeV2,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let x = module.embed(inputs.take("video")?, inputs.take_if("visible")?);
        let taps = block::taps(self.size().depth, self.taps(), self.tap_interval);
        let (mut layers, x) = block::run(&module.blocks, x, &taps, &Context::training(call), call);
        let x = match &module.norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        layers.pop();
        layers.push(x.clone());
        let layers: Tensor<4> = Tensor::stack(layers.into_iter().map(unit).collect::<Vec<_>>(), 0);
        let mut pooled: Tensor<2> = x.clone().mean_dim(1).squeeze_dim(1);
        let mut outputs = Tensors::of("layers", layers).with("tokens", x);
        if let (Some(norm), Some(head)) = (&module.fc_norm, &module.head) {
            pooled = norm.forward(pooled);
            outputs = outputs.with("logits", head.forward(pooled.clone()));
        }
        Ok(outputs.with("pooled", pooled))
    }

    fn layouts(&self) -> Vec<Layout> {
        let scales = [("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2")];
        let official = Layout::new("official").fused().own_biases("attn").rules(&scales);
        let hf = Layout::new("hf").videomae_blocks("encoder.layer.").rules(&[
            ("^encoder", "videomae.encoder"),
            ("^patch_embed.proj", "videomae.embeddings.patch_embeddings.projection"),
            ("^norm", "videomae.layernorm"),
            ("^head", "classifier"),
        ]);
        vec![official, hf]
    }

    fn published(config: &Value) -> Option<Published> {
        let official = ["videomae_teacher", "videomaev2_finetune", "videomaev2_pretrain"];
        if says(config, "model_type", "videomae") {
            return Self::of_transformers(config);
        }
        if !official.iter().any(|name| says(config, "model", name)) {
            return None;
        }
        let [height, image_width] = sides(config, "img_size")?;
        let of =
            |name: &str| count(config, name).or_else(|| count(config, &format!("encoder_{name}")));
        let width = of("embed_dim")?;
        let mut options = json!({
            "size": {
                "patch": count(config, "patch_size")?,
                "tubelet": count(config, "tubelet_size")?,
                "width": width,
                "depth": of("depth")?,
                "heads": of("num_heads")?,
                "hidden": hidden(config, "mlp_ratio", width)?,
            },
            "qkv_bias": videomae_biases(config),
            "layer_scale": config["init_values"].as_f64().unwrap_or(0.0),
            "cosine_attention": config["cos_attn"].as_bool().unwrap_or(false),
        });
        if let Some(classes) = count(config, "num_classes") {
            options["classes"] = classes.into();
        }
        if let Some(taps) = count(config, "mae_return_layer") {
            options["taps"] = taps.into();
            options["tap_interval"] = config["mae_return_interval"].as_f64().unwrap_or(1.0).into();
        }
        let frames = count(config, "all_frames")?;
        let dims = dims([("B", 1), ("T", frames), ("H", height), ("W", image_width)]);
        Some(Published { options, dims })
    }

    fn reference_names(&self) -> &'static [Names] {
        &[
            ("layers", &["out", "layers"]),
            ("tokens", &["tokens", "last_hidden_state", "encoder_out"]),
        ]
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let all: usize = self.size().cut(dims).iter().product();
        let kept = dims.get("V").copied().unwrap_or(all);
        side(dims, "B") as u64 * self.size().flops(all, kept)
    }
}

/// Kind `models/videomae_v2`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("videomae_v2.rs"));
