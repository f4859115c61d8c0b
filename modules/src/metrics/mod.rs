//! Evaluation metrics: plain numbers in, plain numbers out.
//!
//! Shares are percentages. Ratios of one pair (IoU, precision of one mask) are between 0 and 1. Errors
//! name the place of the input, by the names of the fields that `playhouse score` reads; so
//! `scores[3][2]` is row 3, column 2 of the argument `scores`. Nothing here panics on what a file holds.

pub mod answers;
pub mod classification;
pub mod detection;
pub mod grounding;
pub mod intervals;
pub mod retrieval;
pub mod tracking;

use thiserror::Error;

pub use intervals::{Interval, bootstrap, over_seeds, student_t};

/// What is wrong with an input.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Error {
    /// NaN or an infinity.
    #[error("`{at}` is {value}; give finite numbers")]
    NotFinite {
        /// Where.
        at: String,
        /// The number.
        value: String,
    },
    /// Nothing to score.
    #[error("`{at}` is empty; give at least one")]
    Empty {
        /// Where.
        at: String,
    },
    /// Two inputs that do not belong together.
    #[error("`{at}` has {found} entries, but must have {wanted}: {reason}")]
    Length {
        /// Where.
        at: String,
        /// Entries there.
        found: usize,
        /// Entries that are needed.
        wanted: usize,
        /// Why so many.
        reason: &'static str,
    },
    /// A value that means nothing.
    #[error("`{at}` is {value}, but must be {allowed}")]
    Range {
        /// Where.
        at: String,
        /// The value.
        value: String,
        /// What it may be.
        allowed: String,
    },
}

impl Error {
    /// A value that is not among those allowed.
    pub fn range(at: impl Into<String>, value: impl ToString, allowed: impl Into<String>) -> Self {
        Self::Range { at: at.into(), value: value.to_string(), allowed: allowed.into() }
    }

    /// An index that is too large.
    fn index(at: impl Into<String>, value: usize, limit: usize) -> Self {
        Self::range(at, value, format!("below {limit}"))
    }

    /// The same error about a field below `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        let (Self::NotFinite { at, .. }
        | Self::Empty { at }
        | Self::Length { at, .. }
        | Self::Range { at, .. }) = &mut self;
        *at = format!("{outer}.{at}");
        self
    }
}

/// Refuses NaN and infinities.
fn finite(at: impl FnOnce() -> String, value: f64) -> Result<(), Error> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::NotFinite { at: at(), value: value.to_string() })
}

/// Refuses an empty input.
fn some<T>(at: &str, items: &[T]) -> Result<(), Error> {
    if items.is_empty() { Err(Error::Empty { at: at.to_owned() }) } else { Ok(()) }
}

/// Refuses another number of entries.
pub fn length<T>(at: &str, items: &[T], wanted: usize, reason: &'static str) -> Result<(), Error> {
    let found = items.len();
    if found == wanted {
        return Ok(());
    }
    Err(Error::Length { at: at.to_owned(), found, wanted, reason })
}

/// Thresholds of overlap: some, each in `(0, 1]`.
fn overlaps(thresholds: &[f64]) -> Result<(), Error> {
    some("thresholds", thresholds)?;
    for (at, &threshold) in thresholds.iter().enumerate() {
        if !(threshold > 0.0 && threshold <= 1.0) {
            return Err(Error::range(format!("thresholds[{at}]"), threshold, "over 0, at most 1"));
        }
    }
    Ok(())
}

/// A segment in seconds must have finite ends in order.
fn ordered(at: &str, [start, end]: [f64; 2]) -> Result<(), Error> {
    finite(|| format!("{at}.start"), start)?;
    finite(|| format!("{at}.end"), end)?;
    if end < start {
        return Err(Error::range(format!("{at}.end"), end, format!("at least its start {start}")));
    }
    Ok(())
}

/// Finite numbers in rows of equal length, at least one of each.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// Checks numbers in row-major order; `at` names the matrix in errors.
    pub fn new(at: &str, rows: usize, columns: usize, values: Vec<f64>) -> Result<Self, Error> {
        if rows == 0 || columns == 0 {
            let at = if rows == 0 { at.to_owned() } else { format!("{at}[0]") };
            return Err(Error::Empty { at });
        }
        // A product that overflows belongs to no vector.
        let wanted = rows.saturating_mul(columns);
        length(at, &values, wanted, "rows times columns")?;
        for (index, &value) in values.iter().enumerate() {
            finite(|| format!("{at}[{}][{}]", index / columns, index % columns), value)?;
        }
        Ok(Self { rows, columns, values })
    }

    /// Checks rows; `at` names the matrix in errors.
    pub fn from_rows(at: &str, rows: &[Vec<f64>]) -> Result<Self, Error> {
        let columns = rows.first().map_or(0, Vec::len);
        for (index, row) in rows.iter().enumerate() {
            length(&format!("{at}[{index}]"), row, columns, "as many as the first row")?;
        }
        Self::new(at, rows.len(), columns, rows.concat())
    }

    /// Number of rows.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// One row; it must exist.
    pub fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.columns..(index + 1) * self.columns]
    }

    /// All rows.
    pub fn iter(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.columns)
    }

    /// Columns as rows.
    #[must_use]
    pub fn transposed(&self) -> Self {
        let columns = 0..self.columns;
        let values = columns.flat_map(|c| self.iter().map(move |row| row[c])).collect();
        Self { rows: self.columns, columns: self.rows, values }
    }

    /// Each row by a function that keeps its length and gives finite numbers.
    fn map_rows(&self, each: impl Fn(&[f64]) -> Vec<f64>) -> Self {
        Self { values: self.iter().flat_map(each).collect(), ..*self }
    }
}

/// Indices in descending order of their values: a stable ascending sort, reversed. So of equal values
/// the one with the higher index comes first.
pub fn descending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // 0.0 and -0.0 are equal scores, which `total_cmp` would not see.
    order.sort_by(|&a, &b| (values[a] + 0.0).total_cmp(&(values[b] + 0.0)));
    order.reverse();
    order
}

/// Mean of numbers; 0 of none.
fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0_usize);
    for value in values {
        sum += value;
        count += 1;
    }
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// Percentage of items that hit.
fn percent(hits: usize, of: usize) -> f64 {
    if of == 0 { 0.0 } else { 100.0 * hits as f64 / of as f64 }
}

/// Middle of numbers; the mean of both middle ones when their count is even. 0 of none.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_checked_with_their_place() {
        let error = |rows: &[Vec<f64>]| Matrix::from_rows("scores", rows).unwrap_err().to_string();
        assert_eq!(error(&[]), "`scores` is empty; give at least one");
        assert_eq!(error(&[vec![]]), "`scores[0]` is empty; give at least one");
        let ragged = error(&[vec![1.0, 2.0], vec![1.0]]);
        let words = "`scores[1]` has 1 entries, but must have 2: as many as the first row";
        assert_eq!(ragged, words);
        let nan = error(&[vec![1.0, 2.0], vec![1.0, f64::NAN]]);
        assert_eq!(nan, "`scores[1][1]` is NaN; give finite numbers");
        let within = Matrix::from_rows("scores", &[]).unwrap_err().within("rerank");
        assert_eq!(within, Error::Empty { at: "rerank.scores".to_owned() });
        assert!(Matrix::new("scores", usize::MAX, usize::MAX, vec![]).is_err());
    }

    #[test]
    fn equal_values_come_in_reversed_order() {
        assert_eq!(descending(&[1.0, 3.0, 1.0, 3.0, -0.0, 0.0]), [3, 1, 2, 0, 5, 4]);
        assert_eq!(descending(&[0.0, -0.0]), [1, 0]);
    }

    #[test]
    fn a_transposed_matrix_has_columns_as_rows() {
        let matrix = Matrix::from_rows("m", &[vec![1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]]).unwrap();
        let turned = matrix.transposed();
        assert_eq!((turned.rows(), turned.columns(), turned.row(2)), (3, 2, &[3.0, 6.0][..]));
        assert_eq!(turned.transposed(), matrix);
    }

    #[test]
    fn the_median_of_an_even_count_is_between() {
        assert_eq!([median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])], [2.0, 2.5]);
    }
}
