//! Rows are views of videos, columns are classes or their prompts.

use std::path::Path;

use anyhow::bail;
use modules::metrics::Matrix;
use modules::metrics::classification::{
    mean_of_present, mean_over_prompts, mean_over_views, per_class, per_class_precision, sigmoid,
    softmax, top,
};
use serde::Deserialize;
use serde_json::json;

use super::Report;
use super::file::{Indices, Numbers};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    scores: Numbers,
    /// One label per video, or lists of them.
    labels: Vec<Indices>,
    /// The video that each row is a view of; its own when absent.
    video: Option<Vec<usize>>,
    /// The class that each column is a prompt of; its own when absent.
    class: Option<Vec<usize>>,
    activation: Option<Activation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Activation {
    Softmax,
    Sigmoid,
    None,
}

impl File {
    pub(super) fn report(&self, folder: &Path) -> anyhow::Result<Report> {
        let one = |label: &Indices| matches!(label, Indices::One(_));
        let single = self.labels.first().is_some_and(one);
        if let Some(at) = self.labels.iter().position(|label| one(label) != single) {
            bail!(
                "`labels[{at}]` is of another form than the first; give numbers only or lists only"
            );
        }
        let scores = self.scores(folder, single)?;
        let mut report = Report::default();
        if single {
            let labels: Vec<usize> = self.labels.iter().flat_map(Indices::list).collect();
            let [one, five] = [top(&scores, &labels, 1)?, top(&scores, &labels, 5)?];
            let classes = per_class(&scores, &labels)?;
            report.add("top-1", one);
            report.add("top-5", five);
            report.add("AVG", f64::midpoint(one, five));
            report.add("mean_class_accuracy", mean_of_present(&classes));
            report.details = json!({ "class_accuracy": classes });
        } else {
            let labels: Vec<Vec<usize>> = self.labels.iter().map(Indices::list).collect();
            let classes = per_class_precision(&scores, &labels)?;
            report.add("mAP", mean_of_present(&classes));
            report.count("classes_with_videos", classes.iter().flatten().count());
            report.details = json!({ "AP": classes });
        }
        report.count("videos", scores.rows());
        report.count("classes", scores.columns());
        Ok(report)
    }

    /// Prompts are averaged first, then comes the activation, then views are averaged.
    fn scores(&self, folder: &Path, single: bool) -> anyhow::Result<Matrix> {
        let mut scores = self.scores.matrix("scores", folder)?;
        if let Some(class) = &self.class {
            scores = mean_over_prompts(&scores, class)?;
        }
        let plain = !single || self.class.is_some();
        let default = if plain { Activation::None } else { Activation::Softmax };
        scores = match self.activation.unwrap_or(default) {
            Activation::Softmax => softmax(&scores),
            Activation::Sigmoid => sigmoid(&scores),
            Activation::None => scores,
        };
        match &self.video {
            Some(video) => Ok(mean_over_views(&scores, video)?),
            None => Ok(scores),
        }
    }
}
