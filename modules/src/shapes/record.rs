//! One line of a manifest, and the film that it describes.

use serde::Serialize;

use super::Options;
use super::describe::{self, Captions};
use super::encode::{Film, SAMPLE_RATE};
use super::phrases::Facts;
use super::questions::{self, Question};
use super::render::{self, Painter};
use super::sound::Tone;
use super::untrimmed::{self, Event};
use super::world::{Appearance, BACKGROUNDS, COLOURS, MOTIONS, Motion, SHAPES, State, TEXTURES};
use crate::rng::Key;

/// Everything that is known about one file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Record {
    /// Relative to the manifest.
    pub(crate) path: String,
    pub(crate) split: String,
    pub(super) frames: usize,
    pub(super) fps: usize,
    pub(crate) appearance: usize,
    /// Absent for an untrimmed video, which has events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) motion: Option<usize>,
    /// Absent for an untrimmed or a silent video.
    #[serde(flatten)]
    pub(super) heard: Option<Heard>,
    appearance_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    motion_name: Option<&'static str>,
    pub(super) shape: &'static str,
    pub(super) colour: &'static str,
    pub(super) texture: &'static str,
    pub(super) background: &'static str,
    pub(super) dots: usize,
    #[serde(flatten)]
    pub(crate) texts: Texts,
    pub(super) captions: Captions,
    pub(super) questions: Vec<Question>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) events: Vec<Event>,
    /// Per frame, `[left, top, right, bottom]` in pixels, right and bottom exclusive; one per part
    /// where the shape wraps around.
    pub(super) boxes: Vec<Vec<[usize; 4]>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) masks: Option<Masks>,
}

/// What is heard in a clip or an event.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Heard {
    pub(super) beats: usize,
    pub(super) pitch: &'static str,
    pub(super) timbre: &'static str,
}

impl Heard {
    pub(super) fn new(tone: Tone) -> Self {
        Self { beats: tone.beats, pitch: tone.pitch_name(), timbre: tone.timbre().name }
    }
}

/// The plainest caption of each kind.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Texts {
    pub(crate) caption: String,
    pub(super) audio_caption: String,
    pub(super) speech: String,
    pub(super) fused_caption: String,
}

impl Texts {
    pub(super) fn new(captions: &Captions) -> Self {
        Self {
            caption: describe::plainest(&captions.video),
            audio_caption: describe::plainest(&captions.audio),
            speech: describe::plainest(&captions.speech),
            fused_caption: describe::plainest(&captions.fused),
        }
    }
}

/// A mask per frame.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Masks {
    /// Rows and columns.
    pub(super) size: [usize; 2],
    /// Per frame the lengths of runs, row by row: outside, inside, outside, and so on.
    pub(super) runs: Vec<Vec<usize>>,
}

/// Draws file `number` of a folder: `train`, `test` or `untrimmed`.
pub(crate) fn make(options: &Options, folder: &str, number: usize) -> (Record, Film) {
    let root = Key::new(options.seed, "shapes").with(folder);
    let key = root.with_number(number as u64);
    // Within a block of all combinations each occurs once: the two labels are independent.
    let block = options.appearances * options.motions;
    let combination =
        root.with("labels").with_number((number / block) as u64).rng().permutation(block)
            [number % block];
    let look = Appearance::draw(combination % options.appearances, &mut key.with("look").rng());
    let look = if options.clutter { look } else { look.without_clutter() };
    if folder == "untrimmed" {
        return untrimmed::make(options, number, &look, &key);
    }
    let motion = combination / options.appearances;
    let drawn = Motion::draw(motion, options.frames, &mut key.with("motion").rng());
    let states: Vec<State> = (0..options.frames).map(|frame| drawn.state(frame)).collect();
    let tone = tone(options, &look, motion, &key);
    let facts = Facts { look: &look, motion, tone };
    let captions = describe::captions(&facts, &mut key.with("words").rng());
    let mut record = describe_look(options, folder, number, &look);
    record.texts = Texts::new(&captions);
    record.captions = captions;
    record.questions = questions::questions(&facts, options, &mut key.with("questions").rng());
    (record.motion, record.motion_name) = (Some(motion), Some(MOTIONS[motion]));
    record.heard = tone.map(Heard::new);
    let mut film = film(options, &look, &states, &mut record);
    if let Some(tone) = tone {
        film.sound = tone.play(samples(options, states.len()), SAMPLE_RATE, &mut noise(&key));
    }
    (record, film)
}

/// What is heard; the beats depend on nothing that is seen.
pub(super) fn tone(options: &Options, look: &Appearance, motion: usize, key: &Key) -> Option<Tone> {
    options.sound.then(|| Tone::draw(look, motion, &mut key.with("beats").rng()))
}

/// What a tone draws while it plays.
pub(super) fn noise(key: &Key) -> crate::rng::Rng {
    key.with("sound").rng()
}

/// Samples of sound up to a frame.
pub(super) fn samples(options: &Options, frames: usize) -> usize {
    frames * SAMPLE_RATE / options.fps
}

pub(super) fn describe_look(
    options: &Options,
    split: &str,
    number: usize,
    look: &Appearance,
) -> Record {
    Record {
        path: format!("{number:05}.mp4"),
        split: split.to_owned(),
        frames: 0,
        fps: options.fps,
        appearance: look.label,
        motion: None,
        heard: None,
        appearance_name: look.name(),
        motion_name: None,
        shape: SHAPES[look.shape],
        colour: COLOURS[look.colour].0,
        texture: TEXTURES[look.texture],
        background: BACKGROUNDS[look.background],
        dots: look.dots.len(),
        texts: Texts::default(),
        captions: Captions::default(),
        questions: Vec::new(),
        events: Vec::new(),
        boxes: Vec::new(),
        masks: None,
    }
}

/// Paints all frames, and notes boxes and masks. The film is silent.
pub(super) fn film(
    options: &Options,
    look: &Appearance,
    states: &[State],
    record: &mut Record,
) -> Film {
    let size = options.size;
    let painter = Painter::new(look, size, size);
    let mut rgb = Vec::with_capacity(states.len() * size * size * 3);
    let mut runs = Vec::new();
    for state in states {
        let painted = painter.paint(state);
        record.boxes.push(render::boxes(&painted.mask, size));
        runs.push(render::run_lengths(&painted.mask));
        rgb.extend(painted.rgb);
    }
    record.frames = states.len();
    record.masks = options.masks.then_some(Masks { size: [size, size], runs });
    Film { rgb, height: size, width: size, fps: options.fps, sound: Vec::new() }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
