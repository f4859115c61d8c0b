//! Temporal action localisation: tIoU, average precision per class, mAP, soft-NMS.
//!
//! Per class and threshold, predictions are taken in descending order of score (of equal scores the later
//! one first). Each scans the truths of its video by descending tIoU (of equal ones the later first) and
//! takes the first that is free and overlaps enough; else it is a false positive. Average precision is the
//! area under the precision envelope. Source: ActivityNet's evaluation, as ActionFormer and InternVideo
//! use it.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, descending, finite, mean, ordered, some};

/// Thresholds of THUMOS14.
pub const THUMOS14: [f64; 5] = [0.3, 0.4, 0.5, 0.6, 0.7];

/// Thresholds of ActivityNet, HACS and FineAction.
pub const ACTIVITYNET: [f64; 10] = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95];

/// Truths of one label are one when both ends are this near, in seconds.
pub const DUPLICATE: f64 = 1e-3;

/// Something that happens in a video, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// The video.
    pub video: String,
    /// The class.
    pub label: String,
    /// Begin and end.
    pub span: [f64; 2],
}

/// A segment with its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// What and where.
    pub segment: Segment,
    /// How sure.
    pub score: f64,
}

/// Average precision of one class.
#[derive(Debug, Clone, PartialEq)]
pub struct Class {
    /// The class.
    pub label: String,
    /// Truths, without duplicates.
    pub truths: usize,
    /// In percent, one per threshold.
    pub precision: Vec<f64>,
}

/// What came of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// Classes of the truths, sorted.
    pub classes: Vec<Class>,
    /// mAP in percent, one per threshold.
    pub map: Vec<f64>,
    /// Mean of them.
    pub average: f64,
    /// Truths that were removed as duplicates.
    pub duplicates: usize,
    /// Predictions of classes that no truth has; they count nowhere.
    pub ignored: usize,
}

/// Intersection over union of two segments; 0 when both are points.
pub fn tiou(a: [f64; 2], b: [f64; 2]) -> f64 {
    let inside = (a[1].min(b[1]) - a[0].max(b[0])).max(0.0);
    let union = (a[1] - a[0]) + (b[1] - b[0]) - inside;
    if union > 0.0 { inside / union } else { 0.0 }
}

/// Places of the truths that stay: the first of each group of duplicates.
pub fn distinct(truth: &[Segment]) -> Vec<usize> {
    let mut by_name: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    let near = |a: f64, b: f64| (a - b).abs() <= DUPLICATE;
    let mut kept = Vec::new();
    for (at, one) in truth.iter().enumerate() {
        let group = by_name.entry((&one.video, &one.label)).or_default();
        let same = |&other: &usize| {
            let [a, b] = [one.span, truth[other].span];
            near(a[0], b[0]) && near(a[1], b[1])
        };
        if !group.iter().any(same) {
            group.push(at);
            kept.push(at);
        }
    }
    kept
}

/// Average precision of each class at each threshold.
pub fn evaluate(
    truth: &[Segment],
    predictions: &[Prediction],
    thresholds: &[f64],
) -> Result<Detection, Error> {
    super::overlaps(thresholds)?;
    some("truth", truth)?;
    for (at, one) in truth.iter().enumerate() {
        ordered(&format!("truth[{at}]"), one.span)?;
    }
    for (at, one) in predictions.iter().enumerate() {
        ordered(&format!("predictions[{at}]"), one.segment.span)?;
        finite(|| format!("predictions[{at}].score"), one.score)?;
    }
    let kept = distinct(truth);
    let mut truths: BTreeMap<&str, Vec<&Segment>> = BTreeMap::new();
    for &at in &kept {
        truths.entry(&truth[at].label).or_default().push(&truth[at]);
    }
    let mut by_label: BTreeMap<&str, Vec<&Prediction>> = BTreeMap::new();
    for one in predictions {
        by_label.entry(&one.segment.label).or_default().push(one);
    }
    let classes: Vec<Class> = truths
        .iter()
        .map(|(&label, truths)| {
            let predictions = by_label.get(label).map_or(&[][..], Vec::as_slice);
            let precision = class_precision(truths, predictions, thresholds);
            Class { label: label.to_owned(), truths: truths.len(), precision }
        })
        .collect();
    let map: Vec<f64> = (0..thresholds.len())
        .map(|at| mean(classes.iter().map(|class| class.precision[at])))
        .collect();
    let known: BTreeSet<&str> = truths.keys().copied().collect();
    let unknown = by_label.iter().filter(|(label, _)| !known.contains(*label));
    let ignored = unknown.map(|(_, of)| of.len()).sum();
    let duplicates = truth.len() - kept.len();
    Ok(Detection { average: mean(map.iter().copied()), classes, map, duplicates, ignored })
}

/// Average precision of one class in percent, one per threshold.
fn class_precision(
    truths: &[&Segment],
    predictions: &[&Prediction],
    thresholds: &[f64],
) -> Vec<f64> {
    let mut videos: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, one) in truths.iter().enumerate() {
        videos.entry(&one.video).or_default().push(at);
    }
    let scores: Vec<f64> = predictions.iter().map(|one| one.score).collect();
    let mut taken = vec![vec![false; truths.len()]; thresholds.len()];
    let mut hits = vec![Vec::with_capacity(scores.len()); thresholds.len()];
    for at in descending(&scores) {
        let one = &predictions[at].segment;
        let near = videos.get(one.video.as_str()).map_or(&[][..], Vec::as_slice);
        let overlap: Vec<f64> = near.iter().map(|&t| tiou(one.span, truths[t].span)).collect();
        let order = descending(&overlap);
        for (which, &threshold) in thresholds.iter().enumerate() {
            let mut enough = order.iter().take_while(|&&t| overlap[t] >= threshold);
            let free = enough.find(|&&t| !taken[which][near[t]]);
            if let Some(&t) = free {
                taken[which][near[t]] = true;
            }
            hits[which].push(free.is_some());
        }
    }
    hits.iter().map(|hits| 100.0 * envelope_area(hits, truths.len())).collect()
}

/// Area under the precision envelope, between 0 and 1, of hits and misses in order.
pub fn envelope_area(hits: &[bool], truths: usize) -> f64 {
    if truths == 0 {
        return 0.0;
    }
    let mut found = 0_usize;
    let curve: Vec<(f64, f64)> = hits
        .iter()
        .enumerate()
        .map(|(at, &hit)| {
            found += usize::from(hit);
            (found as f64 / truths as f64, found as f64 / (at + 1) as f64)
        })
        .collect();
    let (mut envelope, mut area) = (0.0_f64, 0.0);
    for at in (0..curve.len()).rev() {
        envelope = envelope.max(curve[at].1);
        let before = at.checked_sub(1).map_or(0.0, |before| curve[before].0);
        area += (curve[at].0 - before) * envelope;
    }
    area
}

/// Refuses scored segments with ends out of order or numbers that are not finite.
pub fn check_scored(segments: &[([f64; 2], f64)]) -> Result<(), Error> {
    for (at, (span, score)) in segments.iter().enumerate() {
        ordered(&format!("predictions[{at}]"), *span)?;
        finite(|| format!("predictions[{at}].score"), *score)?;
    }
    Ok(())
}

/// Soft-NMS (Bodla et al. 2017) with Gaussian decay: takes the best segment (of equal ones the first), multiplies the
/// scores of those left by exp(-tIoU² / sigma), drops what falls below `least`, and goes on. Gives
/// places and new scores in the order in which they were taken.
pub fn soft_nms(
    segments: &[([f64; 2], f64)],
    sigma: f64,
    least: f64,
) -> Result<Vec<(usize, f64)>, Error> {
    if !(sigma > 0.0 && sigma.is_finite()) {
        return Err(Error::range("sigma", sigma, "a number over 0"));
    }
    finite(|| "least".to_owned(), least)?;
    check_scored(segments)?;
    let scored = segments.iter().enumerate().map(|(at, (_, score))| (at, *score));
    let mut left: Vec<(usize, f64)> = scored.filter(|(_, score)| *score >= least).collect();
    let mut taken = Vec::new();
    // `max_by` gives the last of equal ones.
    while let Some(best) =
        (0..left.len()).rev().max_by(|&a, &b| (left[a].1 + 0.0).total_cmp(&(left[b].1 + 0.0)))
    {
        let (at, score) = left.remove(best);
        taken.push((at, score));
        for (other, score) in &mut left {
            let overlap = tiou(segments[at].0, segments[*other].0);
            *score *= (-overlap * overlap / sigma).exp();
        }
        left.retain(|(_, score)| *score >= least);
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(video: &str, label: &str, start: f64, end: f64) -> Segment {
        Segment { video: video.to_owned(), label: label.to_owned(), span: [start, end] }
    }

    fn prediction(video: &str, label: &str, start: f64, end: f64, score: f64) -> Prediction {
        Prediction { segment: segment(video, label, start, end), score }
    }

    #[test]
    fn overlap_of_segments() {
        assert_eq!(tiou([0.0, 2.0], [1.0, 3.0]), 1.0 / 3.0);
        assert_eq!(tiou([0.0, 1.0], [1.0, 2.0]), 0.0);
        assert_eq!(tiou([0.0, 1.0], [5.0, 9.0]), 0.0);
        assert_eq!(tiou([1.0, 1.0], [1.0, 1.0]), 0.0);
    }

    #[test]
    fn the_envelope_fills_dips() {
        // Precision 1, 1/2, 2/3: the dip is at no new recall.
        assert!((envelope_area(&[true, false, true], 2) - (0.5 + 0.5 * 2.0 / 3.0)).abs() < 1e-15);
        // Precision 0, 1/2, 2/3 rises: the envelope is 2/3 all along.
        assert!((envelope_area(&[false, true, true], 2) - 2.0 / 3.0).abs() < 1e-15);
        assert_eq!((envelope_area(&[], 2), envelope_area(&[false], 0)), (0.0, 0.0));
    }

    #[test]
    fn a_truth_is_found_once_and_the_next_best_is_tried() {
        let truth = [segment("v", "run", 0.0, 10.0), segment("v", "run", 2.0, 12.0)];
        // Both overlap the second truth most; the second prediction takes the first truth.
        let two = [
            prediction("v", "run", 2.0, 12.0, 0.9),
            prediction("v", "run", 1.5, 11.5, 0.8),
            prediction("v", "run", 2.0, 12.0, 0.7),
            prediction("w", "run", 2.0, 12.0, 0.95),
        ];
        let found = evaluate(&truth, &two, &[0.5, 0.95]).unwrap();
        // At 0.5: miss, hit, hit, miss; at 0.95: miss, hit, miss, miss.
        assert!((found.map[0] - 100.0 * 2.0 / 3.0).abs() < 1e-12, "{found:?}");
        assert!((found.map[1] - 100.0 * 0.5 * 0.5).abs() < 1e-12, "{found:?}");
        assert!((found.average - (found.map[0] + found.map[1]) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn classes_without_predictions_count_as_zero_and_unknown_ones_nowhere() {
        let truth = [
            segment("v", "run", 0.0, 1.0),
            segment("v", "run", 0.0005, 1.001),
            segment("v", "jump", 0.0, 1.0),
        ];
        let predictions =
            [prediction("v", "run", 0.0, 1.0, 0.5), prediction("v", "sit", 0.0, 1.0, 0.5)];
        let found = evaluate(&truth, &predictions, &THUMOS14).unwrap();
        assert_eq!((found.duplicates, found.ignored, found.average), (1, 1, 50.0));
        let labels: Vec<&str> = found.classes.iter().map(|class| class.label.as_str()).collect();
        assert_eq!((labels, found.classes[1].truths), (vec!["jump", "run"], 1));
    }

    #[test]
    fn of_equal_scores_the_later_prediction_is_first() {
        let truth = [segment("v", "run", 0.0, 1.0)];
        let hit = prediction("v", "run", 0.0, 1.0, 0.5);
        let miss = prediction("v", "run", 5.0, 6.0, 0.5);
        let area =
            |predictions: &[Prediction]| evaluate(&truth, predictions, &[0.5]).unwrap().average;
        assert_eq!((area(&[miss.clone(), hit.clone()]), area(&[hit, miss])), (100.0, 50.0));
    }

    #[test]
    fn wrong_segments_are_named() {
        let truth = [segment("v", "run", 0.0, 1.0)];
        let error = |one: Prediction| evaluate(&truth, &[one], &[0.5]).unwrap_err().to_string();
        let nan = error(prediction("v", "run", 0.0, 1.0, f64::NAN));
        assert_eq!(nan, "`predictions[0].score` is NaN; give finite numbers");
        let turned = error(prediction("v", "run", 2.0, 1.0, 0.5));
        assert_eq!(turned, "`predictions[0].end` is 1, but must be at least its start 2");
        assert!(evaluate(&[], &[], &[0.5]).is_err());
        let far = evaluate(&truth, &[], &[0.5, 1.5]).unwrap_err().to_string();
        assert_eq!(far, "`thresholds[1]` is 1.5, but must be over 0, at most 1");
        assert_eq!(evaluate(&truth, &[], &[0.5]).unwrap().average, 0.0);
    }

    #[test]
    fn soft_nms_decays_neighbours() {
        let segments = [([0.0, 10.0], 0.9), ([0.0, 10.0], 0.8), ([20.0, 30.0], 0.5)];
        let found = soft_nms(&segments, 0.5, 0.001).unwrap();
        let order: Vec<usize> = found.iter().map(|(at, _)| *at).collect();
        assert_eq!((order, found[1].1), (vec![0, 2, 1], 0.5));
        assert!((found[2].1 - 0.8 * (-2.0_f64).exp()).abs() < 1e-15);
        assert_eq!(soft_nms(&segments, 0.5, 0.2).unwrap().len(), 2);
        assert_eq!(soft_nms(&[([0.0, 1.0], 0.5), ([0.0, 1.0], 0.5)], 0.5, 0.0).unwrap()[0].0, 0);
        assert!(soft_nms(&segments, 0.0, 0.1).is_err());
        assert!(soft_nms(&[], 0.5, 0.1).unwrap().is_empty());
    }
}
