//! Drifting gratings: sine waves that move to one of four sides.
//!
//! | port        | dims        | what                                        |
//! |-------------|-------------|---------------------------------------------|
//! | `video`     | `B 3 T S S` | grey waves, mean 0, amplitude 1             |
//! | `direction` | `B`         | 0 right, 1 left, 2 down, 3 up               |
//!
//! The phase is drawn, so that no single frame tells left from right. The speed is an eighth of a
//! wave per frame.

use std::f32::consts::TAU;

use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
use schemas::frame::{Frame, Frames};
use schemas::node::{Forwarded, NodeError};
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::kind::{self, Call, Host};
use crate::rng::Key;

/// Options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Clips per microbatch.
    pub batch: usize,
    /// Frames per clip.
    pub frames: usize,
    /// Rows and columns in pixels.
    pub size: usize,
    /// Waves across a frame.
    #[serde(default = "two")]
    pub waves: usize,
}

fn two() -> usize {
    2
}

impl Config {
    /// One clip `[3, T, S, S]`, row-major.
    fn clip(&self, direction: usize, phase: f32) -> Vec<f32> {
        let (frames, size) = (self.frames, self.size);
        let wave = |frame: usize, row: usize, column: usize| {
            let along = if direction < 2 { column } else { row } as f32 / size as f32;
            let drift = if direction.is_multiple_of(2) { -0.125 } else { 0.125 };
            (TAU * (self.waves as f32 * along + drift * frame as f32) + phase).sin()
        };
        let pixel = |i: usize| wave(i / (size * size) % frames, i / size % size, i % size);
        (0..3 * frames * size * size).map(pixel).collect()
    }
}

impl Host for Config {
    type State = ();

    fn ports(&self, _: &[String]) -> Ports {
        let Self { batch, frames, size, .. } = self;
        Ports::default()
            .plain("video", format!("{batch} 3 {frames} {size} {size}"))
            .about("grey waves")
            .plain("direction", format!("{batch}"))
            .int()
            .about("0 right, 1 left, 2 down, 3 up")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let numbers = [("batch", self.batch), ("frames", self.frames), ("size", self.size)];
        let zero = numbers.into_iter().filter(|(_, value)| *value == 0);
        let problem = |(option, _)| {
            let message = format!("`{option}` is 0, but must be at least 1");
            OptionProblem::new(option, message, "give a number from 1")
        };
        zero.map(problem).collect()
    }

    fn open(&self, _: &Dims, _: &Key) -> Result<(), NodeError> {
        Ok(())
    }

    fn forward(&self, (): &mut (), _: Frames, call: &Call) -> Result<Forwarded, NodeError> {
        let (mut video, mut directions) = (Vec::new(), Vec::new());
        for sample in 0..self.batch as u64 {
            let mut draws = call.key.with_number(sample).rng();
            let direction = draws.below(4);
            video.extend(self.clip(direction, draws.between(0.0, f64::from(TAU)) as f32));
            directions.push(direction as i64);
        }
        let shape = [self.batch, 3, self.frames, self.size, self.size];
        let frames = Frames::from([
            ("video".to_owned(), Frame::f32(shape, video)),
            ("direction".to_owned(), Frame::i64([self.batch], directions)),
        ]);
        Ok(Forwarded { frames, ..Forwarded::default() })
    }
}

/// Kind `data/gratings`.
pub const ENTRY: Entry = kind::source::<Config>(include_str!("gratings.rs"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opposite_directions_are_each_others_time_reversal() {
        let config = Config { batch: 1, frames: 2, size: 8, waves: 1 };
        // From the phase of the last frame, the wave to the left goes back.
        let (right, left) = (config.clip(0, 0.0), config.clip(1, -0.125 * TAU));
        let frame = 64;
        for pixel in 0..frame {
            assert!((right[pixel] - left[frame + pixel]).abs() < 1e-5);
            assert!((right[frame + pixel] - left[pixel]).abs() < 1e-5);
        }
    }
}
