//! Temporal grounding: where in a video is what a text says.

use super::detection::tiou;
use super::{Error, mean, ordered, percent, some};

/// One text and what was found for it, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// The right segment.
    pub truth: [f64; 2],
    /// Segments in descending order of score. None at all counts as overlap 0.
    pub predicted: Vec<[f64; 2]>,
}

/// What came of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Grounding {
    /// Mean tIoU of the first segments, in percent.
    pub miou: f64,
    /// R@k at a threshold in percent: k, threshold, share of queries with one of the first k segments at
    /// tIoU of at least the threshold.
    pub recall: Vec<(usize, f64, f64)>,
    /// Queries without a segment.
    pub unanswered: usize,
}

/// Judges queries at thresholds, for the first `k` segments of each k.
pub fn evaluate(queries: &[Query], thresholds: &[f64], ks: &[usize]) -> Result<Grounding, Error> {
    some("queries", queries)?;
    super::overlaps(thresholds)?;
    some("ks", ks)?;
    if let Some(at) = ks.iter().position(|&k| k == 0) {
        return Err(Error::range(format!("ks[{at}]"), 0, "at least 1"));
    }
    let mut overlaps = Vec::with_capacity(queries.len());
    for (at, query) in queries.iter().enumerate() {
        ordered(&format!("queries[{at}].truth"), query.truth)?;
        for (place, &span) in query.predicted.iter().enumerate() {
            ordered(&format!("queries[{at}].predicted[{place}]"), span)?;
        }
        let of_query = query.predicted.iter().map(|&span| tiou(span, query.truth));
        overlaps.push(of_query.collect::<Vec<f64>>());
    }
    let first = overlaps.iter().map(|of_query| of_query.first().copied().unwrap_or_default());
    let mut recall = Vec::new();
    for &k in ks {
        for &threshold in thresholds {
            let hit = |of: &&Vec<f64>| of.iter().take(k).any(|&overlap| overlap >= threshold);
            let share = percent(overlaps.iter().filter(hit).count(), queries.len());
            recall.push((k, threshold, share));
        }
    }
    let unanswered = overlaps.iter().filter(|of_query| of_query.is_empty()).count();
    Ok(Grounding { miou: 100.0 * mean(first), recall, unanswered })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_segment_counts_and_later_ones_for_more() {
        let queries = [
            Query { truth: [0.0, 10.0], predicted: vec![[0.0, 5.0], [0.0, 10.0]] },
            Query { truth: [5.0, 6.0], predicted: vec![[5.0, 6.0]] },
            Query { truth: [5.0, 6.0], predicted: vec![] },
        ];
        let found = evaluate(&queries, &[0.5, 0.7], &[1, 5]).unwrap();
        assert_eq!((found.miou, found.unanswered), (50.0, 1));
        let (one, two) = (100.0 / 3.0, 200.0 / 3.0);
        let expected = [(1, 0.5, two), (1, 0.7, one), (5, 0.5, two), (5, 0.7, two)];
        assert_eq!(found.recall, expected);
    }

    #[test]
    fn wrong_segments_are_named() {
        let query = |truth, predicted| vec![Query { truth, predicted: vec![predicted] }];
        let error = |queries: &[Query]| evaluate(queries, &[0.5], &[1]).unwrap_err().to_string();
        assert_eq!(error(&[]), "`queries` is empty; give at least one");
        let nan = error(&query([0.0, 1.0], [f64::NAN, 1.0]));
        assert_eq!(nan, "`queries[0].predicted[0].start` is NaN; give finite numbers");
        let turned = error(&query([1.0, 0.0], [0.0, 1.0]));
        assert_eq!(turned, "`queries[0].truth.end` is 0, but must be at least its start 1");
        assert!(evaluate(&query([0.0, 1.0], [0.0, 1.0]), &[0.5], &[0]).is_err());
        assert!(evaluate(&query([0.0, 1.0], [0.0, 1.0]), &[], &[1]).is_err());
    }
}
