//! Comparison of what was computed with what was expected.

use std::fmt;
use std::path::Path;

use super::fixture::{Array, Arrays, Fixture};

/// Multiple of the suggested tolerance that is accepted; other reduction orders need a little.
/// Arrays of smaller numbers are compared as if this were their largest: what is 0 in theory is noise in f32.
const FLOOR: f64 = 5e-2;
const SLACK: f64 = 4.0;

/// The largest deviation so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Deviation {
    /// Name of the array.
    pub name: String,
    /// Index of the value.
    pub index: usize,
    /// What was computed.
    pub got: f64,
    /// What was expected.
    pub expected: f64,
    /// Share of the suggested tolerance.
    pub share: f64,
}

/// Findings about one fixture.
#[derive(Debug, Clone)]
pub struct Report {
    name: String,
    expected: Arrays,
    tolerance: f64,
    /// Arrays compared.
    pub compared: usize,
    /// The largest deviation.
    pub worst: Option<Deviation>,
    /// What is wrong; empty when the fixture passes.
    pub problems: Vec<String>,
}

impl Report {
    /// Begins; `expected` are the arrays that must be met, each of them.
    pub fn new(fixture: &Fixture, expected: Arrays) -> Self {
        let name = fixture.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let tolerance = fixture.tolerance();
        Self { name, expected, tolerance, compared: 0, worst: None, problems: Vec::new() }
    }

    /// A report of a program that compares by itself.
    pub fn of_problems(folder: &Path, problems: impl IntoIterator<Item = String>) -> Self {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let problems = problems.into_iter().collect();
        let expected = Arrays::default();
        Self { name, expected, tolerance: 0.0, compared: 0, worst: None, problems }
    }

    /// Compares an array with the expected one of this name, which is then off the list. Extents
    /// may be grouped in another way.
    pub fn meet(&mut self, name: &str, got: &Array) {
        match self.expected.remove(name) {
            Some(expected) => self.compare(name, got, &expected),
            None => self.problems.push(format!("`{name}` is not in the fixture")),
        }
    }

    /// Whether an expected array of this name is still to be met.
    pub fn expects(&self, name: &str) -> bool {
        self.expected.contains_key(name)
    }

    /// Values of an expected array that is still to be met.
    pub fn values(&self, name: &str) -> Vec<f64> {
        self.expected[name].values.clone()
    }

    /// Number of values of an expected array that is still to be met.
    pub fn length(&self, name: &str) -> usize {
        self.expected[name].values.len()
    }

    /// Compares two arrays by tolerance.
    pub fn compare(&mut self, name: &str, got: &Array, expected: &Array) {
        self.compared += 1;
        if got.values.len() != expected.values.len() {
            let shapes = format!("{:?}, expected {:?}", got.shape, expected.shape);
            return self.problems.push(format!("`{name}` has shape {shapes}"));
        }
        let scale = expected.values.iter().fold(FLOOR, |m: f64, v| m.max(v.abs()));
        let share = |(g, e): (&f64, &f64)| (g - e).abs() / (self.tolerance * scale);
        let shares = got.values.iter().zip(&expected.values).map(share);
        let badness = |s: f64| if s.is_nan() { f64::INFINITY } else { s };
        let worst = shares.map(badness).enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        let Some((index, share)) = worst else { return };
        let (got, expected) = (got.values[index], expected.values[index]);
        let found = Deviation { name: name.to_owned(), index, got, expected, share };
        if share > SLACK {
            self.problems.push(found.to_string());
        }
        if self.worst.as_ref().is_none_or(|worst| share > worst.share) {
            self.worst = Some(found);
        }
    }

    /// Compares exactly.
    pub fn same<T: PartialEq + fmt::Debug>(&mut self, name: &str, got: &T, expected: &T) {
        self.compared += 1;
        if got != expected {
            self.problems.push(format!("`{name}` is {got:?}, expected {expected:?}"));
        }
    }

    /// Takes an expected array off the list, for a comparison of another kind.
    pub fn take(&mut self, name: &str) -> Array {
        self.expected.remove(name).unwrap_or_else(|| panic!("`{name}` is not in the fixture"))
    }

    /// Ends: whatever is still expected was forgotten.
    pub fn finish(mut self) -> Self {
        let left: Vec<_> = std::mem::take(&mut self.expected).into_keys().collect();
        if !left.is_empty() {
            self.problems.push(format!("never compared: {left:?}"));
        }
        self
    }
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, index, got, expected, share } = self;
        write!(f, "`{name}`[{index}] is {got:e}, expected {expected:e} ({share:.2} of tolerance)")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, compared, tolerance, .. } = self;
        write!(f, "{name}: {compared} arrays, tolerance {tolerance:.1e}")?;
        match &self.worst {
            Some(worst) => write!(f, ", worst {worst}"),
            None => Ok(()),
        }
    }
}
