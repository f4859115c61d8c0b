//! SigLIP 2 NaFlex image tower: pictures of any shape as patches in a row, padded to one length.
//!
//! | port        | dims          | what                                                       |
//! |-------------|---------------|------------------------------------------------------------|
//! | `patches`   | `B M C`       | patches of a picture, row by row, padded; C = 3 p p        |
//! | `shapes`    | `B 2`         | rows and columns of patches of each picture                |
//! | `mask`      | `B M`         | optional: 1 = patch, 0 = padding; else from `shapes`       |
//! | `video`     | `B 3 T H W`   | instead of `patches`: clips, frame by frame                |
//! | `layers`    | `K B N D`     | tapped residual stream, ascending, as unit vectors         |
//! | `tokens`    | `B N D`       | after the last block and its norm                          |
//! | `features`  | `B D`         | attention pooling, mean over frames                        |
//! | `pooled`    | `B D`         | the same as unit vectors                                   |
//! | `attention` | `B T A`       | pooling attention of the patches, head mean; rows sum to 1 |
//!
//! With `patches` N = A = M and T = 1; padding has no meaning in `layers` and `tokens`. With `video`
//! N = T A, A = H/p W/p. Numbers of a patch run row by row, colours fastest. The square position table
//! is stretched to the grid of each picture, bilinearly with antialiasing. Pixels of `video` arrive
//! with ImageNet's mean and deviation and go over to -1..1 inside; `input: own` leaves them. Patches
//! are read as they are. Checkpoints of fixed resolution are `models/siglip`.
//! Source: Tschannen et al. 2025, "SigLIP 2" (arXiv 2502.14786).

use burn::tensor::{Int, Tensor, TensorData};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::siglip::{layout, parts, published_size};
use crate::init::Init;
use crate::kind::{self, Call, Kind, Names, Published};
use crate::layers::image_tower::{ImageTower, Input, Patches, TowerConfig};
use crate::layers::image_tower_ports::REFERENCE_NAMES;
use crate::layers::learned_table::Stretch;
use crate::layers::mlp::Activation;
use crate::layers::size::{Size, SizeOptions};
use crate::layout::Layout;
use crate::published::{count_or, part, word};
use crate::tensors::Tensors;

/// Published sizes, and one for laptops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// 12 blocks of width 768, patches of 16 pixels.
    Base,
    /// 27 blocks of width 1152, patches of 16 pixels.
    So400m,
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
    /// Drop path rate of the last block, when the node trains.
    pub drop_path: f64,
    /// Side of the square grid of the position table; 16, and 4 with `tiny`, when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_side: Option<usize>,
    /// How the pixels of `video` are normalised.
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
            drop_path: 0.0,
            table_side: None,
            input: Input::default(),
            activation: Activation::GeluTanh,
            eps: 1e-6,
        }
    }
}

impl Config {
    /// All parts of the tower.
    pub fn tower(&self) -> TowerConfig {
        let at_16 = |size: Size| Size { patch: 16, ..size };
        let (preset, side) = match self.preset {
            Preset::Base => (at_16(Size::vit(12, 768, 12, 3072)), 16),
            Preset::So400m => (at_16(Size::vit(27, 1152, 16, 4304)), 16),
            Preset::Tiny => (Size::TINY, 4),
        };
        let mut tower =
            parts(preset, self.table_side.or(Some(side)), &self.size, (self.activation, self.eps));
        tower.blocks.drop_path = self.drop_path;
        TowerConfig {
            patches: Patches::Matrix,
            drops_rest: false,
            stretch: Stretch::BILINEAR,
            input: self.input,
            taps: self.taps.unwrap_or(tower.taps),
            tap_interval: self.tap_interval,
            ..tower
        }
    }
}

/// Grids of patches, from `shapes`; each must fit into a row.
fn grids(shapes: &Tensor<2, Int>, row: usize) -> Result<Vec<[usize; 2]>, NodeError> {
    let data: Vec<i64> = shapes.to_data().iter::<i64>().collect();
    let one = |(sample, shape): (usize, &[i64])| {
        let [rows, columns] = [shape[0], shape[1]];
        let fits = rows > 0 && columns > 0 && rows.saturating_mul(columns) <= row as i64;
        fits.then_some([rows as usize, columns as usize]).ok_or_else(|| NodeError::Data {
            what: "port `shapes`".to_owned(),
            reason: format!(
                "sample {sample} has {rows} x {columns} patches, but a row holds 1 to {row}; cut \
                 the picture to fewer patches, or make rows longer"
            ),
        })
    };
    data.chunks_exact(2).enumerate().map(one).collect()
}

/// The first patches of each row are there, the rest is padding.
fn present(grids: &[[usize; 2]], like: &Tensor<2, Int>, row: usize) -> Tensor<2, Int> {
    let one = |[rows, columns]: &[usize; 2]| {
        let there = rows * columns;
        (0..row).map(move |place| i64::from(place < there))
    };
    let data: Vec<i64> = grids.iter().flat_map(one).collect();
    Tensor::from_data(TensorData::new(data, [grids.len(), row]), &like.device())
}

impl Kind for Config {
    type Module = ImageTower;

    fn ports(&self, wired: &[String]) -> Ports {
        let packed = wired.iter().any(|port| ["patches", "shapes"].contains(&port.as_str()));
        if packed { self.tower().packed_ports() } else { self.tower().video_ports() }
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
        let Some(patches) = inputs.take_if::<Tensor<3>>("patches")? else {
            return Ok(module.watch(inputs.take("video")?, call));
        };
        let [batch, row, _] = patches.dims();
        let shapes: Tensor<2, Int> = inputs.take("shapes")?;
        let grids = grids(&shapes, row)?;
        let mask = match inputs.take_if("mask")? {
            Some(mask) => mask,
            None => present(&grids, &shapes, row),
        };
        let found = module.look(module.embed_packed(patches, &grids), Some(&mask), call);
        Ok(module.outputs(found, [batch, 1]))
    }

    fn layouts(&self) -> Vec<Layout> {
        vec![layout("hf", "vision_model."), layout("tower", "")]
    }

    fn published(config: &Value) -> Option<Published> {
        let vision = part(config, &["siglip2"], "vision_config", &["siglip2_vision_model"])?;
        let options = json!({
            "size": published_size(vision),
            "table_side": count_or(vision, "num_patches", 256).isqrt(),
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

/// Kind `models/siglip2`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("siglip2.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::image_tower::counted;
    use crate::rng::Key;
    use burn::tensor::{Device, Distribution};
    use schemas::node::At;

    /// Millions of parameters of the image towers in timm's table of models.
    #[test]
    fn presets_have_the_published_number_of_parameters() {
        for (preset, published) in [(Preset::Base, 92.93), (Preset::So400m, 427.89)] {
            let config = Config { preset, ..Config::default() };
            let counted = counted(&config.tower()) as f64 / 1e6;
            assert!((counted - published).abs() < 0.006, "{preset:?}: {counted}");
        }
    }

    fn run(inputs: Tensors) -> Result<Tensors, NodeError> {
        let options = json!({ "size": { "patch": 4, "width": 16, "heads": 2, "depth": 2 } });
        let config: Config = serde_json::from_value(options).expect("options");
        let dims = Dims::from([("H".to_owned(), 8), ("W".to_owned(), 12)]);
        let module = config.init(&dims, &Init::new(1, "tower", &Device::flex()));
        config.forward(&module, inputs, &Call::new(Key::new(1, "call"), At::default()))
    }

    #[test]
    fn a_clip_is_seen_as_its_patches_in_a_row_and_padding_as_nothing() {
        let device = Device::flex();
        let video =
            Tensor::<5>::random([1, 3, 1, 8, 12], Distribution::Uniform(-1.0, 1.0), &device);
        let options = json!({ "size": { "patch": 4 } });
        let config: Config = serde_json::from_value(options).expect("options");
        let tower = config.tower().init(&Dims::new(), &Init::new(1, "t", &device));
        let pictures = tower.pictures(video.clone());
        let cut = crate::layers::patch_embed::patches(pictures, [1, 4, 4]).swap_dims(2, 3);
        let cut = cut.reshape([1, 6, 48]);
        let padded = Tensor::cat(vec![cut, Tensor::ones([1, 2, 48], &device)], 1);
        let shapes = Tensor::<2, Int>::from_data([[2, 3]], &device);
        let packed = Tensors::of("patches", padded.clone()).with("shapes", shapes);
        let mut packed = run(packed).expect("outputs");
        let mut plain = run(Tensors::of("video", video)).expect("outputs");
        let [a, b]: [Tensor<2>; 2] = [&mut packed, &mut plain].map(|t| t.take("pooled").unwrap());
        assert!((a - b).abs().max().into_scalar::<f32>() < 1e-5);
        let shapes = Tensor::<2, Int>::from_data([[3, 3]], &device);
        let error = run(Tensors::of("patches", padded).with("shapes", shapes)).unwrap_err();
        assert!(error.to_string().contains("3 x 3 patches"), "{error}");
    }
}
