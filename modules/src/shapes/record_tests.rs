//! What is written about a clip, against the clip.

use std::collections::BTreeMap;

use super::super::{manifest, world::APPEARANCES};
use super::*;

fn small() -> Options {
    Options { size: 16, frames: 2, masks: false, ..Options::default() }
}

#[test]
fn look_and_motion_are_independent_in_every_whole_block() {
    let mut seen = BTreeMap::new();
    for number in 0..128 {
        let (record, _) = make(&small(), "train", number);
        *seen.entry((record.appearance, record.motion)).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 64);
    assert!(seen.values().all(|count| *count == 2));
}

/// Chi squared of a table of counts against independence, and its degrees of freedom.
fn dependence(pairs: &[(usize, usize)]) -> (f64, f64) {
    let (mut cells, mut rows, mut columns) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for &(row, column) in pairs {
        *cells.entry((row, column)).or_insert(0.0) += 1.0;
        *rows.entry(row).or_insert(0.0) += 1.0;
        *columns.entry(column).or_insert(0.0) += 1.0;
    }
    let mut sum = 0.0;
    for (row, in_row) in &rows {
        for (column, in_column) in &columns {
            let expected: f64 = in_row * in_column / pairs.len() as f64;
            let found: f64 = cells.get(&(*row, *column)).copied().unwrap_or_default();
            sum += (found - expected).powi(2) / expected;
        }
    }
    (sum, (rows.len() - 1) as f64 * (columns.len() - 1) as f64)
}

#[test]
fn beats_are_even_and_independent_of_all_that_is_seen() {
    let records: Vec<Record> = (0..2000).map(|number| make(&small(), "train", number).0).collect();
    let beats = |record: &Record| record.heard.as_ref().unwrap().beats;
    let mut counts = [0; 3];
    records.iter().for_each(|record| counts[beats(record) - 1] += 1);
    assert!(counts.iter().all(|count| (590..745).contains(count)), "{counts:?}");
    let place = |list: &[&str], name: &str| list.iter().position(|known| *known == name).unwrap();
    let seen = |record: &Record| {
        let motion = record.motion.unwrap();
        [
            ("appearance", record.appearance),
            ("motion", motion),
            ("texture", place(&TEXTURES, record.texture)),
            ("background", place(&BACKGROUNDS, record.background)),
            ("dots", record.dots),
            ("both", record.appearance * 8 + motion),
        ]
    };
    for (at, (name, _)) in seen(&records[0]).into_iter().enumerate() {
        let pairs: Vec<_> =
            records.iter().map(|record| (seen(record)[at].1, beats(record))).collect();
        let (chi, freedom) = dependence(&pairs);
        // Mean and four deviations of the distribution.
        assert!(chi < freedom + 4.0 * (2.0 * freedom).sqrt(), "{name}: {chi} of {freedom}");
    }
}

#[test]
fn an_untrimmed_video_has_a_row_per_event_with_its_seconds() {
    let (record, film) = make(&Options::default(), "untrimmed", 0);
    let frames = film.rgb.len() / (64 * 64 * 3);
    assert_eq!((record.frames, film.sound.len()), (frames, frames * 1000));
    assert!(record.events.len() >= 3);
    assert!(record.events.iter().all(|event| event.end_frame <= frames));
    let records = std::slice::from_ref(&record);
    let text = String::from_utf8(manifest::csv_of_events(records)).unwrap();
    assert_eq!(text.lines().count(), 1 + record.events.len());
    assert!(text.starts_with("path,split,start,end,appearance,motion,beats"));
    let text = String::from_utf8(manifest::csv_of_grounding(records)).unwrap();
    assert_eq!(text.lines().count(), 1 + record.events.len());
    assert!(text.starts_with("path,split,frames,first_frame,end_frame,appearance,motion,beats"));
}

#[test]
fn a_caption_has_one_place_in_an_untrimmed_video_and_the_sound_is_there() {
    let options = Options { untrimmed: 20, motions: 4, ..small() };
    let options = Options { frames: 8, ..options };
    let mut splits = Vec::new();
    for number in 0..20 {
        let (record, film) = make(&options, "untrimmed", number);
        splits.push(record.split.clone());
        let mut said: Vec<&str> =
            record.events.iter().map(|event| event.texts.caption.as_str()).collect();
        said.sort_unstable();
        let count = said.len();
        said.dedup();
        assert!(said.len() == count && (3..=4).contains(&count), "{said:?}");
        let loud = |from: usize, to: usize| {
            film.sound[from * 1000..to * 1000].iter().any(|sample| sample.abs() > 0.01)
        };
        let mut end = 0;
        for event in &record.events {
            assert!(!loud(end, event.first_frame), "a rest of {number} is loud");
            assert!(loud(event.first_frame, event.end_frame), "an event of {number} is silent");
            end = event.end_frame;
        }
    }
    assert!(splits[..10].iter().all(|split| split == "train"));
    assert!(splits[10..].iter().all(|split| split == "test"));
}

#[test]
fn the_smallest_worlds_have_records() {
    for (motions, appearances) in [(2, 1), (2, 4), (4, 5), (14, APPEARANCES)] {
        for sound in [true, false] {
            let options = Options { motions, appearances, sound, ..small() };
            for folder in ["train", "untrimmed"] {
                let (record, film) = make(&options, folder, 3);
                assert_eq!(film.sound.is_empty(), !sound);
                assert_eq!(record.texts.audio_caption.is_empty(), !sound);
                assert!(record.questions.iter().all(|one| one.choices.contains(&one.answer)));
                let line = String::from_utf8(manifest::jsonl(&[record])).unwrap();
                let line: serde_json::Value = serde_json::from_str(&line).unwrap();
                let expected = sound && folder == "train";
                assert_eq!(line["beats"].is_u64(), expected, "{line}");
                assert!(line["captions"]["fused"][0].is_string());
            }
        }
    }
}
