//! Low-rank updates and tables with more rows.

use super::{ArrayF32, NewRows, volume};
use crate::rng::Key;

/// `W + scale * B A`.
pub(super) fn merge_lora(
    inputs: &[ArrayF32],
    alpha: f64,
    rank_stabilised: bool,
) -> Result<ArrayF32, String> {
    let [weight, a, b] = inputs else { return Err("W, A and B are needed".to_owned()) };
    let (&[outputs, inputs], &[rank, columns], &[rows, other]) =
        (weight.shape.as_slice(), a.shape.as_slice(), b.shape.as_slice())
    else {
        return Err("W, A and B are matrices".to_owned());
    };
    if columns != inputs || rows != outputs || other != rank || rank == 0 {
        let (w, a, b) = (&weight.shape, &a.shape, &b.shape);
        return Err(format!("W [O, I], A [r, I] and B [O, r] are needed, got {w:?}, {a:?}, {b:?}"));
    }
    let scale = alpha / if rank_stabilised { (rank as f64).sqrt() } else { rank as f64 };
    if !scale.is_finite() {
        return Err(format!("alpha {alpha}"));
    }
    let mut values = weight.values.clone();
    let mut line = vec![0.0f64; inputs];
    if inputs > 0 {
        let rows = values.chunks_exact_mut(inputs).zip(b.values.chunks_exact(rank));
        for (row, factors) in rows {
            line.fill(0.0);
            for (factor, part) in factors.iter().zip(a.values.chunks_exact(inputs)) {
                let factor = f64::from(*factor);
                line.iter_mut().zip(part).for_each(|(sum, v)| *sum += factor * f64::from(*v));
            }
            for (value, sum) in row.iter_mut().zip(&line) {
                *value = (f64::from(*value) + scale * sum) as f32;
            }
        }
    }
    Ok(ArrayF32 { shape: weight.shape.clone(), values })
}

/// The same rows and new ones after them.
pub(super) fn grow(table: &ArrayF32, rows: usize, how: NewRows) -> Result<ArrayF32, String> {
    let Some((&old, inner)) = table.shape.split_first() else {
        return Err("a table with rows is needed".to_owned());
    };
    if rows < old || old == 0 {
        return Err(format!("{old} rows cannot grow to {rows}"));
    }
    let shape = [&[rows], inner].concat();
    let count = volume(&shape).ok_or("the table would be too large")?;
    let width = table.values.len() / old;
    let mut values = table.values.clone();
    match how {
        NewRows::Mean => {
            let sum = |column: usize| {
                let column = table.values.iter().skip(column).step_by(width);
                column.map(|value| f64::from(*value)).sum::<f64>()
            };
            let mean: Vec<f32> = (0..width).map(|c| (sum(c) / old as f64) as f32).collect();
            (old..rows).for_each(|_| values.extend_from_slice(&mean));
        }
        NewRows::Normal { sigma, seed } => {
            if !(sigma.is_finite() && sigma >= 0.0) {
                return Err(format!("sigma {sigma}"));
            }
            let mut rng = Key::new(seed, "grow_rows").rng();
            values.extend((0..count - old * width).map(|_| (sigma * rng.normal()) as f32));
        }
    }
    Ok(ArrayF32 { shape, values })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(shape: &[usize], values: &[f32]) -> ArrayF32 {
        ArrayF32::new(shape.to_vec(), values.to_vec()).unwrap()
    }

    #[test]
    fn a_low_rank_update_is_added_with_its_scale() {
        let weight = array(&[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        let a = array(&[4, 3], &[1.0; 12]);
        let b = array(&[2, 4], &[1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
        let inputs = [weight, a, b];
        let merged = merge_lora(&inputs, 8.0, false).unwrap();
        assert_eq!(merged.values, [2.0, 3.0, 4.0, 11.0, 12.0, 13.0]);
        let merged = merge_lora(&inputs, 8.0, true).unwrap();
        assert_eq!(merged.values, [4.0, 5.0, 6.0, 19.0, 20.0, 21.0]);
        assert!(
            merge_lora(&[inputs[0].clone(), inputs[2].clone(), inputs[1].clone()], 1.0, true)
                .is_err()
        );
    }

    #[test]
    fn new_rows_are_the_mean_or_drawn_again_alike() {
        let table = array(&[2, 2], &[1.0, 2.0, 3.0, 6.0]);
        let grown = grow(&table, 4, NewRows::Mean).unwrap();
        assert_eq!(grown.values, [1.0, 2.0, 3.0, 6.0, 2.0, 4.0, 2.0, 4.0]);
        let how = NewRows::Normal { sigma: 0.02, seed: 3 };
        let drawn = grow(&table, 1000, how).unwrap();
        assert_eq!(drawn, grow(&table, 1000, how).unwrap());
        assert_eq!(drawn.values[..4], table.values);
        let square = drawn.values[4..].iter().map(|v| v * v).sum::<f32>() / 1996.0;
        assert!((square.sqrt() - 0.02).abs() < 0.002, "{square}");
        assert!(grow(&table, 1, NewRows::Mean).is_err());
        assert_eq!(grow(&array(&[1], &[2.0]), 3, NewRows::Mean).unwrap().values, [2.0; 3]);
    }
}
