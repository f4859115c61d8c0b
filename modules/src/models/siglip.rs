//! SigLIP image tower: a per-frame image transformer without class token, read out by a learned query.
//!
//! | port        | dims          | what                                                       |
//! |-------------|---------------|------------------------------------------------------------|
//! | `video`     | `B 3 T H W`   | RGB; a still image is T = 1                                |
//! | `layers`    | `K B N D`     | tapped residual stream, ascending, as unit vectors         |
//! | `tokens`    | `B N D`       | after the last block and its norm                          |
//! | `features`  | `B D`         | attention pooling, mean over frames                        |
//! | `pooled`    | `B D`         | the same as unit vectors                                   |
//! | `attention` | `B T A`       | pooling attention of the patches, head mean; rows sum to 1 |
//!
//! N = T A patches, A = H/p W/p without remainder: pixels that fill no patch are dropped, as 6 of 384
//! with patches of 14. SigLIP 2's checkpoints of fixed resolution are this network; `models/siglip2` is
//! NaFlex. Pixels arrive with ImageNet's mean and deviation and go over to -1..1 inside; `input: own`
//! leaves them. InternVideo-Next's teacher is `tap_inputs: true` with `mean_of_units: true`.
//! Source: Zhai et al. 2023, "SigLIP" (arXiv 2303.15343); Tschannen et al. 2025, "SigLIP 2" (arXiv
//! 2502.14786); recipes §5.2.

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::init::Init;
use crate::kind::{self, Call, Kind, Names, Published};
use crate::layers::block::BlocksConfig;
use crate::layers::image_tower::{ImageTower, Input, Patches, PostNorm, Readout, TowerConfig};
use crate::layers::image_tower_ports::REFERENCE_NAMES;
use crate::layers::learned_table::Stretch;
use crate::layers::mlp::Activation;
use crate::layers::norm::NormKind;
use crate::layers::size::{Size, SizeOptions};
use crate::layout::Layout;
use crate::published::{count_or, part, says, word};
use crate::tensors::Tensors;
use crate::video::transform::Normalisation;

/// Published sizes, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// 12 blocks of width 768, patches of 16 pixels, pictures of 224.
    Base,
    /// 24 blocks of width 1024, patches of 16 pixels, pictures of 256.
    Large,
    /// 27 blocks of width 1152, patches of 14 pixels, pictures of 384.
    So400m,
    /// 40 blocks of width 1536, patches of 16 pixels, pictures of 256 (SigLIP 2).
    Giant,
    /// 4 blocks of width 96, patches of 16 pixels.
    #[default]
    Tiny,
}

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Size to start from.
    pub preset: Preset,
    /// Numbers that replace those of the preset; the pooling keeps width and heads.
    pub size: SizeOptions,
    /// Blocks that `layers` taps; 6, or all when there are fewer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taps: Option<usize>,
    /// Distance between tapped blocks, counted from the last one; may be a fraction.
    pub tap_interval: f64,
    /// Whether taps hold what enters a block, instead of what leaves it.
    pub tap_inputs: bool,
    /// Whether `pooled` is the plain mean of the frames' unit vectors, instead of the unit vector of
    /// the mean.
    pub mean_of_units: bool,
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
    /// Side of the square grid of the position table, which is stretched to other grids; that of the
    /// preset when absent, and of the video with `tiny`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_side: Option<usize>,
    /// How the pixels that arrive are normalised.
    pub input: Input,
    /// Activation of the blocks; all published weights were trained with `gelu_tanh`.
    pub activation: Activation,
    /// ε of the norms.
    pub eps: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            preset: Preset::default(),
            size: SizeOptions::default(),
            taps: None,
            tap_interval: 1.0,
            tap_inputs: false,
            mean_of_units: false,
            drop_path: 0.0,
            table_side: None,
            input: Input::default(),
            activation: Activation::GeluTanh,
            eps: 1e-6,
        }
    }
}

/// The parts that both generations share.
pub fn parts(
    preset: Size,
    side: Option<usize>,
    given: &SizeOptions,
    (activation, eps): (Activation, f64),
) -> TowerConfig {
    let size = preset.with(given);
    let size = Size { tubelet: 1, pool_heads: size.heads, pooled: size.width, ..size };
    let blocks = BlocksConfig {
        activation,
        norm: NormKind::Layer(eps),
        ..BlocksConfig::vit(size.width, size.depth, size.heads, size.hidden)
    };
    TowerConfig {
        size,
        blocks,
        patches: Patches::Convolution { bias: true },
        drops_rest: true,
        colours: Normalisation::HALF,
        input: Input::default(),
        table_side: side,
        stretch: Stretch::BICUBIC,
        embed_norm: false,
        post_norm: PostNorm::Tokens,
        readout: Readout::Probe,
        projected: false,
        taps: size.depth.min(6),
        tap_interval: 1.0,
        tap_inputs: false,
        mean_of_units: false,
    }
}

/// Keys of both generations, after the given text.
pub fn layout(name: &'static str, prefix: &str) -> Layout {
    let layout = Layout::new(name).torch_attention("pool.attn.", "head.attention.");
    let layout = layout.clip_blocks("encoder.layers.").rules(&[
        ("^patch_embed.proj.weight", "embeddings.patch_embedding.weight[2d]"),
        ("^patch_embed.proj.bias", "embeddings.patch_embedding.bias"),
        ("^flat_embed", "embeddings.patch_embedding"),
        ("^pos_embed", "embeddings.position_embedding.weight[rank2]"),
        ("^post_norm", "post_layernorm"),
        ("^pool.norm", "head.layernorm"),
        ("^pool.", "head."),
    ]);
    layout.prefix(prefix)
}

/// Numbers of the vision part of a configuration.
pub fn published_size(vision: &Value) -> Value {
    json!({
        "patch": count_or(vision, "patch_size", 16),
        "width": count_or(vision, "hidden_size", 768),
        "depth": count_or(vision, "num_hidden_layers", 12),
        "heads": count_or(vision, "num_attention_heads", 12),
        "hidden": count_or(vision, "intermediate_size", 3072),
    })
}

impl Config {
    /// All parts of the tower.
    pub fn tower(&self) -> TowerConfig {
        let at_16 = |size: Size| Size { patch: 16, ..size };
        let (preset, side) = match self.preset {
            Preset::Base => (at_16(Size::vit(12, 768, 12, 3072)), Some(14)),
            Preset::Large => (at_16(Size::vit(24, 1024, 16, 4096)), Some(16)),
            Preset::So400m => (Size::vit(27, 1152, 16, 4304), Some(27)),
            Preset::Giant => (at_16(Size::vit(40, 1536, 16, 6144)), Some(16)),
            Preset::Tiny => (Size::TINY, None),
        };
        let mut tower =
            parts(preset, self.table_side.or(side), &self.size, (self.activation, self.eps));
        tower.blocks.drop_path = self.drop_path;
        let (input, tap_inputs) = (self.input, self.tap_inputs);
        let (tap_interval, mean_of_units) = (self.tap_interval, self.mean_of_units);
        let taps = self.taps.unwrap_or(tower.taps);
        TowerConfig { input, taps, tap_interval, tap_inputs, mean_of_units, ..tower }
    }
}

impl Kind for Config {
    type Module = ImageTower;

    fn ports(&self, _: &[String]) -> Ports {
        self.tower().video_ports()
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        self.tower().problems(&self.size, self.drop_path, dims)
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
        vec![layout("hf", "vision_model."), layout("tower", "")]
    }

    fn published(config: &Value) -> Option<Published> {
        // InternVideo-Next's teacher: the tower alone, with other words.
        let teacher = says(config, "kind", "siglip_teacher_semantic_mask");
        let (vision, image) = if teacher {
            (config, "pos_embed_image_size")
        } else {
            let alone = ["siglip_vision_model"];
            (part(config, &["siglip"], "vision_config", &alone)?, "image_size")
        };
        let patch = count_or(vision, "patch_size", 16);
        let options = json!({
            "size": published_size(vision),
            "table_side": count_or(vision, image, 224) / patch.max(1),
            "activation": word(vision, "hidden_act", "gelu_pytorch_tanh"),
            "eps": vision["layer_norm_eps"].as_f64().unwrap_or(1e-6),
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

/// Kind `models/siglip`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("siglip.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::image_tower::counted;

    /// Millions of parameters of the image towers in timm's table of models.
    #[test]
    fn presets_have_the_published_number_of_parameters() {
        for (preset, published) in
            [(Preset::Base, 92.88), (Preset::Large, 315.96), (Preset::So400m, 428.23)]
        {
            let config = Config { preset, ..Config::default() };
            let counted = counted(&config.tower()) as f64 / 1e6;
            assert!((counted - published).abs() < 0.006, "{preset:?}: {counted}");
        }
    }

    #[test]
    fn a_sparse_configuration_has_the_sizes_of_the_base_model() {
        let sparse = json!({ "model_type": "siglip", "vision_config": {}, "text_config": {} });
        let published = Config::published(&sparse).expect("a published network");
        let config: Config = serde_json::from_value(published.options).expect("options");
        let base = Config { preset: Preset::Base, ..Config::default() };
        assert_eq!(counted(&config.tower()), counted(&base.tower()));
    }
}
