//! Moving shapes drawn in memory: look and motion are independent, no single frame tells a motion.
//!
//! | port         | dims        | what                                                    |
//! |--------------|-------------|---------------------------------------------------------|
//! | `video`      | `B 3 T S S` | RGB, normalised with ImageNet's statistics              |
//! | `sparse`     | `B 3 T/2 S S` | every second frame of `video`, from the first         |
//! | `motion`     | `B`         | motion class; 2k and 2k + 1 are time reversals          |
//! | `appearance` | `B`         | appearance class: shape and colour                      |
//! | `sample`     | `B`         | number of the clip, from 0                              |
//!
//! The clips are those of `playhouse data shapes` with the same options, before compression.

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::{Frame, Frames};
use schemas::node::{Forwarded, NodeError};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::rng::Key;
use crate::shapes::{self, Options, ShapeClip};
use crate::video::named::one_line;
use crate::video::transform::{Plan, Region};
use crate::video::{Rounding, Transform};

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Clips per microbatch.
    pub batch: usize,
    /// Clips per epoch.
    pub clips: usize,
    /// `train` and `test` are drawn apart.
    pub split: String,
    /// Rows and columns in pixels; even.
    pub size: usize,
    /// Frames per clip.
    pub frames: usize,
    /// Motion classes; even, at most 14.
    pub motions: usize,
    /// Appearance classes; at most 24.
    pub appearances: usize,
    /// Names the data set; not the experiment's seed, so that seeds share their data.
    pub seed: u64,
    /// A permutation per epoch, or ascending numbers.
    pub shuffle: bool,
    /// Textures, patterned backgrounds and still dots.
    pub clutter: bool,
}

impl Default for Config {
    fn default() -> Self {
        let Options { train, size, frames, motions, appearances, seed, .. } = Options::default();
        let (batch, split, shuffle) = (8, "train".to_owned(), true);
        let clutter = true;
        let clips = train;
        Self { batch, clips, split, size, frames, motions, appearances, seed, shuffle, clutter }
    }
}

impl Config {
    fn options(&self) -> Options {
        let Self { size, frames, motions, appearances, seed, clutter, .. } = *self;
        Options { size, frames, motions, appearances, seed, clutter, ..Options::default() }
    }

    /// The clip numbers of a microbatch.
    fn numbers(&self, key: &Key, call: &Call) -> Vec<usize> {
        let first = call.number() * self.batch as u64;
        let mut order = (u64::MAX, Vec::new());
        let number = |position: u64| {
            let (epoch, rank) = (position / self.clips as u64, position as usize % self.clips);
            if !self.shuffle {
                return rank;
            }
            if order.0 != epoch {
                order = (epoch, key.with_number(epoch).rng().permutation(self.clips));
            }
            order.1[rank]
        };
        (first..first + self.batch as u64).map(number).collect()
    }
}

impl Host for Config {
    type State = Key;

    fn ports(&self, _: &[String]) -> Ports {
        let Self { batch, frames, size, motions, appearances, .. } = self;
        Ports::default()
            .plain("video", format!("{batch} 3 {frames} {size} {size}"))
            .tag("pixels", "imagenet")
            .about("RGB, normalised with ImageNet's statistics")
            .plain("sparse", format!("{batch} 3 {frames}/2 {size} {size}"))
            .tag("pixels", "imagenet")
            .about("every second frame of `video`")
            .plain("motion", format!("{batch}"))
            .int()
            .about(&format!("motion class, 0 to {}", motions.saturating_sub(1)))
            .plain("appearance", format!("{batch}"))
            .int()
            .about(&format!("appearance class, 0 to {}", appearances.saturating_sub(1)))
            .plain("sample", format!("{batch}"))
            .int()
            .about("number of the clip")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        for (option, value, high) in [("batch", self.batch, 65_536), ("clips", self.clips, 1 << 24)]
        {
            if !(1..=high).contains(&value) {
                let message = format!("`{option}` is {value}, but must be from 1 to {high}");
                let hint = format!("give a number from 1 to {high}");
                problems.push(OptionProblem::new(option, message, hint));
            }
        }
        if !["train", "test"].contains(&self.split.as_str()) {
            let message = format!("there is no split `{}`", one_line(&self.split));
            problems.push(OptionProblem::new("split", message, "write `train` or `test`"));
        }
        if !self.frames.is_multiple_of(2) {
            let message = format!("`frames` is {}, but must be even", self.frames);
            problems.push(OptionProblem::new("frames", message, "give an even number"));
        }
        if let Err(shapes::ShapesError::Option { option, value, allowed }) = self.options().check()
        {
            let message = format!("`{option}` is {value}, but must be {allowed}");
            problems.push(OptionProblem::new(option, message, "give an allowed number"));
        }
        problems
    }

    fn open(&self, _: &Dims, key: &Key) -> Result<Key, NodeError> {
        Ok(key.clone())
    }

    fn forward(&self, key: &mut Key, _: Frames, call: &Call) -> Result<Forwarded, NodeError> {
        let numbers = self.numbers(key, call);
        let options = self.options();
        let draw = |&number: &usize| shapes::clip(&options, &self.split, number);
        let clips: Vec<ShapeClip> = numbers.iter().map(draw).collect();
        let plan = Plan::scale(Region::whole(self.size, self.size), (self.size, self.size));
        let transform = Transform { rounding: Rounding::Native, ..Transform::default() };
        let video: Vec<f32> =
            clips.iter().flat_map(|clip| transform.apply_plan(&clip.frames, &plan)).collect();
        let frames = video.chunks(self.size * self.size).enumerate();
        let second = frames.filter(|(i, _)| (i % self.frames).is_multiple_of(2));
        let sparse: Vec<f32> = second.flat_map(|(_, frame)| frame.iter().copied()).collect();
        let half = vec![self.batch, 3, self.frames / 2, self.size, self.size];
        let shape = vec![self.batch, 3, self.frames, self.size, self.size];
        let column = |of: &dyn Fn(&ShapeClip) -> usize| {
            Frame::i64([self.batch], clips.iter().map(|clip| of(clip) as i64))
        };
        let mut forwarded = Forwarded::default();
        let frames = [
            ("video", Frame::f32(shape, video)),
            ("sparse", Frame::f32(half, sparse)),
            ("motion", column(&|clip| clip.motion)),
            ("appearance", column(&|clip| clip.appearance)),
            ("sample", Frame::i64([self.batch], numbers.iter().map(|&number| number as i64))),
        ];
        forwarded.frames.extend(frames.map(|(name, frame)| (name.to_owned(), frame)));
        Ok(forwarded)
    }
}

/// Kind `data/moving_shapes`.
pub const ENTRY: Entry = kind::source::<Config>(include_str!("moving_shapes.rs"));

#[cfg(test)]
mod tests {
    use schemas::node::At;

    use super::*;

    #[test]
    fn an_epoch_has_every_clip_once_and_equal_steps_give_equal_frames() {
        let config = Config { batch: 4, clips: 8, size: 16, frames: 2, ..Config::default() };
        assert_eq!(config.check(&Dims::new()), []);
        let mut key = config.open(&Dims::new(), &Key::new(1, "clips")).unwrap();
        let mut step = |step: u64| {
            // Two microbatches a step share an epoch.
            let at = At { stage: 0, step: step / 2, microbatch: step as u32 % 2 };
            let call = Call { accumulate: 2, ..Call::new(Key::new(0, "unused"), at) };
            config.forward(&mut key, Frames::new(), &call).unwrap().frames
        };
        let (first, second, again) = (step(0), step(1), step(0));
        assert_eq!(first["video"].shape(), [4, 3, 2, 16, 16]);
        assert_eq!(first["video"].bytes(), again["video"].bytes());
        let mut seen = [first["sample"].to_i64(), second["sample"].to_i64()].concat();
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
        let odd = Config { size: 15, ..config.clone() };
        assert_eq!(odd.check(&Dims::new())[0].option, "size");
        let unknown = Config { split: "tset".to_owned(), ..config.clone() };
        assert_eq!(unknown.check(&Dims::new())[0].option, "split");
        let absurd = Config { batch: 65_537, ..config };
        assert_eq!(absurd.check(&Dims::new())[0].option, "batch");
    }
}
