//! Which frames of a video make a clip: pure functions of the video's length and a stream of draws.
//!
//! Every sampler returns exactly its number of frames, each inside the video. Ascending order is
//! kept except by [`Short::Wrap`].

use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// What stands in for frames past the end of a short video.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Short {
    /// The last frame, again and again.
    #[default]
    RepeatLast,
    /// The video from its start.
    Wrap,
}

/// How frames are chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sampler {
    /// One frame from each of `frames` equal segments of `floor(n / frames)` frames: InternVideo2
    /// stage 1. A video with fewer frames gives its first frame throughout, as there.
    Segments {
        /// Frames per clip.
        frames: usize,
        /// The public loader takes its 0-based draws for 1-based and subtracts one. True does the
        /// same, and a draw of 0 stays 0 where the loader would ask for frame -1.
        #[serde(default = "yes")]
        one_based: bool,
    },
    /// One frame from each of `frames` segments of `(n - 1) / frames` frames, both ends included:
    /// InternVideo2 fine-tuning. Views shift evenly inside a segment.
    Sparse {
        /// Frames per clip.
        frames: usize,
    },
    /// One frame from each of `frames` intervals of a linear division, or their middle frames in
    /// evaluation: InternVideo2 stage 2. Short videos repeat their last frame.
    Intervals {
        /// Frames per clip.
        frames: usize,
    },
    /// Frames at a constant rate from a random place, or from evenly spaced places per view.
    Rate {
        /// Frames per clip.
        frames: usize,
        /// Frames per second of the clip.
        fps: f64,
        /// What stands in past the end.
        #[serde(default)]
        short: Short,
    },
    /// Every `stride`-th frame from a random place, or from evenly spaced places per view.
    Dense {
        /// Frames per clip.
        frames: usize,
        /// Distance between two frames.
        stride: usize,
        /// What stands in past the end.
        #[serde(default)]
        short: Short,
    },
}

fn yes() -> bool {
    true
}

/// Whether frames are drawn, or fixed by a view of a test protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Drawn anew for every sample.
    Train,
    /// Temporal view `view` of `views`; the same every time.
    Test {
        /// From 0.
        view: usize,
        /// At least 1.
        views: usize,
    },
}

/// The largest distance between two frames of a clip: half a day at 24 frames per second.
const MAX_STRIDE: usize = 1_000_000;

impl Sampler {
    /// Frames per clip.
    pub fn frames(&self) -> usize {
        match self {
            Self::Segments { frames, .. }
            | Self::Sparse { frames }
            | Self::Intervals { frames }
            | Self::Rate { frames, .. }
            | Self::Dense { frames, .. } => *frames,
        }
    }

    /// What is wrong with the numbers, and what to write.
    pub fn problem(&self) -> Option<(String, &'static str)> {
        match self {
            Self::Rate { fps, .. } if !(fps.is_finite() && *fps > 0.0) => Some((
                format!("`fps` is {fps}, but must be above 0"),
                "write frames per second, such as `rate: { fps: 8 }`",
            )),
            Self::Dense { stride, .. } if !(1..=MAX_STRIDE).contains(stride) => Some((
                format!("`stride` is {stride}, but must be from 1 to {MAX_STRIDE}"),
                "write a distance in frames, such as `dense: { stride: 2 }`",
            )),
            _ => None,
        }
    }

    /// The frame numbers of a clip from a video, or part of one, of `length` > 0 frames at `fps`.
    pub fn choose(&self, length: u64, fps: f64, mode: Mode, rng: &mut Rng) -> Vec<u64> {
        let last = length.saturating_sub(1);
        let chosen = match self {
            Self::Segments { frames, one_based } => {
                segments(*frames, length, *one_based, mode, rng)
            }
            Self::Sparse { frames } => sparse(*frames, length, mode, rng),
            Self::Intervals { frames } => intervals(*frames, length, mode, rng),
            Self::Rate { frames, fps: wanted, short } => {
                window(*frames, fps / wanted, (length, *short), mode, rng)
            }
            Self::Dense { frames, stride, short } => {
                window(*frames, (*stride).max(1) as f64, (length, *short), mode, rng)
            }
        };
        chosen.into_iter().map(|frame| frame.min(last)).collect()
    }
}

fn segments(frames: usize, length: u64, one_based: bool, mode: Mode, rng: &mut Rng) -> Vec<u64> {
    let segment = length / frames.max(1) as u64;
    if segment == 0 {
        return vec![0; frames];
    }
    (0..frames as u64)
        .map(|number| match mode {
            Mode::Train => {
                let drawn = number * segment + rng.below(segment as usize) as u64;
                if one_based { drawn.saturating_sub(1) } else { drawn }
            }
            Mode::Test { view, views } => {
                number * segment + segment * (view as u64 + 1) / (views as u64 + 1)
            }
        })
        .collect()
}

fn sparse(frames: usize, length: u64, mode: Mode, rng: &mut Rng) -> Vec<u64> {
    let segment = length.saturating_sub(1) as f64 / frames as f64;
    let edge = |number: usize| (segment * number as f64).round_ties_even() as u64;
    (0..frames)
        .map(|number| match mode {
            Mode::Train => {
                let (low, high) = (edge(number), edge(number + 1));
                low + rng.below((high - low) as usize + 1) as u64
            }
            Mode::Test { view, views } => {
                edge(number) + (segment / (views as f64 + 1.0) * (view as f64 + 1.0)) as u64
            }
        })
        .collect()
}

fn intervals(frames: usize, length: u64, mode: Mode, rng: &mut Rng) -> Vec<u64> {
    let count = (frames as u64).min(length);
    // Integer division equals a truncated linear space.
    let edge = |number: u64| number * length / count.max(1);
    let ranges: Vec<(u64, u64)> =
        (0..count).map(|number| (edge(number), edge(number + 1) - 1)).collect();
    let middle = |&(first, last): &(u64, u64)| (first + last) / 2;
    let mut chosen: Vec<u64> = match mode {
        Mode::Test { .. } => ranges.iter().map(middle).collect(),
        // The upper bound is left out, as in the public loader; a one-frame interval then has
        // nothing to draw from, and all frames are drawn without intervals.
        Mode::Train if ranges.iter().all(|(first, last)| first < last) => {
            let draw =
                |&(first, last): &(u64, u64)| first + rng.below((last - first) as usize) as u64;
            ranges.iter().map(draw).collect()
        }
        Mode::Train => {
            let order = rng.permutation(length as usize);
            let mut drawn: Vec<u64> =
                order.into_iter().take(count as usize).map(|frame| frame as u64).collect();
            drawn.sort_unstable();
            drawn
        }
    };
    chosen.resize(frames, chosen.last().copied().unwrap_or(0));
    chosen
}

/// Evenly spaced frames, `step` apart, of a video with (length, rule for its end).
fn window(
    frames: usize,
    step: f64,
    (length, short): (u64, Short),
    mode: Mode,
    rng: &mut Rng,
) -> Vec<u64> {
    let step = if step.is_finite() && step > 0.0 { step } else { 1.0 };
    let reach = ((frames.saturating_sub(1)) as f64 * step).floor() as u64 + 1;
    let slack = length.saturating_sub(reach);
    let start = match mode {
        Mode::Train => rng.below(slack as usize + 1) as u64,
        Mode::Test { views: 0 | 1, .. } => slack / 2,
        Mode::Test { view, views } => slack * view as u64 / (views as u64 - 1),
    };
    (0..frames)
        .map(|number| {
            let frame = start + (number as f64 * step).floor() as u64;
            match short {
                Short::RepeatLast => frame.min(length.saturating_sub(1)),
                Short::Wrap => frame % length.max(1),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rng::Key;

    fn choose(sampler: &Sampler, length: u64, mode: Mode) -> Vec<u64> {
        sampler.choose(length, 30.0, mode, &mut Key::new(1, "sample").rng())
    }

    const CENTRE: Mode = Mode::Test { view: 0, views: 1 };

    proptest! {
        #[test]
        fn every_choice_has_its_length_and_lies_in_the_video(
            frames in 1usize..40, length in 1u64..500, seed: u64, view in 0usize..5,
        ) {
            let samplers = [
                Sampler::Segments { frames, one_based: true },
                Sampler::Sparse { frames },
                Sampler::Intervals { frames },
                Sampler::Rate { frames, fps: 7.3, short: Short::RepeatLast },
                Sampler::Dense { frames, stride: 3, short: Short::Wrap },
            ];
            for sampler in samplers {
                for mode in [Mode::Train, Mode::Test { view, views: 5 }] {
                    let mut rng = Key::new(seed, "sample").rng();
                    let chosen = sampler.choose(length, 25.0, mode, &mut rng);
                    prop_assert_eq!(chosen.len(), frames);
                    prop_assert!(chosen.iter().all(|frame| *frame < length));
                    let wraps = matches!(sampler, Sampler::Dense { .. });
                    prop_assert!(wraps || chosen.is_sorted(), "{:?} {:?}", sampler, chosen);
                }
            }
        }
    }

    #[test]
    fn sparse_views_follow_the_fine_tuning_protocol() {
        // s = 99 / 8 = 12.375; round(s i) + int(s / 5 (v + 1)) for v of 4.
        let sampler = Sampler::Sparse { frames: 8 };
        let first = choose(&sampler, 100, Mode::Test { view: 0, views: 4 });
        assert_eq!(first, [2, 14, 27, 39, 52, 64, 76, 89]);
        let last = choose(&sampler, 100, Mode::Test { view: 3, views: 4 });
        assert_eq!(last, [9, 21, 34, 46, 59, 71, 83, 96]);
    }

    #[test]
    fn intervals_take_their_middle_in_evaluation_and_pad_short_videos() {
        let sampler = Sampler::Intervals { frames: 4 };
        assert_eq!(choose(&sampler, 10, CENTRE), [0, 3, 5, 8]);
        assert_eq!(choose(&sampler, 3, CENTRE), [0, 1, 2, 2]);
    }

    #[test]
    fn a_one_based_draw_is_one_less_and_never_negative() {
        let (one, zero) = (
            Sampler::Segments { frames: 4, one_based: true },
            Sampler::Segments { frames: 4, one_based: false },
        );
        let (shifted, plain) = (choose(&one, 40, Mode::Train), choose(&zero, 40, Mode::Train));
        for (shifted, plain) in shifted.iter().zip(&plain) {
            assert_eq!(*shifted, plain.saturating_sub(1));
        }
        assert_eq!(choose(&one, 3, Mode::Train), [0; 4]);
    }

    #[test]
    fn rates_and_strides_start_in_the_middle_and_end_as_told() {
        let rate = Sampler::Rate { frames: 4, fps: 10.0, short: Short::RepeatLast };
        assert_eq!(choose(&rate, 30, CENTRE), [10, 13, 16, 19]);
        assert_eq!(choose(&rate, 5, CENTRE), [0, 3, 4, 4]);
        let dense = Sampler::Dense { frames: 4, stride: 2, short: Short::Wrap };
        assert_eq!(choose(&dense, 5, CENTRE), [0, 2, 4, 1]);
    }
}
