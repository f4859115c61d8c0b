//! CLIP image tower: a per-frame image transformer with a class token, trained on captions.
//!
//! | port        | dims          | what                                                       |
//! |-------------|---------------|------------------------------------------------------------|
//! | `video`     | `B 3 T H W`   | RGB; a still image is T = 1                                |
//! | `layers`    | `K B 1+N D`   | tapped residual stream, ascending, as unit vectors         |
//! | `tokens`    | `B 1+N D`     | after the last block, without a norm                       |
//! | `features`  | `B D`         | class token after its norm, mean over frames               |
//! | `pooled`    | `B P`         | projected, mean over frames, as unit vectors               |
//! | `attention` | `B T A`       | the class token's attention in the last block, head mean   |
//!
//! N = T A patches, A = H/p W/p. Class tokens are averaged over frames. Rows of `attention` do not sum
//! to 1, because the class token is left out. Pixels arrive with ImageNet's mean and deviation and go
//! over to CLIP's inside; `input: own` leaves them. `text/clip` is the other tower.
//! Source: Radford et al. 2021, "CLIP" (arXiv 2103.00020).

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
use crate::published::{count_or, part, word};
use crate::tensors::Tensors;
use crate::video::transform::Normalisation;

/// Published sizes, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// 12 blocks of width 768, patches of 32 pixels, pictures of 224.
    B32,
    /// The same with patches of 16 pixels.
    B16,
    /// 24 blocks of width 1024, patches of 14 pixels, pictures of 224.
    L14,
    /// The same with pictures of 336.
    #[serde(rename = "l14_336")]
    L14At336,
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
    /// Numbers that replace those of the preset; `pooled` is the width of the projection.
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
    /// How the pixels that arrive are normalised.
    pub input: Input,
    /// Activation of the blocks; OpenAI's weights were trained with `quick_gelu`.
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
            drop_path: 0.0,
            table_side: None,
            input: Input::default(),
            activation: Activation::QuickGelu,
            eps: 1e-5,
        }
    }
}

impl Config {
    /// All parts of the tower.
    pub fn tower(&self) -> TowerConfig {
        let base = Size { pooled: 512, ..Size::vit(12, 768, 12, 3072) };
        let large = Size::vit(24, 1024, 16, 4096);
        let (preset, side) = match self.preset {
            Preset::B32 => (Size { patch: 32, ..base }, Some(7)),
            Preset::B16 => (Size { patch: 16, ..base }, Some(14)),
            Preset::L14 => (large, Some(16)),
            Preset::L14At336 => (large, Some(24)),
            Preset::Tiny => (Size::TINY, None),
        };
        let size = preset.with(&self.size);
        let size = Size { tubelet: 1, pool_heads: size.heads, ..size };
        let blocks = BlocksConfig {
            activation: self.activation,
            norm: NormKind::Layer(self.eps),
            drop_path: self.drop_path,
            ..BlocksConfig::vit(size.width, size.depth, size.heads, size.hidden)
        };
        TowerConfig {
            size,
            blocks,
            patches: Patches::Convolution { bias: false },
            drops_rest: false,
            colours: Normalisation::CLIP,
            input: self.input,
            table_side: self.table_side.or(side),
            stretch: Stretch::BICUBIC,
            embed_norm: true,
            post_norm: PostNorm::Vector,
            readout: Readout::Class,
            projected: true,
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
        let hf = Layout::new("hf").clip_blocks("vision_model.encoder.layers.").rules(&[
            ("^patch_embed.proj.weight", "vision_model.embeddings.patch_embedding.weight[2d]"),
            ("^cls_token", "vision_model.embeddings.class_embedding[rank1]"),
            ("^pos_embed", "vision_model.embeddings.position_embedding.weight[rank2]"),
            ("^embed_norm", "vision_model.pre_layrnorm"),
            ("^post_norm", "vision_model.post_layernorm"),
            ("^projection", "visual_projection"),
        ]);
        let openai = Layout::new("openai")
            .torch_attention(".attn.", ".attn.")
            .rules(&[
                (".norm1.", ".ln_1."),
                (".norm2.", ".ln_2."),
                (".mlp.fc1.", ".mlp.c_fc."),
                (".mlp.fc2.", ".mlp.c_proj."),
                ("^blocks.", "transformer.resblocks."),
                ("^patch_embed.proj.weight", "conv1.weight[2d]"),
                ("^cls_token", "class_embedding[rank1]"),
                ("^pos_embed", "positional_embedding[rank2]"),
                ("^embed_norm", "ln_pre"),
                ("^post_norm", "ln_post"),
                ("^projection.weight", "proj[in]"),
            ])
            .prefix("visual.");
        vec![hf, openai]
    }

    fn published(config: &Value) -> Option<Published> {
        let vision = part(config, &["clip"], "vision_config", &["clip_vision_model"])?;
        let patch = count_or(vision, "patch_size", 32);
        let pooled = count_or(vision, "projection_dim", 512);
        let options = json!({
            "size": {
                "patch": patch,
                "width": count_or(vision, "hidden_size", 768),
                "depth": count_or(vision, "num_hidden_layers", 12),
                "heads": count_or(vision, "num_attention_heads", 12),
                "hidden": count_or(vision, "intermediate_size", 3072),
                "pooled": count_or(config, "projection_dim", pooled),
            },
            "table_side": count_or(vision, "image_size", 224) / patch.max(1),
            "activation": word(vision, "hidden_act", "quick_gelu"),
            "eps": vision["layer_norm_eps"].as_f64().unwrap_or(1e-5),
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

/// Kind `models/clip`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("clip.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    use crate::archive::Archive;
    use crate::layers::image_tower::counted;
    use crate::{parameters, weights};

    /// Parameters of `CLIPVisionModelWithProjection` of the published checkpoints.
    #[test]
    fn presets_have_the_published_number_of_parameters() {
        for (preset, published) in [
            (Preset::B32, 87_849_216),
            (Preset::B16, 86_192_640),
            (Preset::L14, 303_966_208),
            (Preset::L14At336, 304_293_888),
        ] {
            let config = Config { preset, ..Config::default() };
            assert_eq!(counted(&config.tower()), published, "{preset:?}");
        }
    }

    #[test]
    fn keys_are_those_of_openai_and_of_transformers() {
        let [hf, openai] = &Config::default().layouts()[..] else { panic!("two layouts") };
        let slot = openai.slot("blocks.3.attn.k.bias");
        assert_eq!(slot.key, "visual.transformer.resblocks.3.attn.in_proj_bias");
        assert_eq!(slot.part, [1, 3]);
        assert!(openai.slot("projection.weight").straight);
        let slot = hf.slot("blocks.3.attn.proj.bias");
        assert_eq!(slot.key, "vision_model.encoder.layers.3.self_attn.out_proj.bias");
        assert_eq!(hf.slot("cls_token").file_shape(vec![1, 1, 8]), [8]);
    }

    #[test]
    fn weights_come_back_from_both_layouts() {
        let options = json!({ "size": { "width": 12, "depth": 1, "heads": 2, "pooled": 5 } });
        let config: Config = serde_json::from_value(options).expect("options");
        let config = Config { table_side: Some(2), ..config };
        let make = |seed| config.init(&Dims::new(), &Init::new(seed, "t", &Device::flex()));
        let (old, new) = (make(1), make(2));
        let folder = tempfile::tempdir().expect("a folder");
        for layout in config.layouts() {
            let mut values = parameters::values(&old);
            let piece = |parameter: parameters::Parameter| {
                let value = values.remove(&parameter.path).expect("a value").to_data();
                (layout.slot(&parameter.path), parameter, value.iter::<f32>().collect())
            };
            let stored = weights::assemble(parameters::list(&old).into_iter().map(piece).collect());
            let turned = if layout.name == "openai" { [12, 5] } else { [5, 12] };
            let matrix = stored.iter().find(|(key, _)| key.contains("proj") && key.len() < 25);
            assert_eq!(matrix.expect("the projection").1.0, turned, "{}", layout.name);
            let file = folder.path().join("file.safetensors");
            weights::write(stored, &file).expect("a file");
            let archive = Archive::open(&file).expect("a file");
            let (loaded, coverage) =
                weights::load(&archive, new.clone(), &config.layouts()).expect("weights");
            assert_eq!((coverage.layout.as_str(), coverage.unused.len()), (layout.name, 0));
            for (path, value) in parameters::values(&loaded) {
                let expected = parameters::values(&old)[&path].to_data();
                assert_eq!(value.to_data(), expected, "{path}");
            }
        }
    }

    #[test]
    fn a_number_that_does_not_fit_is_named_with_a_way_out() {
        let dims = Dims::from([("H".to_owned(), 8), ("W".to_owned(), 32)]);
        let config: Config = serde_json::from_value(json!({
            "size": { "tubelet": 2, "pool_heads": 3 }, "table_side": 0, "taps": 9,
        }))
        .expect("options");
        let found: Vec<_> = config.check(&dims).into_iter().map(|p| p.option).collect();
        for option in ["size.tubelet", "size.pool_heads", "table_side", "size.patch", "taps"] {
            assert!(found.iter().any(|o| o == option), "{option}: {found:?}");
        }
    }
}
