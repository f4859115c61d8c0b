//! Position tables of other sizes.
//!
//! Rows of a table lie frame by frame, then row by row. Source: `interpolate` of PyTorch with corners
//! not aligned; recipes §2.3 (time) and §5.1 (time and space).

use super::{ArrayF32, Filter, along, volume};
use crate::layers::positions;
use crate::video::transform::resize::{Region, Resizer, View};

/// The largest extent of a side.
const MAX_SIDE: usize = 1024;

/// Weights `[to, from]` of a linear or cubic interpolation along one axis.
pub(super) fn weights(
    (from, to): (usize, usize),
    (filter, antialias): (Filter, bool),
) -> Result<Vec<f64>, String> {
    if from == 0 || to == 0 || from > MAX_SIDE || to > MAX_SIDE {
        return Err(format!("sides of {from} and {to}; they are 1 to {MAX_SIDE}"));
    }
    // A picture of one column whose channels are each bright in one row: what becomes of a channel
    // is the weight of its row.
    let picture: Vec<u8> = (0..from * from).map(|i| u8::from(i / from == i % from)).collect();
    let view = View::new(&picture, 1, from, Region::whole(from, 1));
    let weights = Resizer::new((from, 1), (to, 1), filter, antialias).float(view);
    Ok(weights.into_iter().map(f64::from).collect())
}

/// The rows that stay and the table after them, and the width.
fn split(table: &ArrayF32, leading: usize) -> Result<(&[f32], &[f32], usize), String> {
    let [ones @ .., rows, width] = table.shape.as_slice() else {
        return Err(format!("a table [N, D] is needed, got {:?}", table.shape));
    };
    if ones.iter().any(|extent| *extent != 1) || *width == 0 || leading > *rows {
        let shape = &table.shape;
        return Err(format!("a table [N, D] with {leading} leading rows is needed, got {shape:?}"));
    }
    let (kept, rest) = table.values.split_at(leading * width);
    Ok((kept, rest, *width))
}

/// A side of 0, or a table too large to be held, makes no sense anywhere.
fn check_sides(sides: &[usize], width: usize) -> Result<usize, String> {
    if sides.iter().any(|side| !(1..=MAX_SIDE).contains(side)) {
        return Err(format!("sides {sides:?}; they are 1 to {MAX_SIDE}"));
    }
    let count = sides.iter().product::<usize>();
    volume(&[count, width]).map(|_| count).ok_or_else(|| format!("{sides:?} is too large"))
}

fn join(table: &ArrayF32, kept: &[f32], rest: Vec<f32>, width: usize) -> ArrayF32 {
    let mut shape = table.shape.clone();
    let at = shape.len() - 2;
    shape[at] = (kept.len() + rest.len()) / width;
    ArrayF32 { shape, values: [kept, &rest].concat() }
}

/// Each frame of a table, resized.
pub(super) fn plane(
    table: &ArrayF32,
    (from, to): ([usize; 2], [usize; 2]),
    leading: usize,
    (filter, antialias): (Filter, bool),
) -> Result<ArrayF32, String> {
    let (kept, rest, width) = split(table, leading)?;
    let places = check_sides(&from, width)?;
    check_sides(&to, width)?;
    let rows = rest.len() / width;
    if rows == 0 || !rows.is_multiple_of(places) {
        return Err(format!("{rows} rows are no frames of {from:?}"));
    }
    let frames = rows / places;
    volume(&[frames, to[0] * to[1], width]).ok_or("the table would be too large")?;
    let made = match (filter, antialias) {
        (Filter::Bicubic, false) => positions::resize(rest, from, to, width),
        how => {
            let [across, down] = [1, 0].map(|axis| weights((from[axis], to[axis]), how));
            let wide = along(rest, width, &across?, (from[1], to[1]));
            along(&wide, to[1] * width, &down?, (from[0], to[0]))
        }
    };
    Ok(join(table, kept, made, width))
}

/// A table of clips, resized in time.
pub(super) fn time(
    table: &ArrayF32,
    (from, to): (usize, usize),
    leading: usize,
) -> Result<ArrayF32, String> {
    let (kept, rest, width) = split(table, leading)?;
    check_sides(&[from, to], 1)?;
    let rows = rest.len() / width;
    if rows == 0 || !rows.is_multiple_of(from) {
        return Err(format!("{rows} rows are not {from} frames"));
    }
    volume(&[rows / from, to, width]).ok_or("the table would be too large")?;
    let weights = weights((from, to), (Filter::Bilinear, false))?;
    let made = along(rest, rest.len() / from, &weights, (from, to));
    Ok(join(table, kept, made, width))
}

/// A table of clips, resized in time and space.
pub(super) fn clip(
    table: &ArrayF32,
    (from, to): ([usize; 3], [usize; 3]),
    leading: usize,
) -> Result<ArrayF32, String> {
    let (_, rest, width) = split(table, leading)?;
    if rest.len() / width != check_sides(&from, width)? {
        return Err(format!("{} rows are not {from:?}", rest.len() / width));
    }
    check_sides(&to, width)?;
    let timed = time(table, (from[0], to[0]), leading)?;
    let planes = ([from[1], from[2]], [to[1], to[2]]);
    plane(&timed, planes, leading, (Filter::Bicubic, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: usize, width: usize) -> ArrayF32 {
        let values = (0..rows * width).map(|i| (i * 7 % 13) as f32).collect();
        ArrayF32 { shape: vec![1, rows, width], values }
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let table = table(1 + 12, 4);
        for how in [(Filter::Bilinear, true), (Filter::Bicubic, true), (Filter::Bicubic, false)] {
            assert_eq!(plane(&table, ([2, 3], [2, 3]), 1, how).unwrap(), table);
        }
        assert_eq!(clip(&table, ([2, 2, 3], [2, 2, 3]), 1).unwrap(), table);
    }

    #[test]
    fn leading_rows_stay_and_twice_the_frames_lie_between() {
        let table = ArrayF32 { shape: vec![3, 1], values: vec![9.0, 0.0, 4.0] };
        let longer = time(&table, (2, 4), 1).unwrap();
        assert_eq!((longer.shape, longer.values), (vec![5, 1], vec![9.0, 0.0, 1.0, 3.0, 4.0]));
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        let how = (Filter::Bicubic, false);
        assert!(plane(&table(5, 2), ([2, 2], [3, 3]), 0, how).is_err());
        assert!(plane(&table(4, 2), ([0, 2], [3, 3]), 0, how).is_err());
        assert!(plane(&table(4, 2), ([2, 2], [3, 0]), 0, how).is_err());
        assert!(plane(&table(4, 2), ([2, 2], [1 << 20, 1 << 20]), 0, how).is_err());
        assert!(time(&table(4, 2), (3, 6), 0).is_err());
        assert!(time(&table(4, 2), (2, 6), 5).is_err());
        assert!(clip(&table(8, 2), ([2, 2, 1], [1, 1, 1]), 0).is_err());
        let flat = ArrayF32 { shape: vec![4], values: vec![0.0; 4] };
        assert!(time(&flat, (2, 4), 0).is_err());
        let zero = ArrayF32 { shape: vec![4, 0], values: vec![] };
        assert!(time(&zero, (2, 4), 0).is_err());
    }
}
