//! InternVL-C vision tower: a per-frame image transformer, the CLIP teacher of InternVideo2.
//!
//! | port        | dims          | what                                                       |
//! |-------------|---------------|------------------------------------------------------------|
//! | `video`     | `B 3 T H W`   | RGB, ImageNet mean and deviation                           |
//! | `layers`    | `K B 1+N D`   | tapped residual stream, ascending, as unit vectors         |
//! | `pooled`    | `B P`         | attention pooling, mean over frames, as unit vectors       |
//! | `attention` | `B T A`       | pooling attention of the A patches, mean over heads        |
//! | `logits`    | `B classes`   | with `classes`: head on the mean over frames               |
//!
//! N = T A patches, A = H/p W/p. The class tokens are averaged over frames before they become
//! unit vectors. Rows of `attention` do not sum to 1, because the class token is left out.
//! Source: Chen et al. 2024, "InternVL" (arXiv 2312.14238); recipes §1.3.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::init::Init;
use crate::kind::{self, Call, Kind, Names, Published};
use crate::layers::block::{self, Block, BlocksConfig, Context};
use crate::layers::image_tower::unfold;
use crate::layers::linear::Linear;
use crate::layers::mlp::Activation;
use crate::layers::norm::{Norm, unit};
use crate::layers::patch_embed::PatchEmbed;
use crate::layers::pool::AttentionPool;
use crate::layers::positions;
use crate::layers::size::{Size, SizeOptions, check_classes, check_share, check_taps, side};
use crate::layout::Layout;
use crate::published::{count, dims, internvideo2_sizes, says, sides};
use crate::tensors::Tensors;

/// The published size, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// 48 blocks of width 3200.
    #[serde(rename = "6b")]
    B6,
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
    /// Numbers that replace those of the preset; the tubelet is always 1.
    pub size: SizeOptions,
    /// Blocks whose output `layers` holds; 6, or all when there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taps: Option<usize>,
    /// Distance between tapped blocks, counted from the last one; may be a fraction.
    pub tap_interval: f64,
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
    /// Start of the layer scale; 0 for none.
    pub layer_scale: f64,
    /// Activation of the blocks; the published weights were trained with `gelu_tanh`.
    pub activation: Activation,
    /// Classes of `logits`; no head when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: SizeOptions::default(),
            taps: None,
            tap_interval: 1.0,
            drop_path: 0.0,
            layer_scale: 0.1,
            activation: Activation::GeluTanh,
            classes: None,
        }
    }
}

/// The tower. Field names are those of the published checkpoints.
#[derive(Module, Debug)]
pub struct InternVlClip {
    /// Convolution to tokens, one frame deep.
    pub patch_embed: PatchEmbed,
    /// `[1, 1, D]`.
    pub cls_token: Param<Tensor<3>>,
    /// `[1, 1 + A, D]`, the same for every frame.
    pub pos_embed: Param<Tensor<3>>,
    /// The stack.
    pub blocks: Vec<Block>,
    /// Attention pooling.
    pub clip_projector: AttentionPool,
    /// Before the head.
    pub fc_norm: Option<Norm>,
    /// `[P, classes]`.
    pub head: Option<Linear>,
}

impl InternVlClip {
    /// Tokens of the first block for `[B, 3, T, H, W]`, frames folded: `[B T, 1 + A, D]`.
    pub fn embed(&self, video: Tensor<5>) -> Tensor<3> {
        let [batch, channels, frames, height, width] = video.dims();
        let folded = [batch * frames, channels, 1, height, width];
        let x = self.patch_embed.forward(video.swap_dims(1, 2).reshape(folded));
        let class = self.cls_token.val();
        let width = class.dims()[2];
        let x = Tensor::cat(vec![class.expand([batch * frames, 1, width]), x], 1);
        x + self.pos_embed.val()
    }
}

impl Config {
    /// All numbers.
    pub fn size(&self) -> Size {
        let preset = match self.preset {
            Preset::B6 => Size::vit(48, 3200, 25, 12_800),
            Preset::Tiny => Size::TINY,
        };
        Size { tubelet: 1, ..preset.with(&self.size) }
    }

    fn taps(&self) -> usize {
        self.taps.unwrap_or(self.size().depth.min(6))
    }
}

impl Kind for Config {
    type Module = InternVlClip;

    fn ports(&self, _: &[String]) -> Ports {
        let size = self.size();
        let (taps, width, p) = (self.taps(), size.width, size.patch);
        let ports = Ports::default()
            .input("video", "B 3 T H W")
            .about("RGB, ImageNet mean and deviation")
            .output("layers", format!("{taps} B 1+{} {width}", size.tokens()))
            .lattice(size.lattice())
            .tag("norm", "l2")
            .about("tapped blocks, ascending, unit vectors, class token first")
            .output("pooled", format!("B {}", size.pooled))
            .tag("norm", "l2")
            .about("attention pooling, mean over frames, unit vectors")
            .plain("attention", format!("B T (H/{p})*(W/{p})"))
            .lattice(size.lattice())
            .about("attention of the pooling to each patch, mean over heads");
        match self.classes {
            Some(classes) => ports.output("logits", format!("B {classes}")).about("class scores"),
            None => ports,
        }
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let size = self.size();
        let mut problems = size.check(4);
        problems.extend(check_taps(size.depth, self.taps(), self.tap_interval));
        problems.extend(check_share("drop_path", self.drop_path));
        problems.extend(check_classes(self.classes));
        if self.size.tubelet.is_some_and(|tubelet| tubelet != 1) {
            let message = "this tower reads single frames";
            problems.push(OptionProblem::new("size.tubelet", message, "leave it out"));
        }
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> InternVlClip {
        let size = self.size();
        let init = &init.with_sigma(size.sigma);
        let blocks = BlocksConfig {
            activation: self.activation,
            layer_scale: self.layer_scale,
            drop_path: self.drop_path,
            ..BlocksConfig::internvideo2(size.width, size.depth, size.heads, size.hidden)
        };
        let ([_, rows, columns], width) = (size.cut(dims), size.width);
        let table = move || {
            let class = std::iter::repeat_n(0.0, width);
            class.chain(positions::plane(rows, columns, width)).collect()
        };
        InternVlClip {
            patch_embed: PatchEmbed::new(width, 1, size.patch, init),
            cls_token: init.normal([1, 1, width], 0.02),
            pos_embed: init.computed([1, 1 + rows * columns, width], table),
            blocks: block::blocks(&blocks, init),
            clip_projector: AttentionPool::new(width, size.pool_heads, size.pooled, init),
            fc_norm: self.classes.map(|_| Norm::layer(size.pooled, 1e-5, init)),
            head: self.classes.map(|classes| init.linear(size.pooled, classes, true, 1000.0)),
        }
    }

    fn forward(
        &self,
        module: &InternVlClip,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let video: Tensor<5> = inputs.take("video")?;
        let [batch, _, frames, _, _] = video.dims();
        let taps = block::taps(self.size().depth, self.taps(), self.tap_interval);
        let (layers, x) =
            block::run(&module.blocks, module.embed(video), &taps, &Context::training(call), call);
        let layers: Vec<_> =
            layers.into_iter().map(|layer| unit(unfold(layer, frames, 1))).collect();
        let (pooled, map) = module.clip_projector.with_map(x);
        let [_, width] = pooled.dims();
        let pooled: Tensor<2> = pooled.reshape([batch, frames, width]).mean_dim(1).squeeze_dim(1);
        let keys = map.dims()[3];
        let map = map.mean_dim(1).slice_dim(3, 1..keys).reshape([batch, frames, keys - 1]);
        let mut outputs = Tensors::of("attention", map);
        if let (Some(norm), Some(head)) = (&module.fc_norm, &module.head) {
            outputs = outputs.with("logits", head.forward(norm.forward(pooled.clone())));
        }
        let layers: Tensor<4> = Tensor::stack(layers, 0);
        Ok(outputs.with("layers", layers).with("pooled", unit(pooled)))
    }

    fn layouts(&self) -> Vec<Layout> {
        vec![Layout::new("official").fused().own_biases("cross_attn")]
    }

    fn published(config: &Value) -> Option<Published> {
        if !says(config, "model", "internvl_clip") {
            return None;
        }
        let mut options = internvideo2_sizes(config)?;
        if let Some(taps) = count(config, "clip_return_layer") {
            options["taps"] = taps.into();
            options["tap_interval"] = config["clip_return_interval"].as_f64().unwrap_or(1.0).into();
        }
        let [height, width] = sides(config, "img_size")?;
        Some(Published { options, dims: dims([("T", 1), ("H", height), ("W", width)]) })
    }

    fn reference_names(&self) -> &'static [Names] {
        &[
            ("layers", &["z", "layers"]),
            ("pooled", &["x", "pooled"]),
            ("attention", &["attn", "attention"]),
        ]
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let [frames, rows, columns] = self.size().cut(dims);
        let images = (side(dims, "B") * frames) as u64;
        images * self.size().flops(rows * columns, 1 + rows * columns)
    }
}

/// Kind `models/internvl_clip`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("internvl_clip.rs"));
