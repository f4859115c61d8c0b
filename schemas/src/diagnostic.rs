//! What is wrong with an experiment, where, and what to write instead.
//!
//! Codes E1xx belong to experiments. A code is never used for another meaning.

use std::fmt;
use std::sync::Arc;

/// A position in a file, or another origin such as `--set`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// File name, `--set …`, or an environment variable.
    pub origin: Arc<str>,
    /// Line, from 1; 0 when the origin has no lines.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}

impl Place {
    /// A position in a file.
    pub fn new(origin: &Arc<str>, line: usize, column: usize) -> Self {
        Self { origin: origin.clone(), line, column }
    }

    /// An origin without lines.
    pub fn whole(origin: &str) -> Self {
        Self { origin: origin.into(), line: 0, column: 0 }
    }

    /// Reads what `Display` wrote.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.rsplitn(3, ':');
        let (column, line, origin) = (parts.next(), parts.next(), parts.next());
        match (column.and_then(|c| c.parse().ok()), line.and_then(|l| l.parse().ok()), origin) {
            (Some(column), Some(line), Some(origin)) => {
                Self { origin: origin.into(), line, column }
            }
            _ => Self::whole(text),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.origin),
            line => write!(f, "{}:{line}:{}", self.origin, self.column),
        }
    }
}

/// What kind of mistake it is. The number never changes its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The text is not YAML.
    Yaml,
    /// A name is not known: key, kind, node, port, host.
    Unknown,
    /// A value is of the wrong type or out of range.
    Value,
    /// A key or name is there twice.
    Twice,
    /// An input is not connected.
    Unconnected,
    /// Two ends of an edge differ: class, rank, dim, lattice, tag.
    Mismatch,
    /// Nodes feed each other in a circle.
    Cycle,
    /// A gradient does not get where it should.
    Gradient,
    /// A weights file does not fit.
    Weights,
    /// An override does not point at anything.
    Override,
    /// A placement does not work.
    Placement,
    /// A stage does not fit the one before.
    HandOff,
}

impl Code {
    /// The printed number.
    pub const fn number(self) -> &'static str {
        match self {
            Self::Yaml => "E101",
            Self::Unknown => "E102",
            Self::Value => "E103",
            Self::Twice => "E104",
            Self::Unconnected => "E105",
            Self::Mismatch => "E106",
            Self::Cycle => "E107",
            Self::Gradient => "E108",
            Self::Weights => "E109",
            Self::Override => "E110",
            Self::Placement => "E111",
            Self::HandOff => "E112",
        }
    }
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What kind of mistake.
    pub code: Code,
    /// What is wrong: lower case, literals in backticks.
    pub message: String,
    /// Where it was written.
    pub place: Place,
    /// Dotted path inside the experiment.
    pub path: String,
    /// What to write instead, an imperative; may be empty.
    pub hint: String,
}

impl Diagnostic {
    /// A problem at a place.
    pub fn new(code: Code, place: &Place, path: impl Into<String>, message: String) -> Self {
        Self { code, message, place: place.clone(), path: path.into(), hint: String::new() }
    }

    /// With what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}\n  --> {}", self.code.number(), self.message, self.place)?;
        if !self.path.is_empty() {
            write!(f, " at {}", self.path)?;
        }
        if !self.hint.is_empty() {
            write!(f, "\n  hint: {}", self.hint)?;
        }
        Ok(())
    }
}

/// Problems found so far.
#[derive(Debug, Default)]
pub struct Report {
    problems: Vec<Diagnostic>,
}

impl Report {
    /// Adds a problem, once.
    pub fn add(&mut self, problem: Diagnostic) {
        if !self.has(&problem) {
            self.problems.push(problem);
        }
    }

    /// Whether a problem is known.
    pub fn has(&self, problem: &Diagnostic) -> bool {
        self.problems.contains(problem)
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// All problems in the order of the file.
    pub fn into_problems(mut self) -> Vec<Diagnostic> {
        self.problems.sort_by(|a, b| (&a.place, a.code).cmp(&(&b.place, b.code)));
        self.problems
    }
}
