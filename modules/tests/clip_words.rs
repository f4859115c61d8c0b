//! Texts, dialogues and sound beside clips, from files on disk to ports.

use std::f32::consts::TAU;
use std::path::Path;

use modules::data::video_clips::Config;
use modules::kind::{Call, Host};
use modules::rng::Key;
use modules::shapes::{Film, encoder, write_film};
use schemas::dims::Dims;
use schemas::frame::Frames;
use schemas::node::At;
use serde_json::{Value, json};

const WORDS: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\nblue\ndisc\nturns\nwhat\n?\nis\nit\n\
                     user\nassistant\n:\n<\n>\nvideo\n/\n.\nlook\nwell\n##s\ns\n1\n2\n3\n";

/// A film of `seconds`, silent or with a tone of 440 Hz after half a second.
fn film(path: &Path, seconds: usize, tone: bool) {
    let (fps, size) = (8, 32);
    let frames = seconds * fps;
    let rgb = (0..frames * size * size * 3).map(|at| (at / (size * size * 3) * 3) as u8).collect();
    let sound = |at: usize| {
        let time = at as f32 / 16_000.0;
        if time < 0.5 { 0.0 } else { 0.5 * (TAU * 440.0 * time).sin() }
    };
    let sound = if tone { (0..seconds * 16_000).map(sound).collect() } else { Vec::new() };
    let film = Film { rgb, height: size, width: size, fps, sound };
    write_film(&film, encoder().unwrap().0, path).unwrap();
}

/// A folder with three clips, a vocabulary and this manifest.
fn world(manifest: &[Value]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    film(&dir.path().join("a.mp4"), 2, true);
    film(&dir.path().join("b.mp4"), 1, false);
    film(&dir.path().join("c.mp4"), 1, true);
    std::fs::write(dir.path().join("vocab.txt"), WORDS).unwrap();
    let lines: Vec<String> = manifest.iter().map(Value::to_string).collect();
    std::fs::write(dir.path().join("manifest.jsonl"), lines.join("\n")).unwrap();
    dir
}

fn config(dir: &Path, more: Value) -> Config {
    let mut all = json!({ "root": dir, "batch": 3, "frames": 2, "size": 16, "workers": 1 });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

fn call(step: u64) -> Call {
    Call::new(Key::new(0, "unused"), At { step, ..At::default() })
}

/// Frames of some steps, each from a node that was just opened.
fn steps(config: &Config, count: u64) -> Vec<Frames> {
    assert_eq!(config.check(&Dims::new()), []);
    let key = Key::new(5, "clips");
    let step = |step| {
        let mut state = config.open(&Dims::new(), &key).unwrap();
        let given = config.forward(&mut state, Frames::new(), &call(step)).unwrap();
        assert_eq!(given.notices.len(), 0, "{:?}", given.notices);
        given.frames
    };
    (0..count).map(step).collect()
}

fn refusal(config: &Config) -> String {
    config.open(&Dims::new(), &Key::new(5, "clips")).err().unwrap().to_string()
}

fn rows(frames: &Frames, port: &str) -> Vec<Vec<i64>> {
    let frame = &frames[port];
    frame.to_i64().chunks(frame.shape()[1]).map(<[i64]>::to_vec).collect()
}

#[test]
fn a_caption_is_one_of_its_paraphrases_and_the_same_after_resuming() {
    let dir = world(&[
        json!({ "path": "a.mp4", "captions": { "video": ["A red disc.", "a blue disc"] } }),
        json!({ "path": "b.mp4", "captions": { "video": "Turns! a red red red red disc" } }),
        json!({ "path": "c.mp4", "captions": {} }),
    ]);
    let text = |more: Value| {
        let mut text = json!({ "from": "captions.video", "tokenizer": dir.path(), "length": 6,
                               "clean": true });
        text.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "shuffle": false, "texts": { "caption": text } })
    };
    let error = refusal(&config(dir.path(), text(json!({}))));
    for part in ["`c.mp4`", "`captions.video`", "texts.caption.optional: true"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let drawn = config(dir.path(), text(json!({ "optional": true })));
    let all = steps(&drawn, 12);
    let first = |frames: &Frames| rows(frames, "caption")[0].clone();
    let (red, blue) = (vec![2, 5, 6, 8, 3, 0], vec![2, 5, 7, 8, 3, 0]);
    assert!(all.iter().all(|frames| [&red, &blue].contains(&&first(frames))));
    assert!(all.iter().any(|frames| first(frames) == red));
    assert!(all.iter().any(|frames| first(frames) == blue));
    // What does not fit is cut inside the special tokens; the empty text has these alone.
    assert_eq!(rows(&all[0], "caption")[1..], [[2, 9, 5, 6, 6, 3], [2, 3, 0, 0, 0, 0]]);
    let mask = [[1, 1, 1, 1, 1, 0], [1; 6], [1, 1, 0, 0, 0, 0]];
    assert_eq!(rows(&all[0], "caption_mask"), mask);
    let key = Key::new(5, "clips");
    let mut state = drawn.open(&Dims::new(), &key).unwrap();
    for (step, frames) in all.iter().enumerate() {
        let given = drawn.forward(&mut state, Frames::new(), &call(step as u64)).unwrap();
        assert_eq!(given.frames["caption"].bytes(), frames["caption"].bytes());
    }
    let fixed = config(dir.path(), text(json!({ "optional": true, "pick": "first" })));
    assert!(steps(&fixed, 6).iter().all(|frames| first(frames) == red));
}

#[test]
fn a_dialogue_has_a_place_for_the_video_and_labels_on_its_answer() {
    let questions = json!([
        { "question": "what is it?", "answer": "a red disc", "choices": ["x"] },
        { "question": "what turns?", "answer": "a blue disc" },
    ]);
    let dir = world(&[
        json!({ "path": "a.mp4", "questions": questions }),
        json!({ "path": "b.mp4", "questions": questions }),
        json!({ "path": "c.mp4", "questions": [{ "i": "look", "q": "", "a": "it turns" }] }),
    ]);
    let dialogue = |more: Value| {
        let mut dialogue = json!({
            "from": "questions", "tokenizer": dir.path().join("vocab.txt"), "template": "vicuna",
            "length": 64, "media": { "tokens": 5 }, "system": "look well",
            "question": { "length": 7 },
        });
        dialogue.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config(dir.path(), json!({ "shuffle": false, "dialogue": dialogue }))
    };
    let all = steps(&dialogue(json!({})), 8);
    let place = WORDS.lines().count() as i64;
    for frames in &all {
        let ids = rows(frames, "dialogue");
        let (labels, mask) = (rows(frames, "dialogue_labels"), rows(frames, "dialogue_mask"));
        for ((ids, labels), mask) in ids.iter().zip(&labels).zip(&mask) {
            assert_eq!(ids.iter().filter(|id| **id == place).count(), 5);
            // < video > before the placeholders, < / video > after them.
            let at = ids.iter().position(|id| *id == place).unwrap();
            assert_eq!(ids[at - 3..at], [17, 19, 18]);
            assert_eq!(ids[at + 5..at + 9], [17, 20, 19, 18]);
            let same = |(id, label): (&i64, &i64)| *label == -100 || id == label;
            assert!(ids.iter().zip(labels).all(same));
            assert!(labels.iter().zip(mask).all(|(label, mask)| *label == -100 || *mask == 1));
        }
        let told = |row: usize| labels[row].iter().copied().filter(|l| *l >= 0).collect::<Vec<_>>();
        assert!([vec![5, 6, 8], vec![5, 7, 8]].contains(&told(0)), "{:?}", told(0));
        assert_eq!(told(2), [13, 9]);
        // The bare question goes with the answer; an instruction comes before an empty question.
        let asked = rows(frames, "question");
        let expected =
            if told(0)[1] == 6 { [2, 10, 12, 13, 11, 3, 0] } else { [2, 10, 9, 11, 3, 0, 0] };
        assert_eq!((&asked[0][..], &asked[2][..]), (&expected[..], &[2, 22, 3, 0, 0, 0, 0][..]));
    }
    let firsts =
        |all: &[Frames]| all.iter().map(|f| rows(f, "question")[0].clone()).collect::<Vec<_>>();
    assert!(firsts(&all).windows(2).any(|pair| pair[0] != pair[1]), "draws differ");
    let whole = steps(&dialogue(json!({ "pick": "all" })), 1);
    let told = rows(&whole[0], "dialogue_labels")[0].iter().filter(|l| **l >= 0).count();
    assert_eq!(told, 6, "both answers");
    // Room for one turn: the oldest goes, the video stays.
    let cut = steps(&dialogue(json!({ "pick": "all", "length": 30 })), 1);
    let ids = rows(&cut[0], "dialogue");
    assert_eq!(ids[0].iter().filter(|id| **id == place).count(), 5);
    assert_eq!(rows(&cut[0], "question")[0], [2, 10, 9, 11, 3, 0, 0]);
    let refused = dialogue(json!({ "length": 20 }));
    let mut state = refused.open(&Dims::new(), &Key::new(5, "clips")).unwrap();
    let error = refused.forward(&mut state, Frames::new(), &call(0)).unwrap_err().to_string();
    assert!(error.contains("the length is 20") && error.contains("`a.mp4`"), "{error}");
}

#[test]
fn a_placeholder_that_texts_hold_is_refused_and_a_wrong_record_is_named_at_once() {
    let dir = world(&[json!({ "path": "a.mp4", "qa": [{ "q": "what?", "a": "it" }] })]);
    let dialogue = |from: &str, placeholder: i64| {
        let media = json!({ "tokens": 2, "placeholder": placeholder });
        config(
            dir.path(),
            json!({ "dialogue": { "from": from, "tokenizer": dir.path(),
            "template": "mistral", "length": 64, "media": media } }),
        )
    };
    let held = dialogue("qa", 13);
    let mut state = held.open(&Dims::new(), &Key::new(5, "clips")).unwrap();
    let error = held.forward(&mut state, Frames::new(), &call(0)).unwrap_err().to_string();
    assert!(error.contains("placeholder 13 3 times instead of 2"), "{error}");
    let error = refusal(&dialogue("questions", 99));
    assert!(error.contains("no field `questions`") && error.contains("`qa`"), "{error}");
}

#[test]
fn sound_belongs_to_the_seconds_of_the_frames() {
    let dir = world(&[
        json!({ "path": "a.mp4" }),
        json!({ "path": "b.mp4" }),
        json!({ "path": "a.mp4", "start": 1.0, "end": 1.5 }),
    ]);
    let heard = |more: Value| {
        let mut all = json!({ "sound": { "seconds": 1.0 } });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        steps(&config(dir.path(), all), 2)
    };
    let all = heard(json!({ "shuffle": false }));
    assert_eq!(all[0]["waveform"].shape(), [3, 16_000]);
    assert_eq!(all[0]["heard"].to_i64(), [1, 0, 1]);
    let sound = all[0]["waveform"].to_f32();
    let loud = |row: usize, from: usize, to: usize| {
        let part = &sound[row * 16_000 + from..row * 16_000 + to];
        (part.iter().map(|value| value * value).sum::<f32>() / part.len() as f32).sqrt()
    };
    // Silence until half a second, then a sine of amplitude 0.5.
    assert!(loud(0, 0, 7000) < 0.02, "{}", loud(0, 0, 7000));
    assert!((loud(0, 9000, 16_000) - 0.354).abs() < 0.04, "{}", loud(0, 9000, 16_000));
    assert_eq!(loud(1, 0, 16_000), 0.0);
    assert!((loud(2, 200, 7800) - 0.354).abs() < 0.04, "{}", loud(2, 200, 7800));
    assert_eq!(loud(2, 8000, 16_000), 0.0);
    // The tone is where it was written, to a few samples.
    let crossings = (9000..15_999).filter(|&at| sound[at] < 0.0 && sound[at + 1] >= 0.0).count();
    assert!((crossings as f32 - 7000.0 * 440.0 / 16_000.0).abs() < 3.0, "{crossings}");
    let first = (0..16_000).find(|&at| sound[at].abs() > 0.1).unwrap();
    assert!((7900..8200).contains(&first), "{first}");
    assert_eq!(all[0]["waveform"].bytes(), all[1]["waveform"].bytes(), "fixed seconds");
    let drawn = heard(json!({}));
    assert_ne!(drawn[0]["waveform"].bytes(), drawn[1]["waveform"].bytes());
    assert_eq!(drawn[1]["waveform"].bytes(), heard(json!({}))[1]["waveform"].bytes());
}

#[test]
fn a_file_whose_sound_is_cut_is_named_and_replaced() {
    let dir = world(&[json!({ "path": "a.mp4" }), json!({ "path": "c.mp4" })]);
    // Sound is written last.
    let film = std::fs::read(dir.path().join("a.mp4")).unwrap();
    std::fs::write(dir.path().join("a.mp4"), &film[..film.len() - 60]).unwrap();
    let silent = json!({ "batch": 2, "shuffle": false });
    assert_eq!(steps(&config(dir.path(), silent), 1)[0]["sample"].to_i64(), [0, 1]);
    let heard = json!({ "batch": 2, "shuffle": false, "sound": { "seconds": 2.0 } });
    let heard = config(dir.path(), heard);
    let mut state = heard.open(&Dims::new(), &Key::new(5, "clips")).unwrap();
    let given = heard.forward(&mut state, Frames::new(), &call(0)).unwrap();
    let said = format!("{:?}", given.notices);
    assert!(given.notices.len() == 1 && said.contains("its sound"), "{said}");
    assert_eq!(given.frames["sample"].to_i64(), [1, 1]);
}

#[test]
fn options_that_cannot_be_are_found_by_check() {
    let dir = world(&[json!({ "path": "a.mp4" })]);
    let vocabulary = dir.path().join("vocab.txt");
    let text = |name: &str, more: Value| {
        let mut text = json!({ "from": "caption", "tokenizer": vocabulary });
        text.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "texts": { name: text } })
    };
    let dialogue = |more: Value| {
        let mut dialogue = json!({ "from": "q", "tokenizer": vocabulary, "template": "vicuna",
            "length": 64 });
        dialogue.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "dialogue": dialogue })
    };
    for (more, option) in [
        (json!({ "sound": { "seconds": 0.0 } }), "sound.seconds"),
        (text("caption", json!({ "length": 0 })), "texts.caption.length"),
        (text("caption", json!({ "from": "" })), "texts.caption.from"),
        (text("caption", json!({ "tokenizer": dir.path().join("no") })), "texts.caption.tokenizer"),
        (text("a.b", json!({})), "texts"),
        (text("video", json!({})), "texts"),
        (dialogue(json!({ "template": "vicunia" })), "dialogue.template"),
        (dialogue(json!({ "length": 0 })), "dialogue.length"),
        (dialogue(json!({ "media": { "tokens": 64 } })), "dialogue.media.tokens"),
        (dialogue(json!({ "media": { "tokens": 0 } })), "dialogue.media.tokens"),
        (
            dialogue(json!({ "media": { "tokens": 4, "placeholder": -1 } })),
            "dialogue.media.placeholder",
        ),
        (dialogue(json!({ "question": { "length": 0 } })), "dialogue.question.length"),
    ] {
        let problems = config(dir.path(), more.clone()).check(&Dims::new());
        assert_eq!(problems.len(), 1, "{more} {problems:?}");
        assert_eq!(problems[0].option, option, "{more}");
        assert!(!problems[0].hint.is_empty());
    }
    let labelled = json!({ "labels": ["heard"], "sound": { "seconds": 1.0 } });
    assert_eq!(config(dir.path(), labelled).check(&Dims::new())[0].option, "labels");
}
