//! InternVideo2 encoder: a video transformer that sees a clip, or the visible part of it.
//!
//! | port      | dims          | what                                                       |
//! |-----------|---------------|------------------------------------------------------------|
//! | `video`   | `B 3 T H W`   | RGB, ImageNet mean and deviation                           |
//! | `visible` | `B V`         | optional: indices of visible patches, time-major, ascending |
//! | `layers`  | `K B S D`     | residual stream after the last K tapped blocks, ascending  |
//! | `tokens`  | `B S D`       | residual stream after the last block                       |
//! | `pooled`  | `B P`         | attention pooling of `tokens`                              |
//! | `mean`    | `B D`         | mean of `tokens` without the class token                   |
//! | `logits`  | `B classes`   | with `classes`: LayerNorm and a linear layer on `pooled`   |
//!
//! S = 1 + V with `visible`, else 1 + T/t H/p W/p; the class token comes first. There is no norm
//! after the last block. Position tables are learned and start as sine-cosine tables.
//! Source: Wang et al. 2024, "InternVideo2" (arXiv 2403.15377); recipes §0, §1, §4.

use burn::module::{Module, Param};
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
use crate::layers::block::{self, Block, BlocksConfig, Context};
use crate::layers::dropout_ops::dropout;
use crate::layers::linear::Linear;
use crate::layers::mlp::{Activation, Mlp};
use crate::layers::norm::Norm;
use crate::layers::patch_embed::PatchEmbed;
use crate::layers::pool::AttentionPool;
use crate::layers::separate_tables::SeparateTables;
use crate::layers::size::{
    Size, SizeOptions, check_classes, check_named, check_share, check_taps, side,
};
use crate::layers::{positions, stretch, tokens};
use crate::layout::Layout;
use crate::published::{self, count, dims, says, sides};
use crate::rng::Key;
use crate::tensors::Tensors;

/// Published sizes, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// 48 blocks of width 3200 (5.9 G parameters).
    #[serde(rename = "6b")]
    B6,
    /// 40 blocks of width 1408 (1.0 G parameters).
    #[serde(rename = "1b")]
    B1,
    /// 24 blocks of width 1024.
    #[serde(rename = "l")]
    L,
    /// 12 blocks of width 768.
    #[serde(rename = "b")]
    B,
    /// 12 blocks of width 384.
    #[serde(rename = "s")]
    S,
    /// 4 blocks of width 96, patches of 16 pixels.
    #[default]
    #[serde(rename = "tiny")]
    Tiny,
}

/// Position tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// One table over the whole lattice.
    #[default]
    Joint,
    /// One table over places, one over frames, one row for the class token, summed.
    Separable,
    /// One table over the whole lattice, and another one for pictures, which are clips of one frame
    /// (stage 2).
    Picture,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset.
    pub size: SizeOptions,
    /// Blocks whose output `layers` holds; 6, or all when there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taps: Option<usize>,
    /// Distance between tapped blocks, counted from the last one; may be a fraction.
    pub tap_interval: f64,
    /// Drop path rate of the last block; the rate rises in a line from 0.
    pub drop_path: f64,
    /// Start of the layer scale; 0 for none.
    pub layer_scale: f64,
    /// Activation of the blocks; the published weights were trained with `gelu_tanh`.
    pub activation: Activation,
    /// Position tables.
    pub positions: Positions,
    /// Frames that the table over the lattice is made for; those of the clip when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_frames: Option<usize>,
    /// Classes of `logits`; no head when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Residual MLP between pooling and head (attentive probing on SSv2).
    pub extra_mlp: bool,
    /// Dropout before the head.
    pub dropout: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: SizeOptions::default(),
            taps: None,
            tap_interval: 1.0,
            drop_path: 0.0,
            layer_scale: 1e-5,
            activation: Activation::GeluTanh,
            positions: Positions::Joint,
            table_frames: None,
            classes: None,
            extra_mlp: false,
            dropout: 0.0,
        }
    }
}

/// `z + mlp(norm(z))` on the pooled feature; the last matrix starts at 0.
#[derive(Module, Debug)]
pub struct ExtraMlp {
    /// Before the MLP.
    pub norm: Norm,
    /// Hidden width four times the pooled width.
    pub mlp: Mlp,
}

/// The encoder. Field names are those of the published checkpoints.
#[derive(Module, Debug)]
pub struct InternVideo2 {
    /// Convolution to tokens.
    pub patch_embed: PatchEmbed,
    /// `[1, 1, D]`, truncated normal σ 0.02.
    pub cls_token: Param<Tensor<3>>,
    /// `[1, 1 + N, D]`, joint.
    pub pos_embed: Option<Param<Tensor<3>>>,
    /// `[1, 1 + H W, D]`, of pictures.
    pub img_pos_embed: Option<Param<Tensor<3>>>,
    /// Separable.
    pub pos_embed_parts: Option<SeparateTables>,
    /// The stack.
    pub blocks: Vec<Block>,
    /// Attention pooling.
    pub clip_projector: AttentionPool,
    /// After the pooling, on request.
    pub extra_mlp: Option<ExtraMlp>,
    /// Before the head.
    pub fc_norm: Option<Norm>,
    /// `[P, classes]`.
    pub head: Option<Linear>,
    dropout: f64,
}

impl InternVideo2 {
    /// Position table `[1, 1 + N, D]` of clips of so many frames.
    pub fn table(&self, frames: usize) -> Tensor<3> {
        if let Some(table) = self.img_pos_embed.as_ref().filter(|_| frames == 1) {
            return table.val();
        }
        if let Some(table) = &self.pos_embed {
            return table.val();
        }
        self.pos_embed_parts.as_ref().expect("a table is joint or in parts").whole()
    }

    /// Tokens of the first block `[B, S, D]`: class token, then visible patches, with positions.
    pub fn embed(&self, video: Tensor<5>, visible: Option<Tensor<2, Int>>) -> Tensor<3> {
        let frames = video.dims()[2];
        let x = self.patch_embed.forward(video);
        let [batch, all, width] = x.dims();
        let times = frames / self.patch_embed.proj.weight.lazy_shape()[2];
        let mut table = self.table(times);
        if times == 1 && table.dims()[1] > 1 + all {
            table = stretch::still(table, 1, all);
        }
        let class = self.cls_token.val() + table.clone().slice_dim(1, 0..1);
        let x = x + table.slice_dim(1, 1..1 + all);
        let x = match visible {
            Some(visible) => tokens::gather(x, visible),
            None => x,
        };
        Tensor::cat(vec![class.expand([batch, 1, width]), x], 1)
    }

    /// Pooled features `[B, P]`, through the extra MLP when there is one, to logits
    /// `[B, classes]`. Dropout is active with a key.
    pub fn classify(&self, pooled: Tensor<2>, key: Option<&Key>) -> Option<Tensor<2>> {
        let pooled = match &self.extra_mlp {
            Some(extra) => pooled.clone() + extra.mlp.forward(extra.norm.forward(pooled)),
            None => pooled,
        };
        let (norm, head) = (self.fc_norm.as_ref()?, self.head.as_ref()?);
        Some(head.forward(dropout(norm.forward(pooled), self.dropout, key)))
    }
}

/// One table over the lattice, another one of pictures, or parts.
type Tables = (Option<Param<Tensor<3>>>, Option<Param<Tensor<3>>>, Option<SeparateTables>);

impl Config {
    /// All numbers.
    pub fn size(&self) -> Size {
        let preset = match self.preset {
            Preset::B6 => Size::vit(48, 3200, 25, 12_800),
            Preset::B1 => Size::vit(40, 1408, 16, 6144),
            Preset::L => Size::vit(24, 1024, 16, 4096),
            Preset::B => Size::vit(12, 768, 12, 3072),
            Preset::S => Size::vit(12, 384, 6, 1536),
            Preset::Tiny => Size::TINY,
        };
        preset.with(&self.size)
    }

    fn taps(&self) -> usize {
        self.taps.unwrap_or(self.size().depth.min(6))
    }

    fn tables(&self, dims: &Dims, init: &Init) -> Tables {
        let size = self.size();
        let ([frames, rows, columns], width) = (size.cut(dims), size.width);
        let frames = self.table_frames.map_or(frames, |frames| frames / size.tubelet);
        let joint = |frames: usize| {
            let values = move || positions::joint([frames, rows, columns], width, 1);
            Some(init.computed([1, 1 + frames * rows * columns, width], values))
        };
        match self.positions {
            Positions::Joint => (joint(frames), None, None),
            Positions::Picture => (joint(frames), joint(1), None),
            Positions::Separable => {
                let parts = SeparateTables::new([frames, rows, columns], width, 1, init);
                (None, None, Some(parts))
            }
        }
    }
}

impl Kind for Config {
    type Module = InternVideo2;

    fn ports(&self, wired: &[String]) -> Ports {
        let size = self.size();
        let masked = wired.iter().any(|port| port == "visible");
        let seen = if masked { "1+V".to_owned() } else { format!("1+{}", size.tokens()) };
        let (taps, width) = (self.taps(), size.width);
        let ports = Ports::default()
            .input("video", "B 3 T H W")
            .about("RGB, ImageNet mean and deviation")
            .stopped("visible", "B V")
            .int()
            .optional()
            .lattice(size.lattice())
            .about("indices of visible patches, without class token, ascending")
            .output("layers", format!("{taps} B {seen} {width}"))
            .lattice(size.lattice())
            .about("residual stream after the tapped blocks, ascending")
            .output("tokens", format!("B {seen} {width}"))
            .lattice(size.lattice())
            .about("residual stream after the last block, class token first")
            .output("pooled", format!("B {}", size.pooled))
            .about("attention pooling of the tokens")
            .output("mean", format!("B {width}"))
            .about("mean of the tokens without the class token");
        match self.classes {
            Some(classes) => ports.output("logits", format!("B {classes}")).about("class scores"),
            None => ports,
        }
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let size = self.size();
        let multiple = if self.positions == Positions::Separable { 4 } else { 16 };
        let mut problems = size.check(multiple);
        problems.extend(check_taps(size.depth, self.taps(), self.tap_interval));
        problems.extend(check_share("drop_path", self.drop_path));
        problems.extend(check_share("dropout", self.dropout));
        problems.extend(check_classes(self.classes));
        let frames = side(dims, "T");
        let made = self.table_frames.unwrap_or(frames);
        let picture = self.positions != Positions::Separable && frames == size.tubelet;
        if frames > 0 && made != frames && !picture {
            let message = format!("a table for {made} frames, but clips of {frames}");
            let hint = "stretch the table when the weights are imported: rule `resize_time`";
            problems.push(OptionProblem::new("table_frames", message, hint));
        }
        if self.extra_mlp && self.classes.is_none() {
            let message = "an extra MLP has no use without a head";
            problems.push(OptionProblem::new("extra_mlp", message, "set `classes`"));
        }
        let all: usize = if problems.is_empty() { size.cut(dims).iter().product() } else { 0 };
        problems.extend(check_named("visible", side(dims, "V"), all));
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> InternVideo2 {
        let size = self.size();
        let init = &init.with_sigma(size.sigma);
        let blocks = BlocksConfig {
            activation: self.activation,
            layer_scale: self.layer_scale,
            drop_path: self.drop_path,
            ..BlocksConfig::internvideo2(size.width, size.depth, size.heads, size.hidden)
        };
        let (joint, picture, parts) = self.tables(dims, init);
        let extra = || ExtraMlp {
            norm: Norm::layer(size.pooled, 1e-5, init),
            mlp: Mlp::zero_end([size.pooled, 4 * size.pooled, size.pooled], Activation::Gelu, init),
        };
        InternVideo2 {
            patch_embed: PatchEmbed::new(size.width, size.tubelet, size.patch, init),
            cls_token: init.normal([1, 1, size.width], 0.02),
            pos_embed: joint,
            img_pos_embed: picture,
            pos_embed_parts: parts,
            blocks: block::blocks(&blocks, init),
            clip_projector: AttentionPool::new(size.width, size.pool_heads, size.pooled, init),
            extra_mlp: self.extra_mlp.then(extra),
            fc_norm: self.classes.map(|_| Norm::layer(size.pooled, 1e-5, init)),
            head: self.classes.map(|classes| init.linear(size.pooled, classes, true, 1000.0)),
            dropout: self.dropout,
        }
    }

    fn forward(
        &self,
        module: &InternVideo2,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let x = module.embed(inputs.take("video")?, inputs.take_if("visible")?);
        let taps = block::taps(self.size().depth, self.taps(), self.tap_interval);
        let key = call.training.then_some(&call.key);
        let (layers, x) = block::run(&module.blocks, x, &taps, &Context::training(call), call);
        let pooled = module.clip_projector.forward(x.clone());
        let layers: Tensor<4> = Tensor::stack(layers, 0);
        let mean: Tensor<2> = x.clone().slice_dim(1, 1..).mean_dim(1).squeeze_dim(1);
        let mut outputs = Tensors::of("layers", layers).with("tokens", x).with("mean", mean);
        if let Some(logits) = module.classify(pooled.clone(), key) {
            outputs = outputs.with("logits", logits);
        }
        Ok(outputs.with("pooled", pooled))
    }

    fn layouts(&self) -> Vec<Layout> {
        let official = Layout::new("official").fused().own_biases("cross_attn");
        vec![official.rules(&[
            ("^pos_embed_parts.", "pos_embed_"),
            ("extra_mlp.norm", "extra_mlp.0"),
            ("extra_mlp.mlp", "extra_mlp.1"),
        ])]
    }

    fn published(config: &Value) -> Option<Published> {
        const NAMES: [&str; 4] = [
            "internvideo2",
            "internvideo2_ap",
            "pretrain_internvideo2",
            "internvideo2_stage2_vision",
        ];
        let name = NAMES.into_iter().find(|name| says(config, "model", name))?;
        let mut options = published::internvideo2_sizes(config)?;
        let is = |field: &str| config[field].as_bool().unwrap_or(false);
        let (apart, picture) = (is("sep_pos_embed"), is("sep_image_video_pos_embed"));
        options["positions"] = match (apart, picture) {
            (true, _) => "separable",
            (_, true) => "picture",
            _ => "joint",
        }
        .into();
        options["extra_mlp"] = (name == "internvideo2_ap").into();
        if let Some(classes) = count(config, "num_classes") {
            options["classes"] = classes.into();
        }
        let [height, width] = sides(config, "img_size")?;
        let frames = count(config, "num_frames")?;
        if options["positions"] == "picture" {
            options["table_frames"] = frames.into();
        }
        Some(Published { options, dims: dims([("T", frames), ("H", height), ("W", width)]) })
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let all: usize = self.size().cut(dims).iter().product();
        let kept = dims.get("V").copied().unwrap_or(all);
        side(dims, "B") as u64 * self.size().flops(all, 1 + kept)
    }
}

/// Kind `models/internvideo2`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("internvideo2.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use burn::tensor::Device;
    use serde_json::json;

    /// Parameters of the blocks and of all, for clips of 8 frames of 224 x 224 pixels.
    fn count(preset: &str) -> (usize, usize) {
        let config: Config = serde_json::from_value(json!({ "preset": preset })).unwrap();
        let sides = [("B", 1), ("T", 8), ("H", 224), ("W", 224)];
        let dims = sides.map(|(name, value)| (name.to_owned(), value)).into();
        let module = config.init(&dims, &Init::new(0, "student", &Device::flex()));
        let all = parameters::list(&module);
        let size = |p: &parameters::Parameter| p.shape.iter().product::<usize>();
        let blocks = all.iter().filter(|p| p.path.starts_with("blocks.")).map(size).sum();
        (blocks, all.iter().map(size).sum())
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        let (blocks, all) = count("1b"); // 1.0 G
        assert_eq!((blocks, all), (1_009_950_720, 1_020_708_608));
        let (blocks, all) = count("6b"); // 5.9 G
        assert_eq!((blocks, all), (5_900_083_200, 5_941_735_168));
    }
}
