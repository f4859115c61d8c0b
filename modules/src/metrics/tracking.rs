//! Tracking: boxes by success, masks by region (J) and boundary (F).
//!
//! Sources: DAVIS (Perazzi et al. 2016), as its evaluation code computes J and F; success curves of OTB
//! (Wu et al. 2013).

use super::{Error, finite, mean, some};

/// A box: left, top, right, bottom; right and bottom exclusive.
pub type Corners = [f64; 4];

/// Share of the diagonal that boundaries may be apart.
pub const TOLERANCE: f64 = 0.008;

/// Pixels of the largest frame that is taken.
const LARGEST: usize = 1 << 26;

/// Which pixels of a frame belong to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    height: usize,
    width: usize,
    inside: Vec<bool>,
}

impl Bitmap {
    /// Takes pixels in row-major order; `at` names the mask in errors.
    pub fn new(at: &str, [height, width]: [usize; 2], inside: Vec<bool>) -> Result<Self, Error> {
        let pixels = pixels([height, width])?;
        super::length(at, &inside, pixels, "rows times columns of `size`")?;
        Ok(Self { height, width, inside })
    }

    /// Takes lengths of runs, row by row: outside, inside, outside, and so on.
    pub fn from_runs(at: &str, size: [usize; 2], runs: &[usize]) -> Result<Self, Error> {
        let pixels = pixels(size)?;
        let sum = runs.iter().fold(0_usize, |sum, &run| sum.saturating_add(run));
        if sum != pixels {
            let allowed = format!("{pixels}, the pixels of `size`");
            return Err(Error::range(at, format!("a mask of {sum} pixels"), allowed));
        }
        let each = runs.iter().enumerate();
        let inside = each.flat_map(|(n, &run)| std::iter::repeat_n(n % 2 == 1, run)).collect();
        Self::new(at, size, inside)
    }

    fn at(&self, row: usize, column: usize) -> bool {
        self.inside[row * self.width + column]
    }

    /// Pixels that differ from the next one to the right, below, or diagonally below; the last row
    /// looks right only, the last column below only.
    pub fn boundary(&self) -> Self {
        let (last_row, last_column) = (self.height - 1, self.width - 1);
        let differs = |row: usize, column: usize| {
            let here = self.at(row, column);
            let (down, right) = (row < last_row, column < last_column);
            (right && here != self.at(row, column + 1))
                || (down && here != self.at(row + 1, column))
                || (down && right && here != self.at(row + 1, column + 1))
        };
        let rows = 0..self.height;
        let inside = rows.flat_map(|row| (0..self.width).map(move |column| (row, column)));
        Self { inside: inside.map(|(row, column)| differs(row, column)).collect(), ..*self }
    }

    fn count(&self) -> usize {
        self.inside.iter().filter(|&&yes| yes).count()
    }

    /// Pixels of this one that lie within `radius` of a pixel of the other.
    fn near(&self, other: &Self, radius: usize) -> usize {
        let columns: Vec<Vec<usize>> = (0..other.height)
            .map(|row| (0..other.width).filter(|&column| other.at(row, column)).collect())
            .collect();
        let close = |row: usize, column: usize| {
            let rows = row.saturating_sub(radius)..(row + radius + 1).min(self.height);
            rows.into_iter().any(|there| {
                let high = row.abs_diff(there);
                // The widest step to the side that stays within the disc.
                let wide = (radius * radius - high * high).isqrt();
                let first = columns[there].partition_point(|&c| c + wide < column);
                columns[there].get(first).is_some_and(|&c| c <= column + wide)
            })
        };
        let places = (0..self.inside.len()).filter(|&at| self.inside[at]);
        places.filter(|&at| close(at / self.width, at % self.width)).count()
    }
}

/// Pixels of a frame, checked before anything of that size is made.
fn pixels([height, width]: [usize; 2]) -> Result<usize, Error> {
    let pixels = height.saturating_mul(width);
    if pixels == 0 || pixels > LARGEST {
        let allowed = format!("1 to {LARGEST} pixels");
        return Err(Error::range("size", format!("{height} x {width}"), allowed));
    }
    Ok(pixels)
}

/// Intersection over union of two boxes; 0 when neither has an area.
pub fn box_iou(a: Corners, b: Corners) -> f64 {
    let side = |low: usize| (a[low + 2].min(b[low + 2]) - a[low].max(b[low])).max(0.0);
    let area = |one: Corners| (one[2] - one[0]) * (one[3] - one[1]);
    let inside = side(0) * side(1);
    let union = area(a) + area(b) - inside;
    if union > 0.0 { inside / union } else { 0.0 }
}

/// J: intersection over union of two masks; 1 when both are empty.
pub fn mask_iou(a: &Bitmap, b: &Bitmap) -> Result<f64, Error> {
    same_size(a, b)?;
    let pairs = || a.inside.iter().zip(&b.inside);
    let union = pairs().filter(|(a, b)| **a || **b).count();
    let inside = pairs().filter(|(a, b)| **a && **b).count();
    Ok(if union == 0 { 1.0 } else { inside as f64 / union as f64 })
}

fn same_size(a: &Bitmap, b: &Bitmap) -> Result<(), Error> {
    if (a.height, a.width) == (b.height, b.width) {
        return Ok(());
    }
    let size = |one: &Bitmap| format!("{} x {}", one.height, one.width);
    Err(Error::range("size", size(a), size(b)))
}

/// Pixels that boundaries of a frame may be apart: a share of its diagonal, rounded up.
pub fn boundary_radius([height, width]: [usize; 2], share: f64) -> usize {
    let diagonal = (height as f64).hypot(width as f64);
    (share * diagonal).ceil().clamp(0.0, diagonal.ceil()) as usize
}

/// F: harmonic mean of how much of each boundary lies within `radius` pixels of the other. A frame
/// where only one of both has a boundary scores 0, one where neither has, 1.
pub fn boundary_f(predicted: &Bitmap, truth: &Bitmap, radius: usize) -> Result<f64, Error> {
    same_size(predicted, truth)?;
    let radius = radius.min(truth.height + truth.width);
    let (found, right) = (predicted.boundary(), truth.boundary());
    let (precision, recall) = match (found.count(), right.count()) {
        (0, 0) => (1.0, 1.0),
        (0, _) => (1.0, 0.0),
        (_, 0) => (0.0, 1.0),
        (a, b) => {
            let (near_found, near_right) = (found.near(&right, radius), right.near(&found, radius));
            (near_found as f64 / a as f64, near_right as f64 / b as f64)
        }
    };
    let sum = precision + recall;
    Ok(if sum == 0.0 { 0.0 } else { 2.0 * precision * recall / sum })
}

/// J and F of an object or of many, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Masks {
    /// Mean region similarity.
    pub j: f64,
    /// Mean boundary accuracy.
    pub f: f64,
    /// Mean of both.
    pub both: f64,
}

impl Masks {
    /// Mean over objects.
    pub fn mean(objects: &[Self]) -> Result<Self, Error> {
        some("objects", objects)?;
        let j = mean(objects.iter().map(|one| one.j));
        let f = mean(objects.iter().map(|one| one.f));
        Ok(Self { j, f, both: f64::midpoint(j, f) })
    }
}

/// J and F of one object over its frames: pairs of what was predicted and the truth. DAVIS leaves out the
/// first frame, which is given, and the last.
pub fn masks(frames: &[(Bitmap, Bitmap)], tolerance: f64) -> Result<Masks, Error> {
    some("frames", frames)?;
    if !(0.0..=1.0).contains(&tolerance) {
        return Err(Error::range("tolerance", tolerance, "from 0 to 1"));
    }
    let (mut j, mut f) = (0.0, 0.0);
    for (predicted, truth) in frames {
        let radius = boundary_radius([truth.height, truth.width], tolerance);
        j += mask_iou(predicted, truth)?;
        f += boundary_f(predicted, truth, radius)?;
    }
    let [j, f] = [j, f].map(|sum| 100.0 * sum / frames.len() as f64);
    Ok(Masks { j, f, both: f64::midpoint(j, f) })
}

/// Boxes of an object or of many, in percent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Success {
    /// Area under the success curve: mean share of frames with an overlap over 0, 0.05, ..., 1.
    pub auc: f64,
    /// Mean overlap.
    pub overlap: f64,
    /// Share of frames with an overlap over 0.5.
    pub half: f64,
    /// The same over 0.75.
    pub three_quarters: f64,
}

impl Success {
    /// Mean over objects.
    pub fn mean(objects: &[Self]) -> Result<Self, Error> {
        some("objects", objects)?;
        let over = |field: fn(&Self) -> f64| mean(objects.iter().map(field));
        Ok(Self {
            auc: over(|one| one.auc),
            overlap: over(|one| one.overlap),
            half: over(|one| one.half),
            three_quarters: over(|one| one.three_quarters),
        })
    }
}

/// Success of one object over its frames, from overlaps between 0 and 1. As the last threshold is 1, a
/// perfect track has an area of 20/21.
pub fn success(overlaps: &[f64]) -> Result<Success, Error> {
    some("frames", overlaps)?;
    for (at, &overlap) in overlaps.iter().enumerate() {
        if !(0.0..=1.0).contains(&overlap) {
            return Err(Error::range(format!("frames[{at}]"), overlap, "from 0 to 1"));
        }
    }
    let over = |threshold: f64| {
        super::percent(overlaps.iter().filter(|&&one| one > threshold).count(), overlaps.len())
    };
    Ok(Success {
        auc: mean((0..=20).map(|step| over(f64::from(step) / 20.0))),
        overlap: 100.0 * mean(overlaps.iter().copied()),
        half: over(0.5),
        three_quarters: over(0.75),
    })
}

/// Checks a box: finite, with right and bottom not before left and top.
pub fn check_box(at: &str, corners: Corners) -> Result<(), Error> {
    for (side, value) in corners.into_iter().enumerate() {
        finite(|| format!("{at}[{side}]"), value)?;
    }
    for low in [0, 1] {
        if corners[low + 2] < corners[low] {
            let allowed = format!("at least {}", corners[low]);
            return Err(Error::range(format!("{at}[{}]", low + 2), corners[low + 2], allowed));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bitmap(rows: &[&str]) -> Bitmap {
        let inside = rows.concat().chars().map(|c| c == '#').collect();
        Bitmap::new("mask", [rows.len(), rows[0].len()], inside).unwrap()
    }

    #[test]
    fn overlap_of_boxes() {
        assert_eq!(box_iou([0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0]), 1.0 / 7.0);
        assert_eq!(box_iou([0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0]), 0.0);
        assert_eq!(box_iou([0.0; 4], [0.0; 4]), 0.0);
        let error = check_box("predicted[3]", [0.0, 2.0, 1.0, 1.0]).unwrap_err().to_string();
        assert_eq!(error, "`predicted[3][3]` is 1, but must be at least 2");
        assert!(check_box("predicted[3]", [0.0, f64::NAN, 1.0, 1.0]).is_err());
    }

    #[test]
    fn runs_are_row_by_row_from_outside() {
        let found = Bitmap::from_runs("mask", [2, 3], &[1, 2, 3]).unwrap();
        assert_eq!(found, bitmap(&[".##", "..."]));
        assert_eq!(Bitmap::from_runs("m", [1, 2], &[0, 2]).unwrap(), bitmap(&["##"]));
        let error = Bitmap::from_runs("masks[4]", [2, 3], &[1, 2]).unwrap_err().to_string();
        let words = "`masks[4]` is a mask of 3 pixels, but must be 6, the pixels of `size`";
        assert_eq!(error, words);
        assert!(Bitmap::from_runs("m", [2, 3], &[usize::MAX, 7]).is_err());
        assert!(Bitmap::from_runs("m", [0, 3], &[]).is_err());
        assert!(Bitmap::from_runs("m", [usize::MAX, 3], &[usize::MAX]).is_err());
    }

    #[test]
    fn the_boundary_is_where_pixels_differ() {
        let found = bitmap(&["....", ".##.", ".##.", "...."]).boundary();
        assert_eq!(found, bitmap(&["###.", "#.#.", "###.", "...."]));
        assert_eq!(bitmap(&["##", "##"]).boundary().count(), 0);
    }

    #[test]
    fn region_and_boundary_of_masks() {
        let (left, right) = (bitmap(&["##..", "##.."]), bitmap(&[".##.", ".##."]));
        let empty = bitmap(&["....", "...."]);
        assert_eq!(mask_iou(&left, &right).unwrap(), 1.0 / 3.0);
        assert_eq!((mask_iou(&empty, &empty), mask_iou(&empty, &left)), (Ok(1.0), Ok(0.0)));
        // One edge against two: all of the one is found, half of the two.
        let thin = bitmap(&[".#..", ".#.."]);
        assert_eq!(boundary_f(&left, &thin, 0).unwrap(), 2.0 * 0.5 / 1.5);
        assert_eq!(boundary_f(&left, &right, 0).unwrap(), 0.0);
        assert_eq!(boundary_f(&left, &right, 1).unwrap(), 1.0);
        assert_eq!(boundary_f(&left, &right, usize::MAX).unwrap(), 1.0);
        assert_eq!(
            (boundary_f(&empty, &empty, 1), boundary_f(&empty, &left, 1)),
            (Ok(1.0), Ok(0.0))
        );
        assert_eq!(boundary_f(&left, &empty, 1), Ok(0.0));
        assert!(mask_iou(&left, &bitmap(&["#"])).is_err());
        assert_eq!(boundary_radius([480, 854], TOLERANCE), 8);
        let found = masks(&[(left.clone(), left.clone()), (left, right)], 0.2).unwrap();
        assert!((found.j - 100.0 * 2.0 / 3.0).abs() < 1e-12, "{found:?}");
        assert!((found.both - (found.j + found.f) / 2.0).abs() < 1e-12);
        assert!(masks(&[], 0.1).is_err());
    }

    #[test]
    fn success_is_an_area() {
        let perfect = success(&[1.0, 1.0]).unwrap();
        assert!((perfect.auc - 2000.0 / 21.0).abs() < 1e-12);
        // 0.5 is over 0, ..., 0.45: ten of 21.
        let half = success(&[0.5]).unwrap();
        assert!((half.auc - 1000.0 / 21.0).abs() < 1e-12 && half.half == 0.0, "{half:?}");
        assert_eq!(Success::mean(&[perfect, half]).unwrap().overlap, 75.0);
        assert!(success(&[]).is_err() && success(&[f64::NAN]).is_err());
    }
}
