//! Tones through a plain Fourier transform: each factor is told by the nearest mean.

use std::path::Path;

use super::super::{Film, SAMPLE_RATE, encoder, write_film};
use super::*;
use crate::rng::Key;

const WINDOW: usize = 256;
const NAMES: [&str; 3] = ["pitch", "timbre", "beats"];

/// Log power `[frames][bins]` of every second window.
fn spectrogram(sound: &[f32]) -> Vec<Vec<f64>> {
    let wave: Vec<(f64, f64)> =
        (0..WINDOW).map(|at| (TAU * at as f64 / WINDOW as f64).sin_cos()).collect();
    let hann = |at: usize| 0.5 - 0.5 * wave[at].1;
    let bin = |frame: &[f64], bin: usize| {
        let (mut real, mut imaginary) = (0.0, 0.0);
        for (at, value) in frame.iter().enumerate() {
            let (sin, cos) = wave[bin * at % WINDOW];
            real += value * cos;
            imaginary += value * sin;
        }
        (real * real + imaginary * imaginary + 1e-4).ln()
    };
    let frame = |samples: &[f32]| -> Vec<f64> {
        let frame: Vec<f64> =
            samples.iter().enumerate().map(|(at, value)| f64::from(*value) * hann(at)).collect();
        (1..WINDOW / 2).map(|number| bin(&frame, number)).collect()
    };
    sound.chunks_exact(WINDOW).step_by(2).map(frame).collect()
}

/// Means over the loud frames of one to eight rows: pitch below 1.4 kHz, timbre above; and the
/// share of loud frames.
fn features(sound: &[f32]) -> [Vec<f64>; 3] {
    let frames = spectrogram(sound);
    let level = |frame: &Vec<f64>| frame[..24].iter().copied().fold(f64::MIN, f64::max);
    let top = frames.iter().map(level).fold(f64::MIN, f64::max);
    let loud: Vec<&Vec<f64>> = frames.iter().filter(|frame| level(frame) > top - 6.0).collect();
    let mean =
        |row: usize| loud.iter().map(|frame| frame[row]).sum::<f64>() / loud.len().max(1) as f64;
    let high: Vec<f64> = (32..120).map(mean).collect();
    let high = high.chunks(8).map(|rows| rows.iter().sum::<f64>() / 8.0).collect();
    let beats = vec![loud.len() as f64 / frames.len() as f64];
    [(0..22).map(mean).collect(), high, beats]
}

fn distance(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| (a - b).powi(2)).sum()
}

/// Share of `judged` whose class is that of the nearest mean over `known`.
fn nearest(known: &[(Vec<f64>, usize)], judged: &[(Vec<f64>, usize)]) -> f64 {
    let classes = known.iter().map(|(_, class)| class + 1).max().unwrap();
    let means: Vec<Vec<f64>> = (0..classes)
        .map(|class| {
            let own: Vec<&Vec<f64>> =
                known.iter().filter(|(_, own)| *own == class).map(|(row, _)| row).collect();
            let mean = |at: usize| own.iter().map(|row| row[at]).sum::<f64>() / own.len() as f64;
            (0..known[0].0.len()).map(mean).collect()
        })
        .collect();
    let class = |row: &Vec<f64>| {
        let near =
            |a: &usize, b: &usize| distance(row, &means[*a]).total_cmp(&distance(row, &means[*b]));
        (0..classes).min_by(near).unwrap()
    };
    let right = judged.iter().filter(|(row, own)| class(row) == *own).count();
    right as f64 / judged.len() as f64
}

/// A tone with all of it drawn.
fn tone(number: u64) -> (Tone, Vec<f32>) {
    let mut rng = Key::new(3, "tones").with_number(number).rng();
    let (timbre, pitch) = (rng.below(TIMBRES.len()), rng.below(PITCHES.len()));
    let tone = Tone { timbre, pitch, beats: 1 + rng.below(MOST_BEATS) };
    (tone, tone.play(SAMPLE_RATE, SAMPLE_RATE, &mut rng))
}

/// Features and classes of tones: pitch, timbre, beats.
fn columns(tones: impl Iterator<Item = (Tone, Vec<f32>)>) -> [Vec<(Vec<f64>, usize)>; 3] {
    let mut columns: [Vec<(Vec<f64>, usize)>; 3] = Default::default();
    for (tone, sound) in tones {
        assert!(sound.iter().all(|sample| sample.abs() <= 1.0));
        let classes = [tone.pitch, tone.timbre, tone.beats - 1];
        let rows = features(&sound).into_iter().zip(classes);
        columns.iter_mut().zip(rows).for_each(|(column, row)| column.push(row));
    }
    columns
}

/// The sound track of a film with this sound, as a reader finds it.
fn through_aac(sound: &[f32], file: &Path) -> Vec<f32> {
    let (size, frames) = (16, 16);
    let rgb = vec![128; frames * size * size * 3];
    let film = Film { rgb, height: size, width: size, fps: 16, sound: sound.to_vec() };
    write_film(&film, encoder().unwrap().0, file).unwrap();
    let mut input = ffmpeg_next::format::input(file).unwrap();
    let stream = input.streams().best(ffmpeg_next::media::Type::Audio).unwrap();
    let (index, parameters) = (stream.index(), stream.parameters());
    let context = ffmpeg_next::codec::Context::from_parameters(parameters).unwrap();
    let mut decoder = context.decoder().audio().unwrap();
    let mut found: Vec<f32> = Vec::new();
    let mut frame = ffmpeg_next::frame::Audio::empty();
    for (stream, packet) in input.packets() {
        if stream.index() == index {
            decoder.send_packet(&packet).unwrap();
            while decoder.receive_frame(&mut frame).is_ok() {
                found.extend(frame.plane::<f32>(0));
            }
        }
    }
    found
}

#[test]
fn timbre_pitch_and_beats_are_each_told_by_the_nearest_mean() {
    let known = columns((0..200).map(tone));
    let judged = columns((200..400).map(tone));
    for (name, (known, judged)) in NAMES.into_iter().zip(known.iter().zip(&judged)) {
        let share = nearest(known, judged);
        assert!(share >= 0.95, "{name}: {share}");
    }
}

#[test]
fn what_is_heard_survives_the_sound_track() {
    let dir = tempfile::tempdir().unwrap();
    let known = columns((0..200).map(tone));
    let judged = columns((400..500).map(|number| {
        let (tone, sound) = tone(number);
        let found = through_aac(&sound, &dir.path().join(format!("{number}.mp4")));
        assert!(found.len() >= sound.len(), "{} samples", found.len());
        (tone, found.into_iter().map(|sample| sample.clamp(-1.0, 1.0)).collect())
    }));
    for (name, (known, judged)) in NAMES.into_iter().zip(known.iter().zip(&judged)) {
        let share = nearest(known, judged);
        assert!(share >= 0.95, "{name}: {share}");
    }
}

#[test]
fn timbres_differ_in_two_bands_at_least_and_in_their_words() {
    for (at, one) in TIMBRES.iter().enumerate() {
        for other in &TIMBRES[..at] {
            let apart = one.bands.iter().zip(other.bands).filter(|(a, b)| **a != *b).count();
            assert!(apart >= 2, "{} and {}", one.name, other.name);
            assert!(one.name != other.name && one.kind != other.kind);
        }
    }
}

#[test]
fn beats_are_apart_and_any_part_of_a_clip_may_be_silent() {
    let mut first = [0; MOST_BEATS];
    for number in 0..300 {
        let mut rng = Key::new(4, "tones").with_number(number).rng();
        let tone = Tone { timbre: 1, pitch: 2, beats: 1 + number as usize % 3 };
        let sound = tone.play(16_000, 16_000, &mut rng);
        // Runs of sound that a silence of 50 ms parts.
        let (mut beats, mut silent) = (0, usize::MAX);
        for sample in &sound {
            if sample.abs() > 1e-3 {
                beats += usize::from(silent > 800);
                silent = 0;
            } else {
                silent = silent.saturating_add(1);
            }
        }
        assert_eq!(beats, tone.beats, "clip {number}");
        let third = sound.chunks(5334).position(|part| part.iter().any(|sample| *sample != 0.0));
        if tone.beats == 1 {
            first[third.unwrap()] += 1;
        }
    }
    assert!(first.iter().all(|count| *count > 15), "{first:?}");
}
