//! InternVideo-Next encoder: InternVideo2's blocks behind normed patches and several class tokens.
//!
//! | port      | dims          | what                                                        |
//! |-----------|---------------|-------------------------------------------------------------|
//! | `video`   | `B 3 T H W`   | RGB, ImageNet mean and deviation                            |
//! | `visible` | `B V`         | optional: indices of visible patches, time-major, ascending |
//! | `layers`  | `K B C+S D`   | residual stream after the last K tapped blocks, ascending   |
//! | `tokens`  | `B C+S D`     | residual stream after the last block                        |
//! | `pooled`  | `B P`         | attention pooling of `tokens`                               |
//! | `mean`    | `B D`         | mean of `tokens` without class tokens                       |
//!
//! S = V with `visible`, else T/t H/p W/p; the C class tokens come first. The numbers of a patch go
//! through an RMSNorm before the convolution, its token through another one after it. The learned
//! position table is made for `table_frames` frames and stretched to the clip. There is no norm after
//! the last block.
//! Source: InternVideo-Next (arXiv 2512.01342); recipes §5.1.

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
use crate::layers::block::{self, Block, BlocksConfig, Context};
use crate::layers::linear_ops::linear;
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;
use crate::layers::patch_embed::{PatchEmbed, Projection, patches};
use crate::layers::pool::AttentionPool;
use crate::layers::positions::{self, Lattice};
use crate::layers::size::{Size, SizeOptions, check_named, check_share, check_taps, side};
use crate::layers::{stretch, tokens};
use crate::layout::Layout;
use crate::published::{count, hidden};
use crate::tensors::Tensors;

/// Published sizes, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// 40 blocks of width 1408.
    #[serde(rename = "1b")]
    B1,
    /// 24 blocks of width 1024.
    #[serde(rename = "l")]
    L,
    /// 12 blocks of width 768.
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
    /// Numbers that replace those of the preset.
    pub size: SizeOptions,
    /// Class tokens, C.
    pub class_tokens: usize,
    /// Frames that the position table is made for.
    pub table_frames: usize,
    /// Side of the square grid of patches that it is made for; the video's grid when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_side: Option<usize>,
    /// Blocks whose output `layers` holds; 6, or all when there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taps: Option<usize>,
    /// Distance between tapped blocks, counted from the last one; may be a fraction.
    pub tap_interval: f64,
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
    /// Start of the layer scale; 0 for none.
    pub layer_scale: f64,
    /// Activation of the blocks.
    pub activation: Activation,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: SizeOptions::default(),
            class_tokens: 4,
            table_frames: 16,
            table_side: None,
            taps: None,
            tap_interval: 1.0,
            drop_path: 0.0,
            layer_scale: 1e-5,
            activation: Activation::GeluTanh,
        }
    }
}

/// Patches to tokens, normed before and after the convolution.
#[derive(Module, Debug)]
pub struct NormedPatchEmbed {
    /// Of the numbers of a patch: frame, row, column, then colour.
    pub norm_before: Norm,
    /// The convolution.
    pub proj: Projection,
    /// Of the tokens.
    pub norm: Norm,
}

impl NormedPatchEmbed {
    fn new(size: &Size, init: &Init) -> Self {
        Self {
            norm_before: Norm::rms(size.voxels(), 1e-6, init),
            proj: PatchEmbed::new(size.width, size.tubelet, size.patch, init).proj,
            norm: Norm::rms(size.width, 1e-6, init),
        }
    }

    /// Numbers of each patch after the first norm, `[B, N, voxels]`, colours side by side.
    pub fn numbers(&self, video: Tensor<5>) -> Tensor<3> {
        let [_, _, t, p, _] = self.proj.weight.val().dims();
        let cut = patches(video, [t, p, p]);
        let [batch, number, channels, pixels] = cut.dims();
        let cut = cut.swap_dims(2, 3).reshape([batch, number, pixels * channels]);
        self.norm_before.forward(cut)
    }

    /// `[B, 3, T, H, W]`; returns tokens `[B, N, D]`.
    pub fn forward(&self, video: Tensor<5>) -> Tensor<3> {
        let kernel = self.proj.weight.val();
        let [width, channels, t, p, q] = kernel.dims();
        let pixels = t * p * q;
        let kernel = kernel.reshape([width, channels, pixels]).swap_dims(1, 2);
        let kernel = kernel.reshape([width, pixels * channels]).transpose();
        let bias = self.proj.bias.as_ref().map(Param::val);
        self.norm.forward(linear(self.numbers(video), kernel, bias))
    }
}

/// The encoder. Field names are those of the published checkpoints.
#[derive(Module, Debug)]
pub struct InternVideoNext {
    /// Patches to tokens.
    pub patch_embed: NormedPatchEmbed,
    /// `[1, C, D]`.
    pub cls_token: Param<Tensor<3>>,
    /// `[1, C + N, D]`.
    pub pos_embed: Param<Tensor<3>>,
    /// The stack.
    pub blocks: Vec<Block>,
    /// Attention pooling.
    pub clip_projector: AttentionPool,
    /// Lattices of the table and of the clip.
    #[module(skip)]
    lattices: [Lattice; 2],
}

impl InternVideoNext {
    /// Position table of the clip, `[1, C + N, D]`.
    pub fn table(&self) -> Tensor<3> {
        let [from, to] = self.lattices;
        stretch::table(self.pos_embed.val(), self.cls_token.dims()[1], from, to)
    }

    /// Tokens of the first block `[B, C + S, D]`: class tokens, then visible patches, with positions.
    pub fn embed(&self, video: Tensor<5>, visible: Option<Tensor<2, Int>>) -> Tensor<3> {
        let x = self.patch_embed.forward(video);
        let [batch, all, width] = x.dims();
        let (table, front) = (self.table(), self.cls_token.dims()[1]);
        let class = self.cls_token.val() + table.clone().slice_dim(1, 0..front);
        let x = x + table.slice_dim(1, front..front + all);
        let x = match visible {
            Some(visible) => tokens::gather(x, visible),
            None => x,
        };
        Tensor::cat(vec![class.expand([batch, front, width]), x], 1)
    }
}

impl Config {
    /// All numbers.
    pub fn size(&self) -> Size {
        let preset = match self.preset {
            Preset::B1 => Size::vit(40, 1408, 16, 6144),
            Preset::L => Size::vit(24, 1024, 16, 4096),
            Preset::B => Size::vit(12, 768, 12, 3072),
            Preset::Tiny => Size::TINY,
        };
        preset.with(&self.size)
    }

    fn taps(&self) -> usize {
        self.taps.unwrap_or(self.size().depth.min(6))
    }
}

/// The lattice that a table is made for, for clips of another one.
pub(crate) fn table_lattice(frames: usize, side: Option<usize>, clip: Lattice) -> Lattice {
    let [_, rows, columns] = clip;
    [frames, side.unwrap_or(rows), side.unwrap_or(columns)]
}

/// Problems of a table's extents.
pub(crate) fn check_table(frames: usize, side: Option<usize>) -> Vec<OptionProblem> {
    let mut problems = Vec::new();
    if !(1..=1 << 12).contains(&frames) {
        let message = format!("`table_frames` is {frames}, but must be from 1 to 4096");
        problems.push(OptionProblem::new("table_frames", message, "16 is published"));
    }
    if side.is_some_and(|side| !(1..=1 << 10).contains(&side)) {
        let message = "`table_side` is not from 1 to 1024";
        problems.push(OptionProblem::new("table_side", message, "16 is the published one"));
    }
    problems
}

impl Kind for Config {
    type Module = InternVideoNext;

    fn ports(&self, wired: &[String]) -> Ports {
        let size = self.size();
        let masked = wired.iter().any(|port| port == "visible");
        let seen = if masked { "V".to_owned() } else { size.tokens() };
        let (taps, width, front) = (self.taps(), size.width, self.class_tokens);
        Ports::default()
            .input("video", "B 3 T H W")
            .about("RGB, ImageNet mean and deviation")
            .stopped("visible", "B V")
            .int()
            .optional()
            .lattice(size.lattice())
            .about("indices of visible patches, without class tokens, ascending")
            .output("layers", format!("{taps} B {front}+{seen} {width}"))
            .lattice(size.lattice())
            .about("residual stream after the tapped blocks, ascending")
            .output("tokens", format!("B {front}+{seen} {width}"))
            .lattice(size.lattice())
            .about("residual stream after the last block, class tokens first")
            .output("pooled", format!("B {}", size.pooled))
            .about("attention pooling of the tokens")
            .output("mean", format!("B {width}"))
            .about("mean of the tokens without class tokens")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let size = self.size();
        let mut problems = size.check(16);
        problems.extend(check_taps(size.depth, self.taps(), self.tap_interval));
        problems.extend(check_share("drop_path", self.drop_path));
        problems.extend(check_table(self.table_frames, self.table_side));
        if !(1..=1 << 10).contains(&self.class_tokens) {
            let message = format!("`class_tokens` is {}, not from 1 to 1024", self.class_tokens);
            problems.push(OptionProblem::new("class_tokens", message, "4 is published"));
        }
        let all: usize = if problems.is_empty() { size.cut(dims).iter().product() } else { 0 };
        problems.extend(check_named("visible", side(dims, "V"), all));
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> InternVideoNext {
        let (size, front) = (self.size(), self.class_tokens);
        let init = &init.with_sigma(size.sigma);
        let blocks = BlocksConfig {
            activation: self.activation,
            layer_scale: self.layer_scale,
            drop_path: self.drop_path,
            ..BlocksConfig::internvideo2(size.width, size.depth, size.heads, size.hidden)
        };
        let (width, clip) = (size.width, size.cut(dims));
        let made = table_lattice(self.table_frames / size.tubelet.max(1), self.table_side, clip);
        let values = move || positions::joint(made, width, front);
        InternVideoNext {
            patch_embed: NormedPatchEmbed::new(&size, init),
            cls_token: init.normal([1, front, width], 0.02),
            pos_embed: init.computed([1, front + made.iter().product::<usize>(), width], values),
            blocks: block::blocks(&blocks, init),
            clip_projector: AttentionPool::new(width, size.pool_heads, size.pooled, init),
            lattices: [made, clip],
        }
    }

    fn forward(
        &self,
        module: &InternVideoNext,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let x = module.embed(inputs.take("video")?, inputs.take_if("visible")?);
        let taps = block::taps(self.size().depth, self.taps(), self.tap_interval);
        let (layers, x) = block::run(&module.blocks, x, &taps, &Context::training(call), call);
        let pooled = module.clip_projector.forward(x.clone());
        let layers: Tensor<4> = Tensor::stack(layers, 0);
        let all = x.dims()[1];
        let patches = x.clone().slice_dim(1, self.class_tokens..all);
        let mean: Tensor<2> = patches.mean_dim(1).squeeze_dim(1);
        let outputs = Tensors::of("layers", layers).with("tokens", x).with("mean", mean);
        Ok(outputs.with("pooled", pooled))
    }

    fn layouts(&self) -> Vec<Layout> {
        let official = Layout::new("official").fused().own_biases("cross_attn");
        vec![
            official
                .idle("selfdist_normproj_decoder.", "a head of stage 2 without loss or output")
                .idle("clip_pos_embed", "the table of stage 1's heads, which are not here"),
        ]
    }

    fn published(config: &Value) -> Option<Published> {
        let front = count(config, "cls_token_num")?;
        let width = count(config, "embed_dim")?;
        let frames = count(config, "model_num_frames").or_else(|| count(config, "num_frames"))?;
        let options = json!({
            "size": {
                "patch": count(config, "patch_size")?,
                "tubelet": count(config, "tubelet_size")?,
                "width": width,
                "depth": count(config, "depth")?,
                "heads": count(config, "num_heads")?,
                "hidden": hidden(config, "mlp_ratio", width).unwrap_or(4 * width),
                "pool_heads": count(config, "attn_pool_num_heads")?,
                "pooled": count(config, "clip_embed_dim")?,
            },
            "class_tokens": front,
            "table_frames": frames,
        });
        let side = count(config, "img_size")?;
        let sides = [("T", frames), ("H", side), ("W", side)];
        let dims = sides.map(|(name, value)| (name.to_owned(), value)).into();
        Some(Published { options, dims })
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let all: usize = self.size().cut(dims).iter().product();
        let kept = dims.get("V").copied().unwrap_or(all);
        side(dims, "B") as u64 * self.size().flops(all, self.class_tokens + kept)
    }
}

/// Kind `models/internvideo_next`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("internvideo_next.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parameters;
    use burn::tensor::Device;

    fn dims(frames: usize) -> Dims {
        let sides = [("B", 1), ("T", frames), ("H", 224), ("W", 224)];
        sides.map(|(name, value)| (name.to_owned(), value)).into()
    }

    fn count(preset: &str, frames: usize) -> u64 {
        let config: Config = serde_json::from_value(json!({ "preset": preset })).unwrap();
        assert_eq!(config.check(&dims(frames)), []);
        let init = Init::new(0, "encoder", &Device::flex());
        parameters::count(&config.init(&dims(frames), &init))
    }

    /// No numbers are published. Without tables and pooling the networks are ViT-B (86 M), ViT-L
    /// (304 M) and the 1B of InternVideo2 (1.0 G in its blocks).
    #[test]
    fn parameter_counts_are_those_of_the_trunks() {
        let table = |width: u64| (4 + 16 * 256) * width;
        let pool = |width: u64| 3 * (width * width + 3 * width) + 768 * (width + 1);
        for (preset, width, published) in
            [("b", 768, 86e6), ("l", 1024, 304e6), ("1b", 1408, 1.01e9)]
        {
            let found = count(preset, 16) - table(width) - pool(width);
            assert!((found as f64 / published - 1.0).abs() < 0.01, "{preset}: {found}");
        }
    }

    #[test]
    fn a_longer_clip_has_the_same_parameters() {
        assert_eq!(count("b", 16), count("b", 32));
    }
}
