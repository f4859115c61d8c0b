//! InternViT: the image transformer of InternVL, read frame by frame, with a class token.
//!
//! | port        | dims          | what                                                       |
//! |-------------|---------------|------------------------------------------------------------|
//! | `video`     | `B 3 T H W`   | RGB, ImageNet mean and deviation; a still image is T = 1   |
//! | `layers`    | `K B 1+N D`   | tapped residual stream, ascending, as unit vectors         |
//! | `tokens`    | `B 1+N D`     | after the last block; there is no norm                     |
//! | `features`  | `B D`         | class token, mean over frames                              |
//! | `pooled`    | `B D`         | the same as unit vectors                                   |
//! | `attention` | `B T A`       | the class token's attention in the last block, head mean   |
//!
//! N = T A patches, A = H/p W/p. Class tokens are averaged over frames. Rows of `attention` do not sum
//! to 1, because the class token is left out. The 6B has RMSNorm, norms on q and k, and no biases of
//! queries, keys and values; the 300M has LayerNorm, those biases and no norms on q and k.
//! `models/internvl_clip` is the 6B with the attention pooling that InternVideo2 learns from.
//! Source: Chen et al. 2024, "InternVL" (arXiv 2312.14238) and "InternVL 1.5" (arXiv 2404.16821).

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::Init;
use crate::kind::{self, Call, Kind, Names, Published};
use crate::layers::attention::Biases;
use crate::layers::block::BlocksConfig;
use crate::layers::image_tower::{ImageTower, Input, Patches, PostNorm, Readout, TowerConfig};
use crate::layers::image_tower_ports::REFERENCE_NAMES;
use crate::layers::learned_table::Stretch;
use crate::layers::norm::NormKind;
use crate::layers::size::{Size, SizeOptions};
use crate::layout::Layout;
use crate::published::{count_or, only, part, word};
use crate::tensors::Tensors;
use crate::video::transform::Normalisation;

/// Published sizes, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// InternViT-300M-448px: 24 blocks of width 1024.
    #[serde(rename = "300m")]
    M300,
    /// InternViT-6B-224px: 48 blocks of width 3200.
    #[serde(rename = "6b")]
    B6,
    /// InternViT-6B-448px from V1-5 on: 45 blocks of width 3200.
    #[serde(rename = "6b_448")]
    B6At448,
    /// 4 blocks of width 96, patches of 16 pixels, parts as in the 300M.
    #[default]
    #[serde(rename = "tiny")]
    Tiny,
}

/// Norm of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BlockNorm {
    /// RMSNorm.
    #[serde(rename = "rms", alias = "rms_norm")]
    Rms,
    /// LayerNorm.
    #[serde(rename = "layer", alias = "layer_norm")]
    Layer,
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
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
    /// Side of the square grid of the position table, which is stretched to other grids; that of the
    /// preset when absent, and of the video with `tiny`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_side: Option<usize>,
    /// Start of the layer scale.
    pub layer_scale: f64,
    /// Norm of the blocks, instead of the preset's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<BlockNorm>,
    /// Whether q and k have norms, instead of what the preset says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<bool>,
    /// Whether queries, keys and values have biases, instead of what the preset says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qkv_bias: Option<bool>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: SizeOptions::default(),
            taps: None,
            tap_interval: 1.0,
            drop_path: 0.0,
            table_side: None,
            layer_scale: 0.1,
            norm: None,
            qk_norm: None,
            qkv_bias: None,
        }
    }
}

impl Config {
    /// All parts of the tower.
    pub fn tower(&self) -> TowerConfig {
        let (preset, side, large) = match self.preset {
            Preset::M300 => (Size::vit(24, 1024, 16, 4096), Some(32), false),
            Preset::B6 => (Size::vit(48, 3200, 25, 12_800), Some(16), true),
            Preset::B6At448 => (Size::vit(45, 3200, 25, 12_800), Some(32), true),
            Preset::Tiny => (Size::TINY, None, false),
        };
        let size = preset.with(&self.size);
        let size = Size { tubelet: 1, pool_heads: size.heads, pooled: size.width, ..size };
        let rms = self.norm.map_or(large, |norm| norm == BlockNorm::Rms);
        let mut blocks = BlocksConfig {
            norm: if rms { NormKind::Rms(1e-6) } else { NormKind::Layer(1e-6) },
            layer_scale: self.layer_scale,
            drop_path: self.drop_path,
            ..BlocksConfig::vit(size.width, size.depth, size.heads, size.hidden)
        };
        blocks.attention.qk_norm = self.qk_norm.unwrap_or(large).then_some(1e-6);
        let biases = self.qkv_bias.unwrap_or(!large);
        blocks.attention.biases = if biases { Biases::ALL } else { Biases::OUTPUT };
        TowerConfig {
            size,
            blocks,
            patches: Patches::Convolution { bias: true },
            drops_rest: false,
            colours: Normalisation::IMAGENET,
            input: Input::Own,
            table_side: self.table_side.or(side),
            stretch: Stretch::BICUBIC,
            embed_norm: false,
            post_norm: PostNorm::None,
            readout: Readout::Class,
            projected: false,
            taps: self.taps.unwrap_or(size.depth.min(6)),
            tap_interval: self.tap_interval,
            tap_inputs: false,
            mean_of_units: false,
        }
    }
}

impl Kind for Config {
    type Module = ImageTower;

    fn ports(&self, _: &[String]) -> Ports {
        self.tower().video_ports()
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        let mut problems = self.tower().problems(&self.size, self.drop_path, dims);
        if !(self.layer_scale > 0.0 && self.layer_scale <= 10.0) {
            let message =
                format!("`layer_scale` is {}, not above 0 and up to 10", self.layer_scale);
            problems.push(OptionProblem::new("layer_scale", message, "0.1 is the published one"));
        }
        problems
    }

    fn init(&self, dims: &Dims, init: &Init) -> ImageTower {
        self.tower().init(dims, init)
    }

    fn forward(
        &self,
        module: &ImageTower,
        mut inputs: Tensors,
        call: &Call,
    ) -> Result<Tensors, NodeError> {
        Ok(module.watch(inputs.take("video")?, call))
    }

    fn layouts(&self) -> Vec<Layout> {
        let layout = Layout::new("hf").fused().rules(&[
            (".attn.q.bias", ".attn.qkv.bias[0/3]"),
            (".attn.k.bias", ".attn.qkv.bias[1/3]"),
            (".attn.v.bias", ".attn.qkv.bias[2/3]"),
            (".gamma", ""),
            ("^blocks.", "encoder.layers."),
            ("^patch_embed.proj.weight", "embeddings.patch_embedding.weight[2d]"),
            ("^patch_embed.proj.bias", "embeddings.patch_embedding.bias"),
            ("^cls_token", "embeddings.class_embedding"),
            ("^pos_embed", "embeddings.position_embedding"),
        ]);
        vec![layout]
    }

    fn published(config: &Value) -> Option<Published> {
        let vision = part(config, &["internvl_chat"], "vision_config", &["intern_vit_6b"])?;
        let known = [("hidden_act", json!("gelu")), ("layer_norm_eps", json!(1e-6))];
        if !only(vision, &known) {
            return None;
        }
        let patch = count_or(vision, "patch_size", 14);
        let options = json!({
            "size": {
                "patch": patch,
                "width": count_or(vision, "hidden_size", 3200),
                "depth": count_or(vision, "num_hidden_layers", 48),
                "heads": count_or(vision, "num_attention_heads", 25),
                "hidden": count_or(vision, "intermediate_size", 12_800),
            },
            "table_side": count_or(vision, "image_size", 224) / patch.max(1),
            "norm": word(vision, "norm_type", "rms_norm"),
            "qk_norm": vision["qk_normalization"].as_bool().unwrap_or(true),
            "qkv_bias": vision["qkv_bias"].as_bool().unwrap_or(false),
        });
        Some(Published { options, dims: Dims::new() })
    }

    fn reference_names(&self) -> &'static [Names] {
        REFERENCE_NAMES
    }

    fn layers(&self) -> usize {
        self.tower().size.depth
    }

    fn flops(&self, dims: &Dims) -> u64 {
        self.tower().flops(dims)
    }
}

/// Kind `models/intern_vit`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("intern_vit.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::image_tower::counted;

    /// Parameters as the model cards of the published checkpoints give them.
    #[test]
    fn presets_have_the_published_number_of_parameters() {
        for (preset, published) in
            [(Preset::M300, 304.01e6), (Preset::B6, 5_903e6), (Preset::B6At448, 5_540e6)]
        {
            let config = Config { preset, ..Config::default() };
            let off = counted(&config.tower()) as f64 / published - 1.0;
            assert!(off.abs() < 0.01, "{preset:?}: {}", counted(&config.tower()));
        }
    }
}
