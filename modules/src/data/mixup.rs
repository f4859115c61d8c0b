//! Mixup and CutMix: each clip of a batch is mixed with another one, and so are their labels.
//!
//! | port    | dims        | what                                                         |
//! |---------|-------------|--------------------------------------------------------------|
//! | `video` | `B 3 T H W` | clips                                                        |
//! | `label` | `B`         | their classes                                                |
//! | `video` | `B 3 T H W` | clip i with clip B-1-i: their weighted sum, or a box of it   |
//! | `label` | `B`         | class of clip i                                              |
//! | `other` | `B`         | class of clip B-1-i                                          |
//! | `share` | `B`         | how much of clip i is left, 0..1                             |
//!
//! The share of a batch is drawn from Beta(a, a). A box covers `1 - share` of every frame, less what
//! lies outside; `share` is what is left in the end. `losses/cross_entropy` takes `other` and `share`.
//! Source: Zhang et al. 2018 (arXiv 1710.09412); Yun et al. 2019 (arXiv 1905.04899); recipes §4.1.

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::{Frame, Frames};
use schemas::node::{Forwarded, NodeError};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::rng::{Key, Rng};

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// a of the weighted sum; 0 turns it off.
    pub mixup: f64,
    /// a of the box; 0 turns it off.
    pub cutmix: f64,
    /// Share of the batches that are mixed at all.
    pub probability: f64,
    /// Share of these that get a box, when both are on.
    pub switch: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { mixup: 0.8, cutmix: 1.0, probability: 1.0, switch: 0.5 }
    }
}

/// How the clips of a batch are mixed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mix {
    Sum(f32),
    /// Rows and columns of the box.
    Box([[usize; 2]; 2]),
}

/// A draw from Beta(a, a), a up to 1 or little more (Jöhnk 1964).
fn beta(a: f64, rng: &mut Rng) -> f64 {
    loop {
        let [x, y] = [(); 2].map(|()| rng.uniform().powf(1.0 / a));
        if x + y <= 1.0 && x + y > 0.0 {
            return x / (x + y);
        }
    }
}

impl Config {
    fn draw(&self, height: usize, width: usize, rng: &mut Rng) -> Mix {
        if !rng.chance(self.probability) {
            return Mix::Sum(1.0);
        }
        let boxed = match (self.mixup > 0.0, self.cutmix > 0.0) {
            (true, true) => rng.chance(self.switch),
            (sum, _) => !sum,
        };
        if !boxed {
            return Mix::Sum(beta(self.mixup, rng) as f32);
        }
        let side = (1.0 - beta(self.cutmix, rng)).sqrt();
        let run = |extent: usize, rng: &mut Rng| {
            let (half, centre) = ((extent as f64 * side) as usize / 2, rng.below(extent));
            [centre.saturating_sub(half), (centre + half).min(extent)]
        };
        Mix::Box([run(height, rng), run(width, rng)])
    }
}

/// Mixes clips, whose pixels are in rows of `width` and planes of `height` rows.
fn mix(clips: &[f32], batch: usize, [height, width]: [usize; 2], how: Mix) -> (Vec<f32>, f32) {
    let size = clips.len() / batch.max(1);
    let clip = |sample: usize| &clips[sample * size..(sample + 1) * size];
    let mut mixed = Vec::with_capacity(clips.len());
    let share = match how {
        Mix::Sum(share) => share,
        Mix::Box([rows, columns]) => {
            let area = (rows[1] - rows[0]) * (columns[1] - columns[0]);
            1.0 - area as f32 / (height * width) as f32
        }
    };
    for sample in 0..batch {
        let (own, other) = (clip(sample), clip(batch - 1 - sample));
        match how {
            Mix::Sum(share) => {
                let both = own.iter().zip(other);
                mixed.extend(both.map(|(own, other)| share * own + (1.0 - share) * other));
            }
            Mix::Box([rows, columns]) => {
                let start = mixed.len();
                mixed.extend_from_slice(own);
                let rows_of = mixed[start..].chunks_exact_mut(width).zip(other.chunks_exact(width));
                for (row, (to, from)) in rows_of.enumerate() {
                    if (rows[0]..rows[1]).contains(&(row % height)) {
                        let run = columns[0]..columns[1];
                        to[run.clone()].copy_from_slice(&from[run]);
                    }
                }
            }
        }
    }
    (mixed, share)
}

impl Host for Config {
    type State = ();

    fn ports(&self, _: &[String]) -> Ports {
        Ports::default()
            .stopped("video", "B 3 T H W")
            .about("clips")
            .stopped("label", "B")
            .int()
            .about("their classes")
            .plain("video", "B 3 T H W")
            .about("mixed clips")
            .plain("label", "B")
            .int()
            .about("class of the first part")
            .plain("other", "B")
            .int()
            .about("class of the second part")
            .plain("share", "B")
            .about("how much of the first part is left")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        for (name, value) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            // Smaller numbers mix nothing, and their draws would not end.
            if value != 0.0 && !(0.01..=4.0).contains(&value) {
                let message = format!("`{name}` is {value}, but must be 0, or from 0.01 to 4");
                problems.push(OptionProblem::new(name, message, "0.8 and 1 are usual"));
            }
        }
        if self.mixup == 0.0 && self.cutmix == 0.0 {
            let message = "both ways of mixing are off";
            problems.push(OptionProblem::new("mixup", message, "leave the node out"));
        }
        for (name, value) in [("probability", self.probability), ("switch", self.switch)] {
            if !(0.0..=1.0).contains(&value) {
                let message = format!("`{name}` is {value}, but must be from 0 to 1");
                problems.push(OptionProblem::new(name, message, "write, for example, 0.5"));
            }
        }
        problems
    }

    fn open(&self, _: &Dims, _: &Key) -> Result<(), NodeError> {
        Ok(())
    }

    fn forward(&self, (): &mut (), inputs: Frames, call: &Call) -> Result<Forwarded, NodeError> {
        let port = |name: &str| {
            inputs.get(name).ok_or_else(|| NodeError::MissingInput { port: name.to_owned() })
        };
        let (video, label) = (port("video")?, port("label")?.to_i64());
        let shape = video.shape().to_vec();
        let [batch, _, _, height, width] = shape[..] else {
            let found = format!("{shape:?}");
            let expected = "B 3 T H W".to_owned();
            return Err(NodeError::Mismatch { port: "video".to_owned(), found, expected });
        };
        let how = self.draw(height, width, &mut call.key.rng());
        let (mixed, share) = mix(&video.to_f32(), batch, [height, width], how);
        let other: Vec<i64> = label.iter().rev().copied().collect();
        let frames = Frames::from([
            ("video".to_owned(), Frame::f32(shape, mixed)),
            ("label".to_owned(), Frame::i64([batch], label)),
            ("other".to_owned(), Frame::i64([batch], other)),
            ("share".to_owned(), Frame::f32([batch], vec![share; batch])),
        ]);
        Ok(Forwarded { frames, ..Forwarded::default() })
    }
}

/// Kind `data/mixup`.
pub const ENTRY: Entry = kind::host::<Config>(include_str!("mixup.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_holds_the_other_clip_and_the_share_is_what_is_left() {
        let clips: Vec<f32> = (0..2).flat_map(|clip| vec![clip as f32; 12]).collect();
        let (mixed, share) = mix(&clips, 2, [3, 4], Mix::Box([[1, 3], [0, 2]]));
        assert_eq!(mixed[..12], [0., 0., 0., 0., 1., 1., 0., 0., 1., 1., 0., 0.]);
        assert!((share - 8.0 / 12.0).abs() < 1e-6);
        let (mixed, share) = mix(&clips, 2, [3, 4], Mix::Sum(0.75));
        assert_eq!((mixed[0], mixed[12], share), (0.25, 0.75, 0.75));
    }

    #[test]
    fn shares_are_drawn_from_their_distribution() {
        let mut rng = Key::new(1, "beta").rng();
        let draws: Vec<f64> = (0..4000).map(|_| beta(0.8, &mut rng)).collect();
        let mean = draws.iter().sum::<f64>() / 4000.0;
        let variance = draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / 4000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert!((variance - 1.0 / (4.0 * 2.6)).abs() < 0.01, "{variance}"); // 1 / (4 (2 a + 1))
    }

    #[test]
    fn batches_are_left_alone_or_mixed_as_often_as_asked() {
        let config = Config { probability: 0.25, ..Config::default() };
        let key = Key::new(1, "mixup");
        let draw = |n: u64| config.draw(8, 8, &mut key.with_number(n).rng());
        let plain = (0..1000).filter(|n| draw(*n) == Mix::Sum(1.0)).count();
        assert!((650..850).contains(&plain), "{plain}");
    }
}
