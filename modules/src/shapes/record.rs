//! One line of a manifest, and the film that it describes.

use serde::Serialize;
use serde_json::json;

use super::Options;
use super::describe::{self, Captions, Question};
use super::encode::{Film, SAMPLE_RATE};
use super::render::{self, Painter};
use super::world::{Appearance, BACKGROUNDS, COLOURS, MOTIONS, Motion, SHAPES, State, TEXTURES};
use crate::rng::Key;

/// Everything that is known about one file.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Record {
    /// Relative to the manifest.
    pub(crate) path: String,
    pub(crate) split: String,
    pub(crate) appearance: usize,
    /// Absent for an untrimmed video, which has events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) motion: Option<usize>,
    appearance_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    motion_name: Option<&'static str>,
    shape: &'static str,
    colour: &'static str,
    texture: &'static str,
    background: &'static str,
    dots: usize,
    pub(crate) caption: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    captions: Option<Captions>,
    questions: Vec<Question>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<Event>,
    /// Per frame, `[left, top, right, bottom]` in pixels; two where the shape wraps around.
    boxes: Vec<Vec<[usize; 4]>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    masks: Option<serde_json::Value>,
}

/// One event of an untrimmed video.
#[derive(Debug, Clone, Serialize)]
struct Event {
    /// Seconds.
    start: f64,
    /// Seconds.
    end: f64,
    first_frame: usize,
    /// One past the last frame.
    end_frame: usize,
    motion: usize,
    motion_name: &'static str,
    caption: String,
}

/// Draws file `number` of a split.
pub(crate) fn make(options: &Options, split: &str, number: usize) -> (Record, Film) {
    let root = Key::new(options.seed, "shapes").with(split);
    let key = root.with_number(number as u64);
    // Within a block of all combinations each occurs once: the two labels are independent.
    let block = options.appearances * options.motions;
    let combination =
        root.with("labels").with_number((number / block) as u64).rng().permutation(block)
            [number % block];
    let look = Appearance::draw(combination % options.appearances, &mut key.with("look").rng());
    let look = if options.clutter { look } else { look.without_clutter() };
    let motion = combination / options.appearances;
    if split == "untrimmed" {
        return untrimmed(options, number, &look, &key);
    }
    let drawn = Motion::draw(motion, options.frames, &mut key.with("motion").rng());
    let states: Vec<State> = (0..options.frames).map(|frame| drawn.state(frame)).collect();
    let captions = describe::captions(&look, motion, &mut key.with("words").rng());
    let mut record = describe_look(split, number, &look);
    record.caption = captions.video[0].clone();
    record.captions = Some(captions);
    record.questions = describe::questions(&look, motion);
    (record.motion, record.motion_name) = (Some(motion), Some(MOTIONS[motion]));
    let film = film(options, &look, &states, &mut record);
    (record, film)
}

/// A video of three to five events with rests between them.
fn untrimmed(options: &Options, number: usize, look: &Appearance, key: &Key) -> (Record, Film) {
    let mut rng = key.with("events").rng();
    let mut record = describe_look("untrimmed", number, look);
    let mut states: Vec<State> = Vec::new();
    let mut motions = Vec::new();
    for event in 0..3 + rng.below(3) {
        let motion = rng.below(options.motions);
        let event_key = key.with("event").with_number(event as u64);
        let drawn = Motion::draw(motion, options.frames, &mut event_key.rng());
        let rest = options.frames / 4 + rng.below(options.frames / 2 + 1);
        let still = states.last().copied().unwrap_or_else(|| drawn.state(0));
        states.extend(std::iter::repeat_n(still, rest));
        let first_frame = states.len();
        states.extend((0..options.frames).map(|frame| drawn.state(frame)));
        let (end_frame, fps) = (states.len(), options.fps as f64);
        record.events.push(Event {
            start: first_frame as f64 / fps,
            end: end_frame as f64 / fps,
            first_frame,
            end_frame,
            motion,
            motion_name: MOTIONS[motion],
            caption: format!("a {} {}", look.name(), describe::phrase(motion)),
        });
        motions.push(motion);
    }
    let parts: Vec<&str> = motions.iter().map(|&motion| describe::phrase(motion)).collect();
    record.caption = format!("a {} {}", look.name(), parts.join(", then "));
    record.questions = describe::order_questions(&motions);
    let film = film(options, look, &states, &mut record);
    (record, film)
}

fn describe_look(split: &str, number: usize, look: &Appearance) -> Record {
    Record {
        path: format!("{number:05}.mp4"),
        split: split.to_owned(),
        appearance: look.label,
        motion: None,
        appearance_name: look.name(),
        motion_name: None,
        shape: SHAPES[look.shape],
        colour: COLOURS[look.colour].0,
        texture: TEXTURES[look.texture],
        background: BACKGROUNDS[look.background],
        dots: look.dots.len(),
        caption: String::new(),
        captions: None,
        questions: Vec::new(),
        events: Vec::new(),
        boxes: Vec::new(),
        masks: None,
    }
}

/// Paints all frames, and notes boxes and masks.
fn film(options: &Options, look: &Appearance, states: &[State], record: &mut Record) -> Film {
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
    if options.masks {
        record.masks = Some(json!({ "size": [size, size], "runs": runs }));
    }
    let samples = if options.sound { states.len() * SAMPLE_RATE / options.fps } else { 0 };
    let sound = describe::sound(look, samples, SAMPLE_RATE);
    Film { rgb, height: size, width: size, fps: options.fps, sound }
}

/// The records as CSV; one row per file, or per event where there are any.
pub(crate) fn csv(records: &[Record]) -> Vec<u8> {
    let events = records.iter().any(|record| !record.events.is_empty());
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut head = vec!["path", "split"];
    if events {
        head.extend(["start", "end"]);
    }
    head.extend(["appearance", "motion", "shape", "colour", "texture", "background", "dots"]);
    head.push("caption");
    // Writing to memory cannot fail, and all rows have as many fields as the head.
    let mut put = |row: &[String]| writer.write_record(row).expect("rows are of equal length");
    put(&head.iter().map(ToString::to_string).collect::<Vec<_>>());
    for record in records {
        for event in record.events.iter().map(Some).chain(record.motion.map(|_| None)) {
            let mut row = vec![record.path.clone(), record.split.clone()];
            if let Some(event) = event {
                row.extend([event.start.to_string(), event.end.to_string()]);
            }
            let motion = event.map(|event| event.motion).or(record.motion).unwrap_or_default();
            let caption = event.map_or(&record.caption, |event| &event.caption);
            row.extend([record.appearance.to_string(), motion.to_string()]);
            let factors = [record.shape, record.colour, record.texture, record.background];
            row.extend(factors.map(str::to_owned));
            row.extend([record.dots.to_string(), caption.clone()]);
            put(&row);
        }
    }
    writer.into_inner().unwrap_or_default()
}

/// One CSV over several splits, seen from the folder above them.
pub(crate) fn csv_of_splits(records: &[Record]) -> Vec<u8> {
    let moved = |record: &Record| Record {
        path: format!("{}/{}", record.split, record.path),
        ..record.clone()
    };
    csv(&records.iter().map(moved).collect::<Vec<_>>())
}

/// The records as JSON lines.
pub(crate) fn jsonl(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend(serde_json::to_vec(record).unwrap_or_default());
        bytes.push(b'\n');
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_and_motion_are_independent_in_every_whole_block() {
        let options = Options { size: 16, frames: 2, masks: false, ..Options::default() };
        let mut seen = std::collections::BTreeMap::new();
        for number in 0..128 {
            let (record, _) = make(&options, "train", number);
            *seen.entry((record.appearance, record.motion)).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 64);
        assert!(seen.values().all(|count| *count == 2));
    }

    #[test]
    fn an_untrimmed_video_has_a_row_per_event_with_its_seconds() {
        let (record, film) = make(&Options::default(), "untrimmed", 0);
        let frames = film.rgb.len() / (64 * 64 * 3);
        assert!(record.events.len() >= 3);
        assert!(record.events.iter().all(|event| event.end_frame <= frames));
        let text = String::from_utf8(csv(std::slice::from_ref(&record))).unwrap();
        assert_eq!(text.lines().count(), 1 + record.events.len());
        assert!(text.starts_with("path,split,start,end,appearance,motion"));
    }
}
