//! From decoded frames to the numbers a model reads: crop, resize, flip, normalise.

pub mod crop;
pub mod resize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crop::{Crop, Plan};
pub use resize::{Filter, Region, Resizer, View};

use super::decode::Frames;
use super::error::VideoError;
use crate::rng::Rng;

/// Means and deviations of red, green and blue in 0..1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Normalisation {
    /// Subtracted from a value.
    pub mean: [f32; 3],
    /// Then divided by.
    pub std: [f32; 3],
}

impl Normalisation {
    /// ImageNet's statistics.
    pub const IMAGENET: Self = Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
    /// CLIP's statistics.
    pub const CLIP: Self = Self {
        mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
        std: [0.268_629_55, 0.261_302_6, 0.275_777_1],
    };
    /// To -1..1.
    pub const HALF: Self = Self { mean: [0.5; 3], std: [0.5; 3] };

    /// Word for these numbers, the value of the tag `pixels` of a port; none for others.
    pub fn name(&self) -> Option<&'static str> {
        let known =
            [(Self::IMAGENET, "imagenet"), (Self::CLIP, "clip"), (Self::HALF, "minus_one_to_one")];
        known.into_iter().find(|(numbers, _)| numbers == self).map(|(_, name)| name)
    }

    /// What is wrong with the numbers.
    pub fn problem(&self) -> Option<String> {
        let Self { mean, std } = self;
        if !std.iter().all(|value| value.is_finite() && *value > 0.0) {
            return Some(format!("`std` is {std:?}, but must be finite and above 0"));
        }
        let finite = mean.iter().all(|value| value.is_finite());
        (!finite).then(|| format!("`mean` is {mean:?}, but must be finite"))
    }
}

/// When a resized picture becomes bytes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Never.
    Float,
    /// After both passes, half to even.
    Once,
    /// After each pass, in fixed point: torchvision's bytes, and nearly Pillow's.
    #[default]
    Native,
}

/// What happens to the frames of a clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transform {
    /// Rows and columns of the result in pixels.
    pub size: usize,
    /// Which part is kept.
    pub crop: Crop,
    /// The interpolation.
    pub filter: Filter,
    /// Whether the filter widens when scaling down.
    pub antialias: bool,
    /// When the result is rounded.
    pub rounding: Rounding,
    /// Probability of exchanging left and right. Use 0 where direction is the label.
    pub flip: f64,
    /// Colour statistics.
    pub normalisation: Normalisation,
}

impl Default for Transform {
    fn default() -> Self {
        Self {
            size: 224,
            crop: Crop::Centre { short: None },
            filter: Filter::Bicubic,
            antialias: true,
            rounding: Rounding::default(),
            flip: 0.0,
            normalisation: Normalisation::IMAGENET,
        }
    }
}

impl Transform {
    /// Draws one plan and applies it to all frames: `[C, T, H, W]`, C = 3.
    pub fn apply(
        &self,
        frames: &Frames,
        view: usize,
        rng: &mut Rng,
    ) -> Result<Vec<f32>, VideoError> {
        let size = (frames.height, frames.width);
        let mut plan = Plan::draw(&self.crop, self.size, size, view, rng)?;
        plan.flip = rng.chance(self.flip);
        Ok(self.apply_plan(frames, &plan))
    }

    /// Applies a given plan to all frames: `[C, T, H, W]`, C = 3.
    pub fn apply_plan(&self, frames: &Frames, plan: &Plan) -> Vec<f32> {
        let (height, width) = plan.canvas;
        let plane = height * width;
        let mut clip = vec![0.0; 3 * frames.count * plane];
        let from = (plan.source.height, plan.source.width);
        let resizer =
            Resizer::new(from, plan.resize, self.filter, self.antialias).window(plan.window);
        let Normalisation { mean, std } = self.normalisation;
        if (plan.window.height, plan.window.width) != plan.canvas {
            for (channel, all) in clip.chunks_exact_mut((frames.count * plane).max(1)).enumerate() {
                all.fill((0.0 - mean[channel]) / std[channel]);
            }
        }
        let float = |channel: usize, value: f32| (value / 255.0 - mean[channel]) / std[channel];
        let byte = |channel: usize| std::array::from_fn(|value| float(channel, value as f32));
        let bytes: [[f32; 256]; 3] = std::array::from_fn(byte);
        let byte = |channel: usize, value: u8| bytes[channel][usize::from(value)];
        for number in 0..frames.count {
            let view = View::new(frames.frame(number), frames.width, 3, plan.source);
            let frame = (number, frames.count);
            match self.rounding {
                Rounding::Float => place(&mut clip, frame, plan, &resizer.float(view), float),
                Rounding::Once => place(&mut clip, frame, plan, &resizer.rounded(view), byte),
                Rounding::Native => place(&mut clip, frame, plan, &resizer.native(view), byte),
            }
        }
        clip
    }
}

/// Writes the pixels `[H, W, 3]` of frame (number, of how many) into a clip `[3, T, H, W]`.
fn place<T: Copy>(
    clip: &mut [f32],
    (number, count): (usize, usize),
    plan: &Plan,
    pixels: &[T],
    normalise: impl Fn(usize, T) -> f32,
) {
    let (height, width) = plan.canvas;
    for channel in 0..3 {
        let plane = &mut clip[(channel * count + number) * height * width..][..height * width];
        let rows = pixels.chunks_exact(plan.window.width * 3);
        for (to, from) in plane.chunks_exact_mut(width).zip(rows) {
            let values = from.chunks_exact(3).map(|pixel| normalise(channel, pixel[channel]));
            if plan.flip {
                to.iter_mut().rev().zip(values).for_each(|(to, value)| *to = value);
            } else {
                to.iter_mut().zip(values).for_each(|(to, value)| *to = value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Key;

    fn gradient() -> Frames {
        let pixel = |at: usize| [(at % 7 * 30) as u8, (at / 7 * 40) as u8, 9];
        let frame: Vec<u8> = (0..35).flat_map(pixel).collect();
        Frames { data: [frame.clone(), frame].concat(), count: 2, height: 5, width: 7 }
    }

    #[test]
    fn all_frames_of_a_clip_are_cut_alike_and_a_flip_mirrors() {
        let transform = Transform {
            size: 4,
            crop: Crop::RandomResized { scale: [0.3, 0.9], ratio: [0.5, 2.0] },
            ..Transform::default()
        };
        let mut rng = Key::new(3, "clip").rng();
        let clip = transform.apply(&gradient(), 0, &mut rng).unwrap();
        assert_eq!(clip[..16], clip[16..32]);
        let plan = Plan::scale(Region::whole(5, 7), (4, 4));
        let straight = transform.apply_plan(&gradient(), &plan);
        let mirrored = transform.apply_plan(&gradient(), &Plan { flip: true, ..plan });
        let mut turned = straight.clone();
        turned.chunks_exact_mut(4).for_each(<[f32]>::reverse);
        assert_eq!(mirrored, turned);
    }

    #[test]
    fn a_letterbox_is_filled_with_normalised_black() {
        let transform = Transform {
            size: 7,
            crop: Crop::Letterbox,
            normalisation: Normalisation::HALF,
            ..Transform::default()
        };
        let clip = transform.apply(&gradient(), 0, &mut Key::new(4, "clip").rng()).unwrap();
        assert_eq!(clip.len(), 3 * 2 * 49);
        assert_eq!(clip[35..49], [-1.0; 14]);
        assert_eq!(clip[1], 30.0 / 255.0 * 2.0 - 1.0);
    }
}
