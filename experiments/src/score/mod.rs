//! From files of predictions to metrics. `docs/src/metrics.md` describes the files.

mod answers;
mod classification;
mod detection;
mod file;
mod grounding;
mod retrieval;
mod tracking;

use std::path::Path;

use serde_json::Value;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Similarities of videos and texts
    Retrieval,
    /// Scores of classes
    Classification,
    /// Labelled segments of videos
    Detection,
    /// Segments that texts speak of
    Grounding,
    /// Boxes and masks of objects
    Tracking,
    /// Answers to questions
    Answers,
}

impl Kind {
    /// As it is given on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Retrieval => "retrieval",
            Self::Classification => "classification",
            Self::Detection => "detection",
            Self::Grounding => "grounding",
            Self::Tracking => "tracking",
            Self::Answers => "answers",
        }
    }
}

/// What came of a file.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Names and values, in the order in which they are shown.
    pub(crate) metrics: Vec<(String, f64)>,
    /// What was counted.
    pub(crate) counts: Vec<(&'static str, usize)>,
    /// Values of single classes, objects or ranks.
    pub(crate) details: Value,
}

impl Report {
    fn add(&mut self, name: impl Into<String>, value: f64) {
        self.metrics.push((name.into(), value));
    }

    fn count(&mut self, name: &'static str, count: usize) {
        self.counts.push((name, count));
    }
}

/// Scores a file.
pub(crate) fn read(kind: Kind, path: &Path) -> anyhow::Result<Report> {
    let folder = path.parent().unwrap_or(Path::new(""));
    match kind {
        Kind::Retrieval => file::read::<retrieval::File>(path)?.report(folder),
        Kind::Classification => file::read::<classification::File>(path)?.report(folder),
        Kind::Detection => Ok(file::read::<detection::File>(path)?.report()?),
        Kind::Grounding => Ok(file::read::<grounding::File>(path)?.report()?),
        Kind::Tracking => Ok(file::read::<tracking::File>(path)?.report()?),
        Kind::Answers => Ok(file::read::<answers::File>(path)?.report()?),
    }
}
