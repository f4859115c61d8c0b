//! Records as the files that lie beside the videos.

use super::record::{Heard, Record, Texts};
use super::untrimmed::Event;

/// Columns that every CSV ends with.
const COLUMNS: [&str; 14] = [
    "appearance",
    "motion",
    "beats",
    "shape",
    "colour",
    "texture",
    "background",
    "dots",
    "pitch",
    "timbre",
    "caption",
    "audio_caption",
    "speech",
    "fused_caption",
];

/// One row: a file, or an event of a file.
struct Row<'a> {
    record: &'a Record,
    event: Option<&'a Event>,
}

impl Row<'_> {
    /// The fields of [`COLUMNS`].
    fn fields(&self) -> Vec<String> {
        let Self { record, event } = self;
        let motion = event.map(|event| event.motion).or(record.motion).unwrap_or_default();
        let heard: &Option<Heard> = event.map_or(&record.heard, |event| &event.heard);
        let texts: &Texts = event.map_or(&record.texts, |event| &event.texts);
        let heard = |say: fn(&Heard) -> String| heard.as_ref().map(say).unwrap_or_default();
        vec![
            record.appearance.to_string(),
            motion.to_string(),
            heard(|heard| heard.beats.to_string()),
            record.shape.to_owned(),
            record.colour.to_owned(),
            record.texture.to_owned(),
            record.background.to_owned(),
            record.dots.to_string(),
            heard(|heard| heard.pitch.to_owned()),
            heard(|heard| heard.timbre.to_owned()),
            texts.caption.clone(),
            texts.audio_caption.clone(),
            texts.speech.clone(),
            texts.fused_caption.clone(),
        ]
    }
}

/// A CSV with these columns before [`COLUMNS`].
fn table(head: &[&str], rows: &[(Vec<String>, Row<'_>)]) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    // Writing to memory cannot fail, and all rows have as many fields as the head.
    let mut put = |row: &[String]| writer.write_record(row).expect("rows are of equal length");
    put(&head.iter().chain(&COLUMNS).map(ToString::to_string).collect::<Vec<_>>());
    for (first, row) in rows {
        put(&[first.clone(), row.fields()].concat());
    }
    writer.into_inner().unwrap_or_default()
}

/// One row per file.
pub(super) fn csv(records: &[Record]) -> Vec<u8> {
    let row = |record| (place(record), Row { record, event: None });
    table(&["path", "split"], &records.iter().map(row).collect::<Vec<_>>())
}

/// One row per event, which is a clip from one second to another.
pub(super) fn csv_of_events(records: &[Record]) -> Vec<u8> {
    let rows = rows(records, |record, event| {
        let seconds = [event.start, event.end].map(|seconds| seconds.to_string());
        [place(record), seconds.to_vec()].concat()
    });
    table(&["path", "split", "start", "end"], &rows)
}

/// One row per event, which is to be found in the whole video.
pub(super) fn csv_of_grounding(records: &[Record]) -> Vec<u8> {
    let rows = rows(records, |record, event| {
        let frames = [record.frames, event.first_frame, event.end_frame];
        [place(record), frames.map(|frame| frame.to_string()).to_vec()].concat()
    });
    table(&["path", "split", "frames", "first_frame", "end_frame"], &rows)
}

fn rows(
    records: &[Record],
    first: impl Fn(&Record, &Event) -> Vec<String>,
) -> Vec<(Vec<String>, Row<'_>)> {
    let pairs =
        records.iter().flat_map(|record| record.events.iter().map(move |event| (record, event)));
    pairs
        .map(|(record, event)| (first(record, event), Row { record, event: Some(event) }))
        .collect()
}

fn place(record: &Record) -> Vec<String> {
    vec![record.path.clone(), record.split.clone()]
}

/// One CSV over several splits, seen from the folder above them.
pub(super) fn csv_of_splits(records: &[Record]) -> Vec<u8> {
    let row =
        |record: &Record| vec![format!("{}/{}", record.split, record.path), record.split.clone()];
    let rows = records.iter().map(|record| (row(record), Row { record, event: None }));
    table(&["path", "split"], &rows.collect::<Vec<_>>())
}

/// The records as JSON lines.
pub(super) fn jsonl(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        bytes.extend(serde_json::to_vec(record).unwrap_or_default());
        bytes.push(b'\n');
    }
    bytes
}
