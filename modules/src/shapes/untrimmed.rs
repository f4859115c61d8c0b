//! Longer videos: several events of one look, with rests between them.

use std::ops::RangeInclusive;

use serde::Serialize;

use super::Options;
use super::describe::{self, Captions};
use super::encode::{Film, SAMPLE_RATE};
use super::phrases::Facts;
use super::questions;
use super::record::{self, Heard, Record, Texts};
use super::world::{Appearance, MOTIONS, Motion, State};
use crate::rng::Key;

/// One event of an untrimmed video.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Event {
    /// Seconds.
    pub(super) start: f64,
    /// Seconds.
    pub(super) end: f64,
    pub(super) first_frame: usize,
    /// One past the last frame.
    pub(super) end_frame: usize,
    pub(super) motion: usize,
    motion_name: &'static str,
    #[serde(flatten)]
    pub(super) heard: Option<Heard>,
    #[serde(flatten)]
    pub(super) texts: Texts,
    captions: Captions,
}

/// How many events a video can have; no motion occurs twice.
pub(super) fn counts(options: &Options) -> RangeInclusive<usize> {
    3.min(options.motions)..=5.min(options.motions)
}

/// The split that a video belongs to: the first half trains.
fn split(options: &Options, number: usize) -> &'static str {
    if number < options.untrimmed.div_ceil(2) { "train" } else { "test" }
}

/// Draws a video. The sound follows the events; rests are silent.
pub(super) fn make(
    options: &Options,
    number: usize,
    look: &Appearance,
    key: &Key,
) -> (Record, Film) {
    let mut rng = key.with("events").rng();
    let mut record = record::describe_look(options, split(options, number), number, look);
    let (mut states, mut sound): (Vec<State>, Vec<f32>) = (Vec::new(), Vec::new());
    let (mut facts, mut captions) = (Vec::new(), Vec::new());
    let count = (3 + rng.below(3)).min(options.motions);
    let motions = rng.permutation(options.motions);
    for (event, &motion) in motions[..count].iter().enumerate() {
        let key = key.with("event").with_number(event as u64);
        let drawn = Motion::draw(motion, options.frames, &mut key.rng());
        let rest = options.frames / 4 + rng.below(options.frames / 2 + 1);
        let still = states.last().copied().unwrap_or_else(|| drawn.state(0));
        states.extend(std::iter::repeat_n(still, rest));
        let first_frame = states.len();
        states.extend((0..options.frames).map(|frame| drawn.state(frame)));
        let tone = record::tone(options, look, motion, &key);
        facts.push(Facts { look, motion, tone });
        let said = describe::captions(&facts[event], &mut key.with("words").rng());
        record.events.push(place(options, &facts[event], [first_frame, states.len()], &said));
        captions.push(said);
        if let Some(tone) = tone {
            let begin = record::samples(options, first_frame);
            let length = record::samples(options, states.len()) - begin;
            sound.resize(begin, 0.0);
            sound.extend(tone.play(length, SAMPLE_RATE, &mut record::noise(&key)));
        }
    }
    record.captions = Captions::one_after_another(&captions);
    record.texts = Texts::new(&record.captions);
    record.questions =
        questions::event_questions(&facts, options, &mut key.with("questions").rng());
    let film = Film { sound, ..record::film(options, look, &states, &mut record) };
    (record, film)
}

/// An event from its first frame to one past its last.
fn place(
    options: &Options,
    facts: &Facts<'_>,
    [first_frame, end_frame]: [usize; 2],
    captions: &Captions,
) -> Event {
    let fps = options.fps as f64;
    Event {
        start: first_frame as f64 / fps,
        end: end_frame as f64 / fps,
        first_frame,
        end_frame,
        motion: facts.motion,
        motion_name: MOTIONS[facts.motion],
        heard: facts.tone.map(Heard::new),
        texts: Texts::new(captions),
        captions: captions.clone(),
    }
}
