//! Logarithmic mel filterbank energies as Kaldi computes them, as products of matrices.
//!
//! Removal of the mean, pre-emphasis, window and Fourier transform of a frame are linear: one matrix,
//! made in f64, does them together.

use std::f64::consts::TAU;

use burn::tensor::{Int, Tensor, TensorData};

/// Samples a second.
pub const RATE: usize = 16_000;
/// Samples in a frame: 25 ms.
pub const FRAME: usize = 400;
/// Samples from a frame to the next: 10 ms.
pub const SHIFT: usize = 160;
/// Length of the Fourier transform, the next power of two.
const TRANSFORM: usize = 512;
const EMPHASIS: f64 = 0.97;
/// Lowest frequency of the filters.
const LOW: f64 = 20.0;

/// Frames of a waveform; the last samples that fill none are left out.
pub fn frames(samples: usize) -> usize {
    if samples < FRAME { 0 } else { 1 + (samples - FRAME) / SHIFT }
}

/// The matrix `[FRAME, 2 * TRANSFORM/2]` from samples of a frame to real and imaginary parts of its
/// spectrum. The highest frequency is in no filter and left out.
fn spectrum() -> Vec<f32> {
    let half = TRANSFORM / 2;
    // Hann window without periodicity, to the power 0.85 ("povey").
    let window = |n: usize| (0.5 - 0.5 * (TAU * n as f64 / (FRAME - 1) as f64).cos()).powf(0.85);
    let mut columns = vec![vec![0.0f64; FRAME]; 2 * half];
    for (k, pair) in columns.chunks_exact_mut(2).enumerate() {
        let angle = |n: usize| TAU * (k * n % TRANSFORM) as f64 / TRANSFORM as f64;
        for (part, into) in pair.iter_mut().enumerate() {
            let wave = |n: usize| if part == 0 { angle(n).cos() } else { -angle(n).sin() };
            // Of sample m: itself in frame place m, less its share in place m + 1.
            let at = |n: usize| window(n) * wave(n);
            let mut column: Vec<f64> = (0..FRAME)
                .map(|m| at(m) - if m + 1 < FRAME { EMPHASIS * at(m + 1) } else { 0.0 })
                .collect();
            // The sample before the first one is the first one again.
            column[0] -= EMPHASIS * at(0);
            let mean = column.iter().sum::<f64>() / FRAME as f64;
            *into = column.into_iter().map(|value| value - mean).collect();
        }
    }
    let order = (0..half).map(|k| 2 * k).chain((0..half).map(|k| 2 * k + 1));
    let order: Vec<usize> = order.collect();
    (0..FRAME)
        .flat_map(|n| order.iter().map(move |c| (n, *c)))
        .map(|(n, c)| columns[c][n] as f32)
        .collect()
}

/// Triangles on the mel scale, `[TRANSFORM/2, bins]`.
fn triangles(bins: usize) -> Vec<f32> {
    let mel = |frequency: f64| 1127.0 * (1.0 + frequency / 700.0).ln();
    let (low, high) = (mel(LOW), mel(RATE as f64 / 2.0));
    let step = (high - low) / (bins + 1) as f64;
    let half = TRANSFORM / 2;
    let value = |k: usize, bin: usize| {
        let at = mel(k as f64 * RATE as f64 / TRANSFORM as f64);
        let left = low + bin as f64 * step;
        let (up, down) = ((at - left) / step, (left + 2.0 * step - at) / step);
        up.min(down).max(0.0) as f32
    };
    (0..half)
        .flat_map(|k| (0..bins).map(move |bin| (k, bin)))
        .map(|(k, bin)| value(k, bin))
        .collect()
}

/// Natural logarithms of filter energies `[B, F, bins]` of waveforms `[B, S]` in -1..1.
pub fn filterbank(waveform: Tensor<2>, bins: usize) -> Tensor<3> {
    let [batch, samples] = waveform.dims();
    let (count, half, device) = (frames(samples), TRANSFORM / 2, waveform.device().inner());
    let matrix = |values: Vec<f32>, rows: usize, columns: usize| {
        Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), &device)
    };
    let places = (0..count).flat_map(|frame| (0..FRAME).map(move |n| (frame * SHIFT + n) as i64));
    let places = TensorData::new(places.collect::<Vec<_>>(), [count * FRAME]);
    let places = Tensor::<1, Int>::from_data(places, &device);
    // Kaldi works on 16-bit samples.
    let cut = waveform.mul_scalar(32_768.0).select(1, places).reshape([batch * count, FRAME]);
    let parts = cut.matmul(matrix(spectrum(), FRAME, 2 * half)).square();
    let power = parts.clone().slice_dim(1, 0..half) + parts.slice_dim(1, half..2 * half);
    let energy = power.matmul(matrix(triangles(bins), half, bins));
    energy.clamp_min(f32::EPSILON).log().reshape([batch, count, bins])
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn a_tone_is_loudest_in_its_filter() {
        let tone = |frequency: f64| -> Vec<f32> {
            let wave = |n: usize| (TAU * frequency * n as f64 / RATE as f64).sin() as f32;
            (0..1600).map(wave).collect()
        };
        let loudest = |frequency: f64| {
            let data = TensorData::new(tone(frequency), [1, 1600]);
            let waveform = Tensor::<2>::from_data(data, &Device::flex());
            let bank = filterbank(waveform, 64);
            assert_eq!(bank.dims(), [1, frames(1600), 64]);
            bank.mean_dim(1).argmax(2).into_scalar::<i64>()
        };
        let mel = |f: f64| 1127.0 * (1.0 + f / 700.0).ln();
        for frequency in [300.0, 1000.0, 5000.0] {
            let bin = (mel(frequency) - mel(LOW)) / ((mel(8000.0) - mel(LOW)) / 65.0) - 1.0;
            assert!((loudest(frequency) as f64 - bin).abs() < 1.5, "{frequency}: {bin}");
        }
    }

    #[test]
    fn silence_is_the_smallest_energy() {
        let bank = filterbank(Tensor::zeros([1, 560], &Device::flex()), 8);
        assert_eq!(bank.dims(), [1, 2, 8]);
        let value = bank.max().into_scalar::<f32>();
        assert!((value - f32::EPSILON.ln()).abs() < 1e-5, "{value}");
    }
}
