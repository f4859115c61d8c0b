//! The part of a video that an entry means, in frames and in seconds.

use std::ops::Range;

use super::decode::{Frames, Video};
use super::error::VideoError;
use super::manifest::Entry;
use super::named::named;

/// Frames `first..end` of a video; at least one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Span {
    pub(super) first: u64,
    end: u64,
    fps: f64,
}

impl Span {
    /// The frames that an entry's seconds cover, of a video of `frames` at `fps`.
    pub(super) fn of(entry: &Entry, frames: u64, fps: f64) -> Result<Self, String> {
        let at = |seconds: f64| (seconds * fps).round().min(frames as f64) as u64;
        let first = entry.start.map_or(0, at);
        if first >= frames {
            let (start, file) = (entry.start.unwrap_or_default(), named(entry.media.path()));
            let length = frames as f64 / fps;
            return Err(format!("`start` {start} is past the end at {length:.3} s; file `{file}`"));
        }
        Ok(Self { first, end: entry.end.map_or(frames, at).max(first + 1), fps })
    }

    /// How many there are.
    pub(super) fn frames(&self) -> u64 {
        self.end - self.first
    }

    /// Where they begin and end.
    pub(super) fn seconds(&self) -> Range<f64> {
        self.first as f64 / self.fps..self.end as f64 / self.fps
    }
}

/// Decodes frames whose numbers may be in any order.
pub(super) fn decode_any_order(video: &mut Video, numbers: &[u64]) -> Result<Frames, VideoError> {
    if numbers.is_sorted() {
        return video.frames(numbers);
    }
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let frames = video.frames(&sorted)?;
    let mut data = Vec::with_capacity(numbers.len() * frames.height * frames.width * 3);
    for number in numbers {
        data.extend_from_slice(frames.frame(sorted.partition_point(|other| other < number)));
    }
    Ok(Frames { data, count: numbers.len(), ..frames })
}
