//! Patch kernels for clips and for patches of another size.
//!
//! FlexiViT (Beyer et al. 2023, §3.4): patches are enlarged by a matrix B; the kernel that gives the
//! enlarged patch the token of the patch is the pseudo-inverse of B transposed times the kernel. B is
//! the product of a matrix for rows and one for columns, and so is its pseudo-inverse.

use super::tables::weights;
use super::{ArrayF32, Inflation, Restem, along, volume};
use crate::layers::positions;

pub(super) fn inflate(
    kernel: &ArrayF32,
    frames: usize,
    how: Inflation,
) -> Result<ArrayF32, String> {
    let [outputs, inputs, height, width] = match *kernel.shape.as_slice() {
        [o, i, h, w] | [o, i, 1, h, w] => [o, i, h, w],
        _ => return Err(format!("a kernel [O, I, h, w] is needed, got {:?}", kernel.shape)),
    };
    let shape = vec![outputs, inputs, frames, height, width];
    if frames == 0 || volume(&shape).is_none() {
        return Err(format!("{frames} frames"));
    }
    let mut made = ArrayF32::zeros(shape).ok_or("the kernel would be too large")?;
    let place = height * width;
    if place == 0 {
        return Ok(made);
    }
    let clips = made.values.chunks_exact_mut(frames * place);
    for (clip, picture) in clips.zip(kernel.values.chunks_exact(place)) {
        match how {
            Inflation::Centre => clip[frames / 2 * place..][..place].copy_from_slice(picture),
            Inflation::Average => {
                let share = picture.iter().map(|value| value / frames as f32);
                clip.iter_mut().zip(share.cycle()).for_each(|(to, value)| *to = value);
            }
        }
    }
    Ok(made)
}

pub(super) fn restem(kernel: &ArrayF32, to: [usize; 2], how: Restem) -> Result<ArrayF32, String> {
    let [outer @ .., height, width] = kernel.shape.as_slice() else {
        return Err(format!("a kernel [.., h, w] is needed, got {:?}", kernel.shape));
    };
    let shape = [outer, &to].concat();
    // The sides are checked here for both ways.
    let (filter, antialias) = match how {
        Restem::PseudoInverse { filter, antialias } => (filter, antialias),
        Restem::Bicubic => (super::Filter::Bicubic, false),
    };
    let down = weights((*height, to[0]), (filter, antialias))?;
    let across = weights((*width, to[1]), (filter, antialias))?;
    volume(&shape).ok_or("the kernel would be too large")?;
    let values = match how {
        Restem::Bicubic => positions::resize(&kernel.values, [*height, *width], to, 1),
        Restem::PseudoInverse { .. } => {
            let down = turned_inverse(&down, to[0], *height)?;
            let across = turned_inverse(&across, to[1], *width)?;
            let wide = along(&kernel.values, 1, &across, (*width, to[1]));
            along(&wide, to[1], &down, (*height, to[0]))
        }
    };
    Ok(ArrayF32 { shape, values })
}

/// The pseudo-inverse of the transpose of a matrix `[rows, columns]` of full rank: with the inverse
/// of its smaller Gram matrix.
fn turned_inverse(matrix: &[f64], rows: usize, columns: usize) -> Result<Vec<f64>, String> {
    let at = |row: usize, column: usize| matrix[row * columns + column];
    let tall = rows >= columns;
    let size = rows.min(columns);
    let gram = |i: usize, j: usize| -> f64 {
        if tall {
            (0..rows).map(|row| at(row, i) * at(row, j)).sum()
        } else {
            (0..columns).map(|column| at(i, column) * at(j, column)).sum()
        }
    };
    let gram: Vec<f64> = (0..size * size).map(|n| gram(n / size, n % size)).collect();
    let inverse = inverse(gram, size)?;
    let value = |n: usize| -> f64 {
        let (row, column) = (n / columns, n % columns);
        if tall {
            (0..size).map(|k| at(row, k) * inverse[k * size + column]).sum()
        } else {
            (0..size).map(|k| inverse[row * size + k] * at(k, column)).sum()
        }
    };
    Ok((0..rows * columns).map(value).collect())
}

/// The inverse of a square matrix, by elimination with the largest pivot.
fn inverse(mut matrix: Vec<f64>, size: usize) -> Result<Vec<f64>, String> {
    let mut made: Vec<f64> =
        (0..size * size).map(|n| f64::from(u8::from(n / size == n % size))).collect();
    for pivot in 0..size {
        let largest = (pivot..size)
            .max_by(|a, b| {
                matrix[a * size + pivot].abs().total_cmp(&matrix[b * size + pivot].abs())
            })
            .unwrap_or(pivot);
        let scale = matrix[largest * size + pivot];
        if scale.abs() < 1e-9 {
            return Err("the resize of the patches loses information of the kernel".to_owned());
        }
        for column in 0..size {
            matrix.swap(pivot * size + column, largest * size + column);
            made.swap(pivot * size + column, largest * size + column);
        }
        for column in 0..size {
            matrix[pivot * size + column] /= scale;
            made[pivot * size + column] /= scale;
        }
        for row in (0..size).filter(|row| *row != pivot) {
            let factor = matrix[row * size + pivot];
            for column in 0..size {
                matrix[row * size + column] -= factor * matrix[pivot * size + column];
                made[row * size + column] -= factor * made[pivot * size + column];
            }
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::rules::Filter;
    use crate::rng::Key;

    fn drawn(shape: &[usize], seed: u64) -> ArrayF32 {
        let mut rng = Key::new(seed, "kernels").rng();
        let values = (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
        ArrayF32 { shape: shape.to_vec(), values }
    }

    fn product(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    #[test]
    fn an_enlarged_patch_has_the_token_that_the_patch_had() {
        for (filter, antialias) in [(Filter::Bilinear, false), (Filter::Bicubic, true)] {
            let how = Restem::PseudoInverse { filter, antialias };
            let kernel = drawn(&[1, 1, 14, 12], 1);
            let larger = restem(&kernel, [16, 20], how).unwrap();
            assert_eq!(larger.shape, [1, 1, 16, 20]);
            let patch = drawn(&[14, 12], 2);
            let across = weights((12, 20), (filter, antialias)).unwrap();
            let down = weights((14, 16), (filter, antialias)).unwrap();
            let wide = along(&patch.values, 1, &across, (12, 20));
            let enlarged = along(&wide, 20, &down, (14, 16));
            let (before, after) =
                (product(&kernel.values, &patch.values), product(&larger.values, &enlarged));
            assert!((before - after).abs() < 1e-4, "{before} {after}");
        }
    }

    #[test]
    fn an_inflated_kernel_sums_to_the_kernel_over_time() {
        let kernel = drawn(&[3, 2, 4, 4], 3);
        for (how, frames) in [(Inflation::Centre, 3), (Inflation::Average, 4)] {
            let clip = inflate(&kernel, frames, how).unwrap();
            assert_eq!(clip.shape, [3, 2, frames, 4, 4]);
            let sums = clip
                .values
                .chunks_exact(frames * 16)
                .flat_map(|clip| (0..16).map(|at| clip.iter().skip(at).step_by(16).sum::<f32>()));
            for (sum, value) in sums.zip(&kernel.values) {
                assert!((sum - value).abs() < 1e-6);
            }
        }
        let centre = inflate(&kernel, 3, Inflation::Centre).unwrap();
        assert_eq!(centre.values[16..32], kernel.values[..16]);
        assert!(inflate(&kernel, 0, Inflation::Centre).is_err());
    }

    #[test]
    fn kernels_that_cannot_be_resized_are_refused() {
        let kernel = drawn(&[1, 1, 4, 4], 4);
        assert!(restem(&kernel, [0, 4], Restem::Bicubic).is_err());
        assert!(restem(&kernel, [4, 4096], Restem::Bicubic).is_err());
        let flat = drawn(&[4], 4);
        assert!(restem(&flat, [4, 4], Restem::Bicubic).is_err());
        // The nearest of few pixels leaves most of the kernel's pixels out or repeats them.
        let nearest = Restem::PseudoInverse { filter: Filter::Nearest, antialias: false };
        assert!(restem(&kernel, [8, 8], nearest).is_ok());
    }
}
