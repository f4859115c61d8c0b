//! What can be heard: a tone whose pitch names the shape, whose timbre names the motion, and whose
//! beats are drawn by themselves.
//!
//! A timbre is a pattern in five bands above the highest pitch, and a way to tremble. So pitch and
//! timbre lie in different rows of a spectrogram, and beats in its columns.

use std::f64::consts::TAU;

use super::world::Appearance;
use crate::rng::Rng;

/// Most beats of a tone.
pub const MOST_BEATS: usize = 3;

/// Names and hertz of the pitches, in the order of the shapes.
pub const PITCHES: [(&str, f64); 4] =
    [("low", 220.0), ("middle", 370.0), ("high", 620.0), ("very high", 1040.0)];

/// Middles of the bands, in hertz.
const BANDS: [f64; 5] = [2600.0, 3400.0, 4300.0, 5300.0, 6400.0];

/// How a tone sounds, whatever its pitch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timbre {
    /// One word.
    pub name: &'static str,
    /// The same in other words.
    pub kind: &'static str,
    /// Which bands sound; any two timbres differ in two at least.
    bands: [bool; 5],
    /// Whether the bands hold noise instead of partials.
    noise: bool,
    /// Hertz of loudness; 0 for a steady tone.
    tremolo: f64,
    /// Hertz of pitch; 0 for a steady tone.
    vibrato: f64,
    /// Change of pitch over a beat, as a share.
    glide: f64,
}

const fn timbre(name: &'static str, kind: &'static str, bands: u8) -> Timbre {
    let bands = [bands & 16 != 0, bands & 8 != 0, bands & 4 != 0, bands & 2 != 0, bands & 1 != 0];
    Timbre { name, kind, bands, noise: false, tremolo: 0.0, vibrato: 0.0, glide: 0.0 }
}

/// Timbres, in the order of the motions.
pub const TIMBRES: [Timbre; 14] = [
    timbre("hum", "soft round tone", 0b00000),
    timbre("buzz", "harsh bright tone", 0b11110),
    timbre("whistle", "thin airy tone", 0b00011),
    timbre("horn", "full brassy tone", 0b11000),
    Timbre { vibrato: 12.0, ..timbre("warble", "wavering tone", 0b01010) },
    Timbre { tremolo: 30.0, ..timbre("rattle", "chattering tone", 0b10001) },
    Timbre { noise: true, ..timbre("hiss", "rushing noise", 0b01111) },
    timbre("bell", "ringing metal tone", 0b10100),
    timbre("chime", "glassy tone", 0b00101),
    timbre("drone", "dull wooden tone", 0b01100),
    Timbre { glide: 0.15, ..timbre("chirp", "rising birdlike tone", 0b01001) },
    Timbre { tremolo: 18.0, ..timbre("growl", "rough shaking tone", 0b10010) },
    Timbre { vibrato: 7.0, ..timbre("flute", "breathy tone", 0b00110) },
    Timbre { glide: -0.15, ..timbre("siren", "falling wailing tone", 0b11011) },
];

/// What is heard in a clip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tone {
    /// Place in [`TIMBRES`]: the motion.
    pub timbre: usize,
    /// Place in [`PITCHES`]: the shape.
    pub pitch: usize,
    /// 1, 2 or 3.
    pub beats: usize,
}

impl Tone {
    /// The tone of a look and a motion. The beats come from `rng` alone.
    pub fn draw(look: &Appearance, motion: usize, rng: &mut Rng) -> Self {
        Self { timbre: motion, pitch: look.shape, beats: 1 + rng.below(MOST_BEATS) }
    }

    /// How it sounds.
    pub fn timbre(self) -> &'static Timbre {
        &TIMBRES[self.timbre]
    }

    /// The name of its pitch.
    pub fn pitch_name(self) -> &'static str {
        PITCHES[self.pitch].0
    }

    /// Samples in -1..1. Each beat lies in a third of its own, so that no part of the clip tells
    /// how many there are.
    pub fn play(self, samples: usize, rate: usize, rng: &mut Rng) -> Vec<f32> {
        let mut sound = vec![0.0; samples];
        let third = samples as f64 / MOST_BEATS as f64;
        let thirds = rng.permutation(MOST_BEATS);
        let loudness = rng.between(0.7, 1.0);
        let detune = rng.between(0.98, 1.02);
        for &place in &thirds[..self.beats] {
            let start = ((place as f64 + rng.between(0.1, 0.3)) * third) as usize;
            let end = (start + (third * 0.5) as usize).min(samples);
            let beat = &mut sound[start.min(end)..end];
            self.beat(beat, rate as f64, detune, rng);
            for sample in beat {
                *sample *= loudness as f32;
            }
        }
        sound
    }

    /// One beat, from its first sample to its last.
    fn beat(self, into: &mut [f32], rate: f64, detune: f64, rng: &mut Rng) {
        let timbre = self.timbre();
        let hertz = PITCHES[self.pitch].1 * detune;
        let length = into.len() as f64;
        let (attack, release) = ((rate * 0.008).min(length / 4.0), (rate * 0.02).min(length / 4.0));
        let mut phase = rng.uniform();
        let mut partials = timbre.partials(rate, rng);
        for (at, sample) in into.iter_mut().enumerate() {
            let at = at as f64;
            let seconds = at / rate;
            let vibrato = 0.04 * (TAU * timbre.vibrato * seconds).sin();
            phase += hertz / rate * (1.0 + vibrato + timbre.glide * (at / length - 0.5));
            let mut value = 0.2 * (TAU * phase).sin() + 0.08 * (2.0 * TAU * phase).sin();
            value += partials.iter_mut().map(Partial::next).sum::<f64>();
            let shake = match timbre.tremolo {
                0.0 => 1.0,
                hertz => 0.5 - 0.45 * (TAU * hertz * seconds).cos(),
            };
            let edge = ((at + 1.0) / attack).min((length - at) / release).min(1.0);
            *sample = (value * shake * edge) as f32;
        }
    }
}

impl Timbre {
    /// What sounds in the bands.
    fn partials(&self, rate: f64, rng: &mut Rng) -> Vec<Partial> {
        let mut partials = Vec::new();
        for (&middle, _) in BANDS.iter().zip(self.bands).filter(|(_, on)| *on) {
            let (count, width, level) =
                if self.noise { (8, 250.0, 0.022) } else { (2, 60.0, 0.08) };
            for number in 0..count {
                let offset = match self.noise {
                    true => rng.between(-width, width),
                    false => width * (2.0 * number as f64 - 1.0),
                };
                partials.push(Partial::new((middle + offset) / rate, level, rng.uniform()));
            }
        }
        partials
    }
}

/// A sine by turning a pointer, which is faster than asking for each angle.
struct Partial {
    real: f64,
    imaginary: f64,
    turn: (f64, f64),
}

impl Partial {
    /// `turns` per sample.
    fn new(turns: f64, level: f64, phase: f64) -> Self {
        let (sin, cos) = (TAU * phase).sin_cos();
        Self { real: level * cos, imaginary: level * sin, turn: (TAU * turns).sin_cos() }
    }

    fn next(&mut self) -> f64 {
        let (sin, cos) = self.turn;
        let Self { real, imaginary, .. } = *self;
        self.real = real * cos - imaginary * sin;
        self.imaginary = real * sin + imaginary * cos;
        self.imaginary
    }
}

#[cfg(test)]
#[path = "sound_tests.rs"]
mod tests;
