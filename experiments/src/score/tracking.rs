//! Boxes and masks of objects, frame by frame.

use modules::metrics::tracking::{
    Bitmap, Corners, Masks, Success, TOLERANCE, box_iou, check_box, masks, success,
};
use modules::metrics::{Error, length};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Report;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    objects: Vec<Object>,
    #[serde(default = "tolerance")]
    tolerance: f64,
}

const fn tolerance() -> f64 {
    TOLERANCE
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    name: Option<String>,
    boxes: Option<Boxes>,
    masks: Option<Runs>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Boxes {
    /// A frame without a box counts as overlap 0.
    predicted: Vec<Option<Corners>>,
    /// A frame without a box is left out.
    truth: Vec<Option<Corners>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Runs {
    size: [usize; 2],
    predicted: Vec<Vec<usize>>,
    truth: Vec<Vec<usize>>,
}

impl File {
    pub(super) fn report(&self) -> Result<Report, Error> {
        let (mut tracks, mut regions, mut details) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(tolerance) = Some(self.tolerance).filter(|share| !(0.0..=1.0).contains(share)) {
            return Err(Error::range("tolerance", tolerance, "from 0 to 1"));
        }
        for (at, object) in self.objects.iter().enumerate() {
            let place = format!("objects[{at}]");
            let named = |error: Error, field: &str| error.within(&format!("{place}.{field}"));
            let mut detail = json!({ "name": object.name });
            if object.boxes.is_none() && object.masks.is_none() {
                let allowed = "given with `boxes`, `masks` or both";
                return Err(Error::range(place, "without either", allowed));
            }
            if let Some(boxes) = &object.boxes {
                let found = boxes.success().map_err(|error| named(error, "boxes"))?;
                detail["boxes"] = of_boxes(&found);
                tracks.push(found);
            }
            if let Some(runs) = &object.masks {
                let found = runs.masks(self.tolerance).map_err(|error| named(error, "masks"))?;
                detail["masks"] = json!({ "J": found.j, "F": found.f, "J&F": found.both });
                regions.push(found);
            }
            details.push(detail);
        }
        let mut report = Report::default();
        // Without any object, the mean of none is the error.
        if !tracks.is_empty() || regions.is_empty() {
            let all = Success::mean(&tracks)?;
            report.add("AUC", all.auc);
            report.add("mean_overlap", all.overlap);
            report.add("SR@0.5", all.half);
            report.add("SR@0.75", all.three_quarters);
        }
        if !regions.is_empty() {
            let all = Masks::mean(&regions)?;
            report.add("J&F", all.both);
            report.add("J", all.j);
            report.add("F", all.f);
        }
        report.count("objects", self.objects.len());
        report.count("with_boxes", tracks.len());
        report.count("with_masks", regions.len());
        report.details = json!({ "objects": details });
        Ok(report)
    }
}

fn of_boxes(of: &Success) -> Value {
    json!({
        "AUC": of.auc, "mean_overlap": of.overlap, "SR@0.5": of.half, "SR@0.75": of.three_quarters,
    })
}

impl Boxes {
    fn success(&self) -> Result<Success, Error> {
        length("predicted", &self.predicted, self.truth.len(), "one per frame of `truth`")?;
        let mut overlaps = Vec::new();
        for (at, (predicted, truth)) in self.predicted.iter().zip(&self.truth).enumerate() {
            if let Some(predicted) = predicted {
                check_box(&format!("predicted[{at}]"), *predicted)?;
            }
            let Some(truth) = truth else { continue };
            check_box(&format!("truth[{at}]"), *truth)?;
            overlaps.push(predicted.map_or(0.0, |predicted| box_iou(predicted, *truth)));
        }
        if overlaps.is_empty() {
            return Err(Error::Empty { at: "truth".to_owned() });
        }
        success(&overlaps)
    }
}

impl Runs {
    fn masks(&self, tolerance: f64) -> Result<Masks, Error> {
        length("predicted", &self.predicted, self.truth.len(), "one per frame of `truth`")?;
        if self.truth.is_empty() {
            return Err(Error::Empty { at: "truth".to_owned() });
        }
        let mut frames = Vec::with_capacity(self.truth.len());
        for (at, (predicted, truth)) in self.predicted.iter().zip(&self.truth).enumerate() {
            let predicted = Bitmap::from_runs(&format!("predicted[{at}]"), self.size, predicted)?;
            let truth = Bitmap::from_runs(&format!("truth[{at}]"), self.size, truth)?;
            frames.push((predicted, truth));
        }
        masks(&frames, tolerance)
    }
}
