//! What a data set on disk must hold.

use super::*;
use crate::video::{DecodeOptions, Video};

fn small() -> Options {
    Options { train: 6, test: 2, untrimmed: 1, size: 32, frames: 8, ..Options::default() }
}

/// An encoder that reads memory before it writes there gives other files on other days.
#[cfg(target_env = "gnu")]
#[test]
fn files_do_not_depend_on_what_memory_held_before() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { train: 40, test: 0, untrimmed: 0, ..small() };
    for (name, byte) in [("one", 85), ("other", 170)] {
        // SAFETY: changes what this allocator fills its memory with.
        unsafe { libc::mallopt(libc::M_PERTURB, byte) };
        generate(&dir.path().join(name), &options, &|_, _| {}).unwrap();
    }
    for number in 0..40 {
        let [one, other] = ["one", "other"].map(|name| {
            std::fs::read(dir.path().join(format!("{name}/train/{number:05}.mp4"))).unwrap()
        });
        assert!(one == other, "film {number}");
    }
}

#[test]
fn a_data_set_is_written_once_and_equal_seeds_give_equal_files() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    let seen = AtomicUsize::new(0);
    let count = |_: usize, _: usize| {
        seen.fetch_add(1, Ordering::Relaxed);
    };
    let made = generate(&one, &small(), &count).unwrap();
    assert_eq!((made.files, made.reused, seen.into_inner()), (9, false, 9));
    assert!(generate(&one, &small(), &|_, _| {}).unwrap().reused);
    generate(&other, &small(), &|_, _| {}).unwrap();
    for name in ["train/00003.mp4", "train/manifest.jsonl", "manifest.csv"] {
        assert_eq!(
            std::fs::read(one.join(name)).unwrap(),
            std::fs::read(other.join(name)).unwrap(),
            "{name}"
        );
    }
    let changed = Options { seed: 1, ..small() };
    assert!(!generate(&other, &changed, &|_, _| {}).unwrap().reused);
    assert_ne!(
        std::fs::read(one.join("train/00003.mp4")).unwrap(),
        std::fs::read(other.join("train/00003.mp4")).unwrap()
    );
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(names.len(), 2, "{names:?}");
}

#[test]
fn a_folder_with_other_things_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.tex"), "x").unwrap();
    let error = generate(dir.path(), &small(), &|_, _| {}).unwrap_err();
    assert!(matches!(error, ShapesError::Occupied { .. }), "{error}");
    let odd = Options { size: 33, ..small() };
    assert!(generate(dir.path(), &odd, &|_, _| {}).unwrap_err().to_string().contains("even"));
}

#[test]
fn the_files_decode_to_what_was_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("clip.mp4");
    let (_, film) = record::make(&Options::default(), "train", 0);
    write_film(&film, encoder().unwrap().0, &file).unwrap();
    let mut video = Video::open(&file, &DecodeOptions::default()).unwrap();
    let info = video.info().clone();
    assert_eq!((info.frames, info.height, info.width), (16, 64, 64));
    assert!(info.has_audio && (info.fps - 16.0).abs() < 1e-9, "{info:?}");
    let frames = video.frames(&(0..16).collect::<Vec<_>>()).unwrap();
    let pairs = frames.data.iter().zip(&film.rgb);
    let mean = pairs.map(|(a, b)| f64::from(a.abs_diff(*b))).sum::<f64>() / film.rgb.len() as f64;
    assert!(mean < 8.0, "mean difference {mean}");
}
