//! VideoMAE V2 encoder: a video transformer without class token, InternVideo2's motion teacher.
//!
//! | port     | dims        | what                                                          |
//! |----------|-------------|---------------------------------------------------------------|
//! | `video`  | `B 3 T H W` | RGB, ImageNet mean and deviation                              |
//! | `layers` | `K B N D`   | tapped residual stream, ascending, as unit vectors            |
//! | `tokens` | `B N D`     | after the last block and its norm                             |
//! | `pooled` | `B D`       | mean over tokens; with `classes` the norm comes after it      |
//! | `logits` | `B classes` | with `classes`: linear head on `pooled`                       |
//!
//! N = T/t H/p W/p. The final LayerNorm is applied to the last tap only. With `classes` the
//! network has a norm of the pooled feature instead of a norm of the tokens, as the fine-tuned
//! checkpoints do. Positions are a fixed interleaved sine-cosine table.
//! Source: Wang et al. 2023, "VideoMAE V2" (arXiv 2303.16727); recipes §1.3.

use std::sync::{Arc, OnceLock};

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::{Tensor, TensorData};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::attention::{AttentionConfig, QkvBias};
use crate::layers::block::{self, Block, BlocksConfig};
use crate::layers::mlp::Gelu;
use crate::layers::norm::{Norm, unit};
use crate::layers::patch_embed::PatchEmbed;
use crate::layers::positions::{self, Lattice};
use crate::layers::size::{Size, SizeOptions, check_classes, check_share, check_taps, side};
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
        }
    }
}

/// The fixed position table, computed when it is first used.
#[derive(Debug, Clone)]
pub struct FixedTable {
    lattice: Lattice,
    width: usize,
    side: Option<usize>,
    made: Arc<OnceLock<Vec<f32>>>,
}

impl FixedTable {
    /// Values, `[N, D]` row-major.
    pub fn values(&self) -> &[f32] {
        self.made.get_or_init(|| {
            let [frames, rows, columns] = self.lattice;
            match self.side {
                Some(side) if [side, side] != [rows, columns] => {
                    let table = positions::interleaved(frames * side * side, self.width);
                    positions::resize(&table, [side, side], [rows, columns], self.width)
                }
                _ => positions::interleaved(frames * rows * columns, self.width),
            }
        })
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
    /// Tokens of the first block, `[B, N, D]`.
    pub fn embed(&self, video: Tensor<5>) -> Tensor<3> {
        let x = self.patch_embed.forward(video);
        let [_, tokens, width] = x.dims();
        let data = TensorData::new(self.table.values().to_vec(), [1, tokens, width]);
        let table = Tensor::<3>::from_data(data, &x.device().inner());
        x.clone() + table.cast(x.dtype())
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
        let size = self.size();
        let attention = AttentionConfig {
            width: size.width,
            heads: size.heads,
            bias: QkvBias::QueryValue,
            qk_norm: false,
            cosine: self.cosine_attention,
            across_heads: self.across_heads,
        };
        BlocksConfig {
            depth: size.depth,
            attention,
            hidden: size.hidden,
            gelu: Gelu::Exact,
            rms: false,
            layer_scale: self.layer_scale,
            drop_path: self.drop_path,
        }
    }
}

impl Kind for Config {
    type Module = VideoMaeV2;

    fn ports(&self, _: &[String]) -> Ports {
        let size = self.size();
        let (taps, width, tokens) = (self.taps(), size.width, size.tokens());
        let ports = Ports::default()
            .input("video", "B 3 T H W")
            .about("RGB, ImageNet mean and deviation")
            .output("layers", format!("{taps} B {tokens} {width}"))
            .lattice(size.lattice())
            .tag("norm", "l2")
            .about("tapped blocks, ascending, unit vectors")
            .output("tokens", format!("B {tokens} {width}"))
            .lattice(size.lattice())
            .about("after the last block and its norm")
            .output("pooled", format!("B {width}"))
            .about("mean over tokens");
        match self.classes {
            Some(classes) => ports.output("logits", format!("B {classes}")).about("class scores"),
            None => ports,
        }
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let size = self.size();
        let mut problems = size.check(2);
        problems.extend(check_taps(size.depth, self.taps(), self.tap_interval));
        problems.extend(check_share("drop_path", self.drop_path));
        problems.extend(check_classes(self.classes));
        for (name, value) in [("pool_heads", self.size.pool_heads), ("pooled", self.size.pooled)] {
            if value.is_some() {
                let option = format!("size.{name}");
                let message = "this encoder has no attention pooling";
                problems.push(OptionProblem::new(option, message, "leave it out"));
            }
        }
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> VideoMaeV2 {
        let size = self.size();
        let init = &init.with_sigma(size.sigma);
        let (lattice, width) = (size.cut(dims), size.width);
        let norm = || Norm::layer(width, 1e-6, init);
        let table = FixedTable { lattice, width, side: self.table_side, made: Arc::default() };
        VideoMaeV2 {
            patch_embed: PatchEmbed::new(width, size.tubelet, size.patch, init),
            blocks: block::blocks(&self.blocks(), init),
            norm: self.classes.is_none().then(norm),
            fc_norm: self.classes.map(|_| norm()),
            head: self.classes.map(|classes| init.linear(width, classes, true, 1000.0)),
            table,
        }
    }

    fn forward(
        &self,
        module: &VideoMaeV2,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        let x = module.embed(inputs.take("video")?);
        let taps = block::taps(self.size().depth, self.taps(), self.tap_interval);
        let (mut layers, x) = block::run(&module.blocks, x, &taps, call);
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

    fn key(&self, path: &str) -> String {
        path.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")
    }

    fn layers(&self) -> usize {
        self.size().depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        let all: usize = self.size().cut(dims).iter().product();
        side(dims, "B") as u64 * self.size().flops(all, all)
    }
}

/// Kind `models/videomae_v2`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("videomae_v2.rs"));
