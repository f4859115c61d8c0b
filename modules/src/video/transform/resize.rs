//! Resizing pictures, with the numbers of `torch.nn.functional.interpolate(align_corners=False)`.
//!
//! Both passes are separable: columns first, then rows, each a short weighted sum whose weights are
//! computed once per size. Without antialiasing bicubic uses a = -0.75, with it a = -0.5, and the
//! filter widens with the scale; the same as PyTorch and Pillow.

use serde::{Deserialize, Serialize};

/// The interpolation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// The pixel at `floor(i * in / out)`.
    Nearest,
    /// A triangle, two pixels wide.
    Bilinear,
    /// A cubic, four pixels wide; overshoots.
    Bicubic,
}

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Region {
    /// A whole picture.
    pub fn whole(height: usize, width: usize) -> Self {
        Self { top: 0, left: 0, height, width }
    }
}

/// A picture `[H, W, C]` inside a larger one.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [u8],
    /// Values from one row to the next.
    stride: usize,
    channels: usize,
}

impl<'a> View<'a> {
    /// The part of a picture of `width` columns that a region covers.
    pub fn new(data: &'a [u8], width: usize, channels: usize, region: Region) -> Self {
        let stride = width * channels;
        Self { data: &data[region.top * stride + region.left * channels..], stride, channels }
    }

    fn row(&self, row: usize, width: usize) -> &'a [u8] {
        &self.data[row * self.stride..][..width * self.channels]
    }
}

/// Which source positions make up each output position along one axis, and with which weights.
#[derive(Debug, Clone, PartialEq)]
struct Taps {
    /// First source position of each output position.
    starts: Vec<usize>,
    /// Weights, `width` per output position, zero-filled.
    weights: Vec<f32>,
    /// The same, not rounded.
    exact: Vec<f64>,
    /// The same in fixed point.
    fixed: Vec<i16>,
    /// Bits after the point.
    bits: u32,
    width: usize,
    input: usize,
}

impl Taps {
    fn new(input: usize, output: usize, filter: Filter, antialias: bool) -> Self {
        let scale = input as f64 / output as f64;
        let each: Vec<(usize, Vec<f64>)> = (0..output)
            .map(|at| match filter {
                Filter::Nearest => (at * input / output, vec![1.0]),
                _ if antialias => antialiased(at, scale, input, filter),
                _ => plain(at, scale, input, filter),
            })
            .collect();
        let width = each.iter().map(|(_, weights)| weights.len()).max().unwrap_or(1);
        let largest = each.iter().flat_map(|(_, weights)| weights).fold(0.0, |a: f64, &b| a.max(b));
        let bits = fixed_bits(largest);
        let mut taps = Self {
            starts: Vec::with_capacity(output),
            weights: Vec::with_capacity(output * width),
            exact: Vec::with_capacity(output * width),
            fixed: Vec::with_capacity(output * width),
            bits,
            width,
            input,
        };
        for (start, mut weights) in each {
            // Every window has the same length, so it may have to begin earlier.
            let start_all = start.min(input - width.min(input));
            let mut window = vec![0.0; start - start_all];
            window.append(&mut weights);
            window.resize(width, 0.0);
            taps.starts.push(start_all);
            taps.fixed.extend(window.iter().map(|weight| fixed(*weight, bits)));
            taps.weights.extend(window.iter().map(|weight| *weight as f32));
            taps.exact.extend(window);
        }
        taps
    }

    /// Only the outputs `first..first + count`.
    fn window(&mut self, first: usize, count: usize) {
        let keep = first * self.width..(first + count) * self.width;
        self.starts = self.starts[first..first + count].to_vec();
        self.weights = self.weights[keep.clone()].to_vec();
        self.exact = self.exact[keep.clone()].to_vec();
        self.fixed = self.fixed[keep].to_vec();
    }

    /// The source positions that any output needs.
    fn needed(&self) -> std::ops::Range<usize> {
        let first = self.starts.iter().copied().min().unwrap_or(0);
        let last = self.starts.iter().copied().max().unwrap_or(0);
        first..(last + self.width).min(self.input)
    }

    fn outputs(&self) -> usize {
        self.starts.len()
    }
}

/// Resizing along one axis as a matrix, `[output, input]` row-major.
pub fn matrix(input: usize, output: usize, filter: Filter, antialias: bool) -> Vec<f32> {
    let taps = Taps::new(input, output, filter, antialias);
    let mut matrix = vec![0.0; output * input];
    let rows = taps.starts.iter().zip(taps.weights.chunks_exact(taps.width));
    for (at, (start, weights)) in rows.enumerate() {
        matrix[at * input + start..][..taps.width].copy_from_slice(weights);
    }
    matrix
}

/// The weights of an output position when the filter widens with the scale.
fn antialiased(at: usize, scale: f64, input: usize, filter: Filter) -> (usize, Vec<f64>) {
    let radius = if filter == Filter::Bicubic { 2.0 } else { 1.0 };
    let widen = scale.max(1.0);
    let (support, center) = (radius * widen, scale * (at as f64 + 0.5));
    let first = (center - support + 0.5).max(0.0) as usize;
    let end = ((center + support + 0.5) as usize).min(input);
    let weigh = |source: usize| {
        let x = ((source as f64 - center + 0.5) / widen).abs();
        if filter == Filter::Bicubic { cubic(x, -0.5) } else { (1.0 - x).max(0.0) }
    };
    let weights: Vec<f64> = (first..end).map(weigh).collect();
    let total: f64 = weights.iter().sum();
    (first, weights.iter().map(|weight| weight / total).collect())
}

/// The weights of an output position with the filter as it is; positions off the edge count for
/// the edge.
fn plain(at: usize, scale: f64, input: usize, filter: Filter) -> (usize, Vec<f64>) {
    let exact = (at as f64 + 0.5) * scale - 0.5;
    let (exact, reach) = match filter {
        Filter::Bicubic => (exact, -1..=2),
        _ => (exact.max(0.0), 0..=1),
    };
    let below = exact.floor();
    let place = |offset: i64| (below as i64 + offset).clamp(0, input as i64 - 1) as usize;
    let (first, last) = (place(*reach.start()), place(*reach.end()));
    let mut weights = vec![0.0; last - first + 1];
    for offset in reach {
        let x = (exact - below - offset as f64).abs();
        let weight = if filter == Filter::Bicubic { cubic(x, -0.75) } else { (1.0 - x).max(0.0) };
        weights[place(offset) - first] += weight;
    }
    (first, weights)
}

/// Keys' cubic convolution kernel.
fn cubic(x: f64, a: f64) -> f64 {
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

/// As many bits as keep the largest weight in 16 bits; PyTorch's rule.
fn fixed_bits(largest: f64) -> u32 {
    let fits = |bits: &u32| ((0.5 + largest * f64::from(1u32 << (bits + 1))) as i64) < 1 << 15;
    (0..22).find(|bits| !fits(bits)).unwrap_or(22)
}

fn fixed(weight: f64, bits: u32) -> i16 {
    // Rounds half away from zero, as a C cast after adding or subtracting a half does.
    (weight * f64::from(1u32 << bits)).round() as i16
}

/// A resize from one size to another, ready to run on many pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct Resizer {
    rows: Taps,
    columns: Taps,
}

impl Resizer {
    /// A resize between two (height, width); none may be 0.
    pub fn new(from: (usize, usize), to: (usize, usize), filter: Filter, antialias: bool) -> Self {
        Self {
            rows: Taps::new(from.0, to.0, filter, antialias),
            columns: Taps::new(from.1, to.1, filter, antialias),
        }
    }

    /// The same resize, computing only a part of the result.
    pub fn window(mut self, part: Region) -> Self {
        self.rows.window(part.top, part.height);
        self.columns.window(part.left, part.width);
        self
    }

    /// The resized picture `[H, W, C]`, neither rounded nor clamped.
    pub fn float(&self, from: View<'_>) -> Vec<f32> {
        let line = self.columns.outputs() * from.channels;
        let needed = self.rows.needed();
        let mut middle = vec![0.0; needed.len() * line];
        let mut values = vec![0.0f32; self.columns.input * from.channels];
        for (row, out) in needed.clone().zip(middle.chunks_exact_mut(line)) {
            for (value, &byte) in values.iter_mut().zip(from.row(row, self.columns.input)) {
                *value = f32::from(byte);
            }
            match from.channels {
                3 => float_columns::<3>(&self.columns, &values, out),
                _ => {
                    for channel in 0..from.channels {
                        one_channel(&self.columns, &values, out, (channel, from.channels));
                    }
                }
            }
        }
        let mut result = vec![0.0; self.rows.outputs() * line];
        for (at, out) in result.chunks_exact_mut(line).enumerate() {
            let weights = &self.rows.weights[at * self.rows.width..][..self.rows.width];
            for (tap, &weight) in weights.iter().enumerate() {
                if weight == 0.0 {
                    continue;
                }
                let row = (self.rows.starts[at] + tap - needed.start) * line;
                for (to, &value) in out.iter_mut().zip(&middle[row..row + line]) {
                    *to += weight * value;
                }
            }
        }
        result
    }

    /// The resized picture rounded half to even and clamped to bytes at the end.
    pub fn rounded(&self, from: View<'_>) -> Vec<u8> {
        let byte = |(at, value): (usize, &f32)| {
            // Sums in f32 are off by a few 1e-5, which must not decide between two bytes.
            let doubtful = (value - value.floor() - 0.5).abs() < 1e-3;
            let value = if doubtful { self.exact(from, at) } else { f64::from(*value) };
            value.round_ties_even().clamp(0.0, 255.0) as u8
        };
        self.float(from).iter().enumerate().map(byte).collect()
    }

    /// One value of the resized picture, in f64.
    fn exact(&self, from: View<'_>, at: usize) -> f64 {
        let channels = from.channels;
        let line = self.columns.outputs() * channels;
        let (row, column, channel) = (at / line, at % line / channels, at % channels);
        let taps = |taps: &'_ Taps, at: usize| {
            (taps.starts[at], taps.exact[at * taps.width..][..taps.width].to_vec())
        };
        let ((top, rows), (left, columns)) = (taps(&self.rows, row), taps(&self.columns, column));
        let across = |row: usize| -> f64 {
            let source = from.row(row, self.columns.input)[left * channels + channel..].iter();
            let pixels = source.step_by(channels);
            columns.iter().zip(pixels).map(|(weight, pixel)| weight * f64::from(*pixel)).sum()
        };
        rows.iter().enumerate().map(|(tap, weight)| weight * across(top + tap)).sum()
    }

    /// The resized picture in 16-bit fixed point, with bytes between the two passes: what PyTorch
    /// and torchvision do to byte tensors, and within a few levels of Pillow.
    pub fn native(&self, from: View<'_>) -> Vec<u8> {
        let (channels, line) = (from.channels, self.columns.outputs() * from.channels);
        let needed = self.rows.needed();
        let mut middle = vec![0u8; needed.len() * line];
        for (row, out) in needed.clone().zip(middle.chunks_exact_mut(line)) {
            let source = from.row(row, self.columns.input);
            match channels {
                3 => native_columns::<3>(&self.columns, source, out),
                _ => {
                    for channel in 0..channels {
                        native_channel(&self.columns, source, out, (channel, channels));
                    }
                }
            }
        }
        let mut result = vec![0u8; self.rows.outputs() * line];
        let mut sums = vec![0i32; line];
        for (at, out) in result.chunks_exact_mut(line).enumerate() {
            sums.fill(0);
            let weights = &self.rows.fixed[at * self.rows.width..][..self.rows.width];
            for (tap, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0) {
                let row = (self.rows.starts[at] + tap - needed.start) * line;
                for (sum, &value) in sums.iter_mut().zip(&middle[row..row + line]) {
                    *sum += i32::from(weight) * i32::from(value);
                }
            }
            for (to, &sum) in out.iter_mut().zip(&sums) {
                *to = to_byte(sum, self.rows.bits);
            }
        }
        result
    }
}

fn to_byte(sum: i32, bits: u32) -> u8 {
    let half = if bits == 0 { 0 } else { 1 << (bits - 1) };
    ((sum + half) >> bits).clamp(0, 255) as u8
}

/// One row, all channels of a pixel together.
fn float_columns<const C: usize>(taps: &Taps, values: &[f32], out: &mut [f32]) {
    for (at, pixel) in out.chunks_exact_mut(C).enumerate() {
        let weights = &taps.weights[at * taps.width..][..taps.width];
        let source = values[taps.starts[at] * C..].chunks_exact(C);
        let mut sum = [0.0; C];
        for (weight, value) in weights.iter().zip(source) {
            for channel in 0..C {
                sum[channel] += weight * value[channel];
            }
        }
        pixel.copy_from_slice(&sum);
    }
}

/// One row in fixed point, all channels of a pixel together.
fn native_columns<const C: usize>(taps: &Taps, source: &[u8], out: &mut [u8]) {
    for (at, pixel) in out.chunks_exact_mut(C).enumerate() {
        let weights = &taps.fixed[at * taps.width..][..taps.width];
        let values = source[taps.starts[at] * C..].chunks_exact(C);
        let mut sum = [0i32; C];
        for (&weight, value) in weights.iter().zip(values) {
            for channel in 0..C {
                sum[channel] += i32::from(weight) * i32::from(value[channel]);
            }
        }
        for (to, sum) in pixel.iter_mut().zip(sum) {
            *to = to_byte(sum, taps.bits);
        }
    }
}

/// One row in fixed point, one (channel, of how many).
fn native_channel(taps: &Taps, source: &[u8], out: &mut [u8], (channel, of): (usize, usize)) {
    for (at, to) in out.iter_mut().skip(channel).step_by(of).enumerate() {
        let weights = &taps.fixed[at * taps.width..][..taps.width];
        let values = source[taps.starts[at] * of + channel..].iter().step_by(of);
        let products = weights.iter().zip(values).map(|(&w, &v)| i32::from(w) * i32::from(v));
        *to = to_byte(products.sum(), taps.bits);
    }
}

/// One row, one (channel, of how many).
fn one_channel(taps: &Taps, values: &[f32], out: &mut [f32], (channel, of): (usize, usize)) {
    for (at, to) in out.iter_mut().skip(channel).step_by(of).enumerate() {
        let weights = &taps.weights[at * taps.width..][..taps.width];
        let source = values[taps.starts[at] * of + channel..].iter().step_by(of);
        *to = weights.iter().zip(source).map(|(weight, value)| weight * value).sum();
    }
}

#[cfg(test)]
mod tests;
