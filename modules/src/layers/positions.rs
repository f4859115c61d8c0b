//! Sine-cosine position tables.
//!
//! A 1-D code of width d at position p is `[sin(p w_k) for all k, cos(p w_k) for all k]` with
//! `w_k = 10000^(-k / (d/2))`. Tables are row-major `[N, D]`, time outermost, then rows.

/// Extent of a token lattice: frames, rows, columns.
pub type Lattice = [usize; 3];

fn code(position: usize, width: usize, out: &mut Vec<f32>) {
    let half = width / 2;
    let angle = |k: usize| position as f64 / 10_000f64.powf(k as f64 / half as f64);
    out.extend((0..half).map(|k| angle(k).sin() as f32));
    out.extend((0..half).map(|k| angle(k).cos() as f32));
}

/// Table of a plane: the first half of the width codes the column, the second the row.
pub fn plane(rows: usize, columns: usize, width: usize) -> Vec<f32> {
    let mut table = Vec::with_capacity(rows * columns * width);
    for row in 0..rows {
        for column in 0..columns {
            code(column, width / 2, &mut table);
            code(row, width / 2, &mut table);
        }
    }
    table
}

/// Table of a line.
pub fn line(positions: usize, width: usize) -> Vec<f32> {
    let mut table = Vec::with_capacity(positions * width);
    (0..positions).for_each(|position| code(position, width, &mut table));
    table
}

/// Joint table of a clip: a quarter of the width codes the frame, the rest the place. `extra`
/// rows of zeros come first, for class tokens. The width must be a multiple of 16.
pub fn joint(lattice: Lattice, width: usize, extra: usize) -> Vec<f32> {
    let [frames, rows, columns] = lattice;
    let (time, space) = (width / 4, width - width / 4);
    let places = plane(rows, columns, space);
    let mut table = vec![0.0; extra * width];
    for frame in 0..frames {
        for place in places.chunks_exact(space) {
            code(frame, time, &mut table);
            table.extend_from_slice(place);
        }
    }
    table
}

/// Table with sines at even and cosines at odd channels: angle `p / 10000^(2 floor(j/2) / D)`
/// (VideoMAE).
pub fn interleaved(positions: usize, width: usize) -> Vec<f32> {
    let value = |position: usize, channel: usize| {
        let exponent = (2 * (channel / 2)) as f64 / width as f64;
        let angle = position as f64 / 10_000f64.powf(exponent);
        (if channel.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
    };
    (0..positions).flat_map(|p| (0..width).map(move |c| value(p, c))).collect()
}

/// Weights of the four values around a place, at fraction `t` past the second (Keys 1981, with
/// a = -0.75 as PyTorch).
fn cubic(t: f64) -> [f64; 4] {
    let a = -0.75;
    let near = |x: f64| ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
    [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)]
}

/// For each of `to` places, the four places of `from` and their weights; corners not aligned.
fn samples(from: usize, to: usize) -> Vec<[(usize, f64); 4]> {
    let one = |place: usize| {
        let at = (place as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let weights = cubic(at - at.floor());
        let clamped = |i: usize| (at.floor() as isize + i as isize - 1).clamp(0, from as isize - 1);
        [0, 1, 2, 3].map(|i| (clamped(i) as usize, weights[i]))
    };
    (0..to).map(one).collect()
}

/// Stretches each frame of a table from one plane to another, bicubically, corners not aligned.
pub fn resize(table: &[f32], from: [usize; 2], to: [usize; 2], width: usize) -> Vec<f32> {
    let (rows, columns) = (samples(from[0], to[0]), samples(from[1], to[1]));
    let mut out = Vec::new();
    for frame in table.chunks_exact(from[0] * from[1] * width) {
        for row in &rows {
            for column in &columns {
                let value = |channel: usize| {
                    let at =
                        |r: usize, c: usize| f64::from(frame[(r * from[1] + c) * width + channel]);
                    let line = |r: usize| column.iter().map(|(c, w)| w * at(r, *c)).sum::<f64>();
                    row.iter().map(|(r, w)| w * line(*r)).sum::<f64>() as f32
                };
                out.extend((0..width).map(value));
            }
        }
    }
    out
}

/// Stretches a table of `from` equal parts to `to` parts, linearly, corners not aligned.
pub fn stretch(table: &[f32], from: usize, to: usize) -> Vec<f32> {
    if from == to {
        return table.to_vec();
    }
    let each = table.len() / from;
    let part = |index: usize| {
        let place = (index as f64 + 0.5) * from as f64 / to as f64 - 0.5;
        let place = place.clamp(0.0, (from - 1) as f64);
        let (first, share) = (place.floor() as usize, place.fract());
        let [a, b] = [first, (first + 1).min(from - 1)].map(|i| &table[i * each..][..each]);
        let mix = |(a, b): (&f32, &f32)| f64::from(*a) * (1.0 - share) + f64::from(*b) * share;
        a.iter().zip(b).map(mix).map(|value| value as f32).collect::<Vec<_>>()
    };
    (0..to).flat_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_stretched_in_time_with_corners_apart() {
        let table = [0.0, 10.0, 1.0, 11.0];
        assert_eq!(stretch(&table, 2, 2), table);
        assert_eq!(stretch(&table, 2, 1), [0.5, 10.5]);
        assert_eq!(stretch(&table, 2, 4), [0.0, 10.0, 0.25, 10.25, 0.75, 10.75, 1.0, 11.0]);
    }

    #[test]
    fn the_joint_table_codes_time_first_then_column_then_row() {
        let table = joint([2, 2, 3], 16, 1);
        assert_eq!(table.len(), 13 * 16);
        assert!(table[..16].iter().all(|v| *v == 0.0));
        let token = &table[(1 + 6 + 3 + 2) * 16..][..16]; // frame 1, row 1, column 2
        assert_eq!(token[0], 1f64.sin() as f32);
        assert_eq!(token[4], 2f64.sin() as f32);
        assert_eq!(token[10], 1f64.sin() as f32);
    }

    #[test]
    fn the_interleaved_table_alternates() {
        let table = interleaved(3, 4);
        assert_eq!(table[8], 2f64.sin() as f32);
        assert_eq!(table[9], 2f64.cos() as f32);
        assert_eq!(table[10], (2.0 / 100f64).sin() as f32);
    }
}
