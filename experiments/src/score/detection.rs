//! Labelled segments of videos, in seconds.

use std::collections::BTreeMap;

use modules::metrics::Error;
use modules::metrics::detection::{self, ACTIVITYNET, Prediction, Segment, THUMOS14, soft_nms};
use serde::Deserialize;
use serde_json::json;

use super::Report;
use super::file::name;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    truth: Vec<Truth>,
    predictions: Vec<Predicted>,
    thresholds: Thresholds,
    soft_nms: Option<SoftNms>,
}

#[derive(Debug, Deserialize)]
struct Truth {
    #[serde(deserialize_with = "name")]
    video: String,
    #[serde(deserialize_with = "name")]
    label: String,
    start: f64,
    end: f64,
}

#[derive(Debug, Deserialize)]
struct Predicted {
    #[serde(deserialize_with = "name")]
    video: String,
    #[serde(deserialize_with = "name")]
    label: String,
    start: f64,
    end: f64,
    score: f64,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected `thumos14`, `activitynet` or a list of numbers")]
enum Thresholds {
    Named(Named),
    List(Vec<f64>),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Named {
    Thumos14,
    Activitynet,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SoftNms {
    sigma: f64,
    #[serde(default = "least")]
    least: f64,
    /// Segments of a video that are kept at most.
    keep: Option<usize>,
}

const fn least() -> f64 {
    0.001
}

impl File {
    pub(super) fn report(self) -> Result<Report, Error> {
        let truth: Vec<Segment> = self.truth.into_iter().map(Truth::segment).collect();
        let mut predictions: Vec<Prediction> =
            self.predictions.into_iter().map(Predicted::prediction).collect();
        if let Some(options) = &self.soft_nms {
            predictions = options.apply(&predictions)?;
        }
        let thresholds = match &self.thresholds {
            Thresholds::Named(Named::Thumos14) => &THUMOS14[..],
            Thresholds::Named(Named::Activitynet) => &ACTIVITYNET[..],
            Thresholds::List(list) => list,
        };
        let found = detection::evaluate(&truth, &predictions, thresholds)?;
        let mut report = Report::default();
        for (threshold, map) in thresholds.iter().zip(&found.map) {
            report.add(format!("mAP@{threshold}"), *map);
        }
        report.add("average_mAP", found.average);
        report.count("classes", found.classes.len());
        report.count("truths", truth.len() - found.duplicates);
        report.count("duplicates", found.duplicates);
        report.count("predictions", predictions.len());
        report.count("ignored_predictions", found.ignored);
        let classes = found.classes.iter();
        let classes: Vec<_> = classes
            .map(|one| json!({ "label": one.label, "truths": one.truths, "AP": one.precision }))
            .collect();
        report.details = json!({ "thresholds": thresholds, "classes": classes });
        Ok(report)
    }
}

impl Truth {
    fn segment(self) -> Segment {
        Segment { video: self.video, label: self.label, span: [self.start, self.end] }
    }
}

impl Predicted {
    fn prediction(self) -> Prediction {
        let Self { video, label, start, end, score } = self;
        Prediction { segment: Segment { video, label, span: [start, end] }, score }
    }
}

impl SoftNms {
    /// Decays scores within each video and label; keeps the best of each video, in the order of the file.
    fn apply(&self, predictions: &[Prediction]) -> Result<Vec<Prediction>, Error> {
        let mut groups: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
        for (at, Prediction { segment, .. }) in predictions.iter().enumerate() {
            groups.entry((&segment.video, &segment.label)).or_default().push(at);
        }
        // Once before, so that errors count places of the file.
        let all: Vec<_> = predictions.iter().map(|one| (one.segment.span, one.score)).collect();
        detection::check_scored(&all)?;
        let mut videos: BTreeMap<&str, Vec<(usize, f64)>> = BTreeMap::new();
        for ((video, _), places) in groups {
            let scored: Vec<_> = places.iter().map(|&at| all[at]).collect();
            let decayed = soft_nms(&scored, self.sigma, self.least);
            let decayed = decayed.map_err(|error| error.within("soft_nms"))?;
            let of_video = videos.entry(video).or_default();
            of_video.extend(decayed.into_iter().map(|(at, score)| (places[at], score)));
        }
        let mut kept: Vec<(usize, f64)> = Vec::new();
        for mut of_video in videos.into_values() {
            of_video.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
            kept.extend(of_video.into_iter().take(self.keep.unwrap_or(usize::MAX)));
        }
        kept.sort_by_key(|(at, _)| *at);
        let again = |(at, score): (usize, f64)| Prediction { score, ..predictions[at].clone() };
        Ok(kept.into_iter().map(again).collect())
    }
}
