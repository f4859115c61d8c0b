//! Masked pixel loss: painted patches against the pixels of the clip.
//!
//! | port        | dims        | what                                                         |
//! |-------------|-------------|--------------------------------------------------------------|
//! | `predicted` | `B M C`     | painted patches: frame, row, column, then RGB                |
//! | `video`     | `B 3 T H W` | the clip: RGB, ImageNet mean and deviation                   |
//! | `decode`    | `B M`       | indices of the painted patches                               |
//! | `visible`   | `B V`       | optional: indices of what the encoder saw; they do not count |
//! | `loss`      | `1`         | mean squared error over pixels and counted patches           |
//!
//! The target is a patch's pixels in 0..1. With `normalise` each channel of each patch is given
//! mean 0 and deviation 1 (unbiased, plus 1e-6) first: who paints nothing gets 1 for a patch with
//! structure and 0 for a flat one. Every counted patch of the batch weighs the same.
//! Source: Tong et al. 2022, "VideoMAE" (arXiv 2203.12602), section 3; Wang et al. 2023,
//! "VideoMAE V2" (arXiv 2303.16727), section 3.2.

use burn::module::Module;
use burn::tensor::{FloatDType, Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::norm::standard_along;
use crate::layers::patch_embed::patches;
use crate::layers::size::{check_named, side};
use crate::layers::tokens;
use crate::tensors::Tensors;
use crate::video::transform::Normalisation;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whether each channel of a patch is normalised.
    pub normalise: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { normalise: true }
    }
}

/// No parameters.
#[derive(Module, Debug)]
pub struct MaskedPixel {
    normalise: bool,
    /// Frames, rows and columns of a patch.
    cut: [usize; 3],
}

impl MaskedPixel {
    /// Patches `[B, M, C]` of a clip `[B, 3, T, H, W]`, as they should be painted.
    pub fn targets(&self, video: Tensor<5>, decode: Tensor<2, Int>) -> Tensor<3> {
        let all = patches(video.cast(FloatDType::F32), self.cut);
        let [batch, number, channels, pixels] = all.dims();
        let chosen = tokens::gather(all.reshape([batch, number, channels * pixels]), decode);
        let count = chosen.dims()[1];
        let chosen = chosen.reshape([batch, count, channels, pixels]);
        let along = |values: [f32; 3]| {
            Tensor::<1>::from_data(values, &chosen.device()).reshape([1, 1, 3, 1])
        };
        let Normalisation { mean, std } = Normalisation::IMAGENET;
        let mut x = chosen.clone() * along(std) + along(mean);
        if self.normalise {
            x = standard_along(x, 3);
        }
        x.swap_dims(2, 3).reshape([batch, count, channels * pixels])
    }

    /// Mean squared error over pixels, and over all patches that count. `predicted` and
    /// `targets`: `[B, M, C]`, `counts`: 1 or 0 for each patch, `[B, M]`.
    pub fn forward(
        &self,
        predicted: Tensor<3>,
        targets: Tensor<3>,
        counts: Option<Tensor<2>>,
    ) -> Tensor<1> {
        let squares = (predicted.cast(FloatDType::F32) - targets).square();
        let patches: Tensor<2> = squares.mean_dim(2).squeeze_dim(2);
        match counts {
            Some(counts) => (patches * counts.clone()).sum() / counts.sum().clamp_min(1.0),
            None => patches.mean(),
        }
    }
}

/// 1 for each of `decode` (`[B, M]`) that is not in `visible` (`[B, V]`), else 0; `[B, M]`.
pub fn unseen(decode: Tensor<2, Int>, visible: Tensor<2, Int>) -> Tensor<2> {
    let ([batch, count], seen) = (decode.dims(), visible.dims()[1]);
    let decode = decode.reshape([batch, count, 1]).expand([batch, count, seen]);
    let visible = visible.reshape([batch, 1, seen]).expand([batch, count, seen]);
    let found: Tensor<2> = decode.equal(visible).float().sum_dim(2).squeeze_dim(2);
    found.neg().add_scalar(1.0)
}

impl Config {
    /// Frames, rows and columns of a patch, when the lattice divides the clip.
    fn cut(dims: &Dims) -> Option<[usize; 3]> {
        let pairs = [("T", "t"), ("H", "h"), ("W", "w")];
        let one = |(video, lattice)| {
            let (all, by) = (side(dims, video), side(dims, lattice));
            (by > 0 && all.is_multiple_of(by)).then(|| all / by)
        };
        let [Some(t), Some(p), Some(q)] = pairs.map(one) else { return None };
        Some([t, p, q])
    }
}

impl Kind for Config {
    type Module = MaskedPixel;

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .input("predicted", "B M C")
            .lattice("t h w")
            .about("painted patches")
            .stopped("video", "B 3 T H W")
            .about("RGB, ImageNet mean and deviation")
            .stopped("decode", "B M")
            .int()
            .lattice("t h w")
            .about("indices of the painted patches")
            .stopped("visible", "B V")
            .int()
            .optional()
            .lattice("t h w")
            .about("indices of what the encoder saw, which do not count")
            .loss("loss")
            .about("mean squared error over pixels and counted patches")
    }

    fn check(&self, dims: &Dims) -> Vec<OptionProblem> {
        if !dims.contains_key("C") {
            return Vec::new();
        }
        let Some(cut) = Self::cut(dims) else {
            let message = "the lattice of the painted patches does not divide the clip";
            let hint = "connect the clip that the mask and the encoder are made for";
            return vec![OptionProblem::new("", message, hint)];
        };
        let mut problems = Vec::new();
        let (painted, pixels) = (side(dims, "C"), 3 * cut.iter().product::<usize>());
        if painted != pixels {
            let message = format!("a patch is painted with {painted} numbers, but has {pixels}");
            let hint = "give decoder, encoder and masks the same `patch` and `tubelet`";
            problems.push(OptionProblem::new("", message, hint));
        }
        if self.normalise && pixels == 3 {
            let message = "a patch of one pixel has no deviation";
            problems.push(OptionProblem::new("normalise", message, "set it to false"));
        }
        let all = side(dims, "t") * side(dims, "h") * side(dims, "w");
        problems.extend(check_named("painted", side(dims, "M"), all));
        problems
    }

    fn init(&self, dims: &Dims, _: &Init) -> MaskedPixel {
        let cut = Self::cut(dims).expect("the check refuses other dims");
        MaskedPixel { normalise: self.normalise, cut }
    }

    fn forward(
        &self,
        module: &MaskedPixel,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let decode: Tensor<2, Int> = inputs.take("decode")?;
        let visible: Option<Tensor<2, Int>> = inputs.take_if("visible")?;
        let counts = visible.map(|visible| unseen(decode.clone(), visible));
        let targets = module.targets(inputs.take("video")?, decode);
        Ok(Tensors::of("loss", module.forward(inputs.take("predicted")?, targets, counts)))
    }
}

/// Kind `losses/masked_pixel`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("masked_pixel.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// One clip of two patches of 1 x 2 pixels: red is 0.1 and 0.3, then 0.5 and 0.9.
    fn clip() -> Tensor<5> {
        let Normalisation { mean, std } = Normalisation::IMAGENET;
        let channel = |c: usize| {
            let scale = [1.0, 0.5, 0.25][c];
            [[[0.1, 0.3, 0.5, 0.9].map(|value: f32| (value * scale - mean[c]) / std[c])]]
        };
        Tensor::from_data([[channel(0), channel(1), channel(2)]], &Device::flex())
    }

    fn index(values: [i64; 2]) -> Tensor<2, Int> {
        Tensor::from_data([values], &Device::flex())
    }

    fn near(found: Tensor<3>, expected: &[f32]) {
        let found = found.into_data().try_to_vec::<f32>().unwrap();
        assert_eq!(found.len(), expected.len());
        let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(off < 1e-4, "{found:?}");
    }

    #[test]
    fn targets_are_pixels_in_0_to_1_with_their_colours_side_by_side() {
        let loss = MaskedPixel { normalise: false, cut: [1, 1, 2] };
        let second = [0.5, 0.25, 0.125, 0.9, 0.45, 0.225];
        let first = [0.1, 0.05, 0.025, 0.3, 0.15, 0.075];
        near(loss.targets(clip(), index([1, 0])), &[second, first].concat());
    }

    #[test]
    fn normalised_channels_have_the_same_target_whatever_their_scale() {
        let loss = MaskedPixel { normalise: true, cut: [1, 1, 2] };
        let half = 0.5f32.sqrt(); // two values are sqrt(2) unbiased deviations apart
        let one = [-half, -half, -half, half, half, half];
        near(loss.targets(clip(), index([0, 1])), &[one, one].concat());
    }

    #[test]
    fn patches_that_the_encoder_saw_do_not_count() {
        let device = Device::flex();
        let loss = MaskedPixel { normalise: false, cut: [1, 1, 1] };
        let predicted = Tensor::<3>::from_data([[[1.0, 1.0], [3.0, 1.0]]], &device);
        let targets = predicted.zeros_like();
        let value =
            |counts| loss.forward(predicted.clone(), targets.clone(), counts).into_scalar::<f32>();
        assert_eq!(value(None), 3.0);
        let visible = Tensor::<2, Int>::from_data([[7]], &device);
        assert_eq!(value(Some(unseen(index([7, 2]), visible.clone()))), 5.0);
        assert_eq!(value(Some(unseen(index([2, 7]), visible))), 1.0);
    }

    #[test]
    fn a_decoder_of_another_patch_is_refused() {
        let sides = [("T", 2), ("H", 8), ("W", 8), ("t", 1), ("h", 2), ("w", 2), ("M", 3)];
        let mut dims: Dims = sides.map(|(name, value)| (name.to_owned(), value)).into();
        dims.insert("C".to_owned(), 96);
        assert_eq!(Config::default().check(&dims), []);
        dims.insert("C".to_owned(), 48);
        assert_eq!(Config::default().check(&dims).len(), 1);
    }
}
