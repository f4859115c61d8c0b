//! Segments that texts speak of, in seconds.

use modules::metrics::Error;
use modules::metrics::grounding::{Query, evaluate};
use serde::Deserialize;

use super::Report;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    queries: Vec<Asked>,
    #[serde(default = "thresholds")]
    thresholds: Vec<f64>,
    #[serde(default = "ks")]
    ks: Vec<usize>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    truth: [f64; 2],
    /// The best first.
    predicted: Vec<[f64; 2]>,
}

fn thresholds() -> Vec<f64> {
    vec![0.3, 0.5, 0.7]
}

fn ks() -> Vec<usize> {
    vec![1, 5]
}

impl File {
    pub(super) fn report(self) -> Result<Report, Error> {
        let queries = self.queries.into_iter();
        let queries: Vec<Query> =
            queries.map(|Asked { truth, predicted }| Query { truth, predicted }).collect();
        let found = evaluate(&queries, &self.thresholds, &self.ks)?;
        let mut report = Report::default();
        for (k, threshold, share) in found.recall {
            report.add(format!("R{k}@{threshold}"), share);
        }
        report.add("mIoU", found.miou);
        report.count("queries", queries.len());
        report.count("unanswered", found.unanswered);
        Ok(report)
    }
}
