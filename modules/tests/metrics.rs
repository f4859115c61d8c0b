//! Metrics beside plain re-implementations by other algorithms, on random inputs with many ties.

use std::collections::BTreeSet;

use modules::metrics::detection::{Prediction, Segment};
use modules::metrics::tracking::Bitmap;
use modules::metrics::{Matrix, classification, detection, grounding, retrieval, tracking};
use proptest::collection::vec;
use proptest::prelude::*;

/// What sums of percentages may differ by when their order does.
const NEAR: f64 = 1e-9;

/// Scores of few values, so that many are equal.
fn scores(
    rows: impl Strategy<Value = usize>,
    columns: std::ops::Range<usize>,
) -> impl Strategy<Value = Matrix> {
    (rows, columns).prop_flat_map(|(rows, columns)| {
        vec((-4_i32..5).prop_map(|n| f64::from(n) / 4.0), rows * columns)
            .prop_map(move |values| Matrix::new("scores", rows, columns, values).unwrap())
    })
}

/// Segments on a coarse grid, so that overlaps are often equal.
fn span() -> impl Strategy<Value = [f64; 2]> {
    (0_u32..10, 0_u32..6).prop_map(|(start, long)| [start, start + long].map(f64::from))
}

fn segment() -> impl Strategy<Value = Segment> {
    (span(), 0..3, 0..3).prop_map(|(span, video, label)| Segment {
        video: format!("v{video}"),
        label: format!("c{label}"),
        span,
    })
}

fn prediction() -> impl Strategy<Value = Prediction> {
    let scored = (segment(), 0_u32..6);
    scored.prop_map(|(segment, score)| Prediction { segment, score: f64::from(score) / 5.0 })
}

fn bitmap(size: [usize; 2]) -> impl Strategy<Value = Bitmap> {
    pixels(size).prop_map(move |inside| Bitmap::new("mask", size, inside).unwrap())
}

/// A rectangle and some single pixels.
fn pixels([height, width]: [usize; 2]) -> impl Strategy<Value = Vec<bool>> {
    let noise = vec(prop::bool::weighted(0.05), height * width);
    let sides = (0..=height, 0..=height, 0..=width, 0..=width);
    (noise, sides).prop_map(move |(mut inside, (top, bottom, left, right))| {
        for (row, column) in (top..bottom).flat_map(|r| (left..right).map(move |c| (r, c))) {
            inside[row * width + column] ^= true;
        }
        inside
    })
}

/// Counts items that come before: larger ones, and equal ones of a higher index.
fn naive_rank(row: &[f64], right: &[usize]) -> usize {
    let before = |item: usize| {
        let larger = row.iter().filter(|&&score| score > row[item]).count();
        larger + row[item + 1..].iter().filter(|&&score| score == row[item]).count()
    };
    right.iter().map(|&item| before(item)).min().unwrap()
}

/// Precision at every distinct score as threshold, times what recall gains there.
fn naive_average_precision(scores: &[f64], positive: &[bool]) -> Option<f64> {
    let all = positive.iter().filter(|&&p| p).count() as f64;
    let mut thresholds = scores.to_vec();
    thresholds.sort_by(|a, b| b.total_cmp(a));
    thresholds.dedup();
    let (mut recall, mut area) = (0.0, 0.0);
    for threshold in thresholds {
        let found = |at: &usize| scores[*at] >= threshold;
        let taken: Vec<usize> = (0..scores.len()).filter(found).collect();
        let hits = taken.iter().filter(|&&at| positive[at]).count() as f64;
        area += (hits / all - recall) * hits / taken.len() as f64;
        recall = hits / all;
    }
    (all > 0.0).then_some(area)
}

fn naive_tiou(a: [f64; 2], b: [f64; 2]) -> f64 {
    // Ends are whole numbers: count unit cells.
    let cells = |[start, end]: [f64; 2]| (start as u32..end as u32).collect::<BTreeSet<u32>>();
    let (a, b) = (cells(a), cells(b));
    let union = a.union(&b).count();
    if union == 0 { 0.0 } else { a.intersection(&b).count() as f64 / union as f64 }
}

/// Average precision of a class by the curve: for each truth found, the best precision at that recall or
/// more, over the number of truths.
fn naive_detection(truth: &[&Segment], predictions: &[&Prediction], threshold: f64) -> f64 {
    let mut order: Vec<usize> = (0..predictions.len()).collect();
    order.sort_by(|&a, &b| predictions[b].score.total_cmp(&predictions[a].score).then(b.cmp(&a)));
    let mut free: BTreeSet<usize> = (0..truth.len()).collect();
    let mut curve = Vec::new();
    for (seen, at) in order.into_iter().enumerate() {
        let one = &predictions[at].segment;
        let mut best: Option<(f64, usize)> = None;
        for &at in &free {
            let overlap = naive_tiou(one.span, truth[at].span);
            if truth[at].video == one.video
                && overlap >= threshold
                && best.is_none_or(|(most, _)| overlap >= most)
            {
                best = Some((overlap, at));
            }
        }
        if let Some((_, at)) = best {
            free.remove(&at);
        }
        let found = truth.len() - free.len();
        curve.push((found, found as f64 / (seen + 1) as f64));
    }
    let best = |least: usize| {
        let enough = curve.iter().filter(|(found, _)| *found >= least);
        enough.map(|(_, precision)| *precision).fold(0.0, f64::max)
    };
    (1..=truth.len()).map(best).sum::<f64>() / truth.len() as f64
}

/// Boundary by exclusive or of shifted copies, dilation by a disc: as DAVIS does it.
fn naive_boundary([height, width]: [usize; 2], inside: &[bool]) -> Vec<bool> {
    let clamped = |r: usize, c: usize| inside[r.min(height - 1) * width + c.min(width - 1)];
    let place = |at: usize| (at / width, at % width);
    let differs = |(r, c): (usize, usize)| {
        let here = inside[r * width + c];
        [(r, c + 1), (r + 1, c), (r + 1, c + 1)].iter().any(|&(r, c)| clamped(r, c) != here)
    };
    (0..inside.len()).map(|at| differs(place(at))).collect()
}

fn naive_f(size: [usize; 2], a: &[bool], b: &[bool], radius: usize) -> f64 {
    let (a, b) = (naive_boundary(size, a), naive_boundary(size, b));
    let points = |map: &[bool]| -> Vec<(i64, i64)> {
        let set = (0..map.len()).filter(|&at| map[at]);
        set.map(|at| ((at / size[1]) as i64, (at % size[1]) as i64)).collect()
    };
    let (a, b) = (points(&a), points(&b));
    let limit = (radius * radius) as i64;
    let share = |from: &[(i64, i64)], to: &[(i64, i64)]| {
        let near =
            |p: &&(i64, i64)| to.iter().any(|q| (p.0 - q.0).pow(2) + (p.1 - q.1).pow(2) <= limit);
        from.iter().filter(near).count() as f64 / from.len() as f64
    };
    if a.is_empty() || b.is_empty() {
        return if a.len() == b.len() { 1.0 } else { 0.0 };
    }
    let (precision, recall) = (share(&a, &b), share(&b, &a));
    if precision + recall == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn ranks_count_what_comes_before(
        (scores, right) in scores(1_usize..8, 1..14).prop_flat_map(|scores| {
            let right = vec(vec(0..scores.columns(), 1..4), scores.rows());
            (Just(scores), right)
        }),
    ) {
        let expected: Vec<usize> =
            scores.iter().zip(&right).map(|(row, right)| naive_rank(row, right)).collect();
        let found = retrieval::ranks(&scores, &right).unwrap();
        prop_assert_eq!(&found, &expected);
        let recall = retrieval::recall(&scores, &right).unwrap();
        let share = |k: usize| {
            100.0 * expected.iter().map(|&r| f64::from(u8::from(r < k))).sum::<f64>() / expected.len() as f64
        };
        for (found, k) in [(recall.r1, 1), (recall.r5, 5), (recall.r10, 10)] {
            prop_assert!((found - share(k)).abs() < NEAR);
        }
        let sum: usize = expected.iter().map(|rank| rank + 1).sum();
        prop_assert!((recall.mean_rank - sum as f64 / expected.len() as f64).abs() < NEAR);
        // A median has as many ranks at or below it as at or above it.
        let below = expected.iter().filter(|&&r| r as f64 + 1.0 <= recall.median_rank).count();
        let above = expected.iter().filter(|&&r| r as f64 + 1.0 >= recall.median_rank).count();
        prop_assert!(2 * below >= expected.len() && 2 * above >= expected.len());
        // The other direction by hand.
        let back = retrieval::inverted("right", &right, scores.columns()).unwrap();
        for (item, queries) in back.iter().enumerate() {
            let all = 0..scores.rows();
            let holds: Vec<usize> = all.filter(|&query| right[query].contains(&item)).collect();
            prop_assert_eq!(queries, &holds);
        }
    }

    #[test]
    fn dual_softmax_and_reranking_by_entry(
        scores in scores(1_usize..6, 1..7), scale in 0.1_f64..20.0, k in 1_usize..8,
    ) {
        let found = retrieval::dual_softmax(&scores, scale).unwrap();
        let again = retrieval::rerank(&scores, &found, k).unwrap();
        for q in 0..scores.rows() {
            for i in 0..scores.columns() {
                let score = scores.row(q)[i];
                let sum: f64 = scores.iter().map(|row| (scale * row[i]).exp()).sum();
                let expected = score * (scale * score).exp() / sum;
                prop_assert!((found.row(q)[i] - expected).abs() < 1e-12);
                let kept = naive_rank(scores.row(q), &[i]) < k;
                let entry = if kept { found.row(q)[i] } else { -100.0 };
                prop_assert_eq!(again.row(q)[i], entry);
            }
        }
    }

    #[test]
    fn top_k_is_a_place_in_a_stable_descending_sort(
        (scores, labels) in scores(1_usize..10, 2..8).prop_flat_map(|scores| {
            let labels = vec(0..scores.columns(), scores.rows());
            (Just(scores), labels)
        }),
        k in 1_usize..7,
    ) {
        let mut hits = vec![Vec::new(); scores.columns()];
        let mut first = hits.clone();
        for (row, &label) in scores.iter().zip(&labels) {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            hits[label].push(f64::from(u8::from(order.iter().take(k).any(|&c| c == label))));
            first[label].push(f64::from(u8::from(order[0] == label)));
        }
        let share = |all: &[f64]| 100.0 * all.iter().sum::<f64>() / all.len() as f64;
        let found = classification::top(&scores, &labels, k).unwrap();
        prop_assert!((found - share(&hits.concat())).abs() < NEAR);
        let classes = classification::per_class(&scores, &labels).unwrap();
        for (class, of_class) in classes.iter().zip(&first) {
            prop_assert_eq!(class.is_none(), of_class.is_empty());
            prop_assert!(class.is_none_or(|class| (class - share(of_class)).abs() < NEAR));
        }
    }

    #[test]
    fn views_and_prompts_are_means(
        scores in scores(Just(6_usize), 6..7), of in vec(0_usize..3, 3),
    ) {
        let group: Vec<usize> = [0, 1, 2].into_iter().chain(of).collect();
        let views = classification::mean_over_views(&classification::softmax(&scores), &group).unwrap();
        let prompts = classification::mean_over_prompts(&scores, &group).unwrap();
        for g in 0..3 {
            let members: Vec<usize> = (0..6).filter(|&at| group[at] == g).collect();
            for c in 0..6 {
                let share = |row: &[f64]| row[c].exp() / row.iter().map(|s| s.exp()).sum::<f64>();
                let sum: f64 = members.iter().map(|&at| share(scores.row(at))).sum();
                prop_assert!((views.row(g)[c] - sum / members.len() as f64).abs() < 1e-12);
                let sum: f64 = members.iter().map(|&at| scores.row(c)[at]).sum();
                prop_assert!((prompts.row(c)[g] - sum / members.len() as f64).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn average_precision_by_thresholds(list in vec((0_u8..8, any::<bool>()), 1..30)) {
        let scores: Vec<f64> = list.iter().map(|(score, _)| f64::from(*score) / 7.0).collect();
        let positive: Vec<bool> = list.iter().map(|(_, positive)| *positive).collect();
        let found = classification::average_precision(&scores, &positive).unwrap();
        let expected = naive_average_precision(&scores, &positive);
        prop_assert_eq!(found.is_some(), expected.is_some());
        prop_assert!((found.unwrap_or(0.0) - expected.unwrap_or(0.0)).abs() < NEAR);
    }

    #[test]
    fn detection_by_an_explicit_curve(
        truth in vec(segment(), 1..12), predictions in vec(prediction(), 0..24),
    ) {
        let found = detection::evaluate(&truth, &predictions, &detection::THUMOS14).unwrap();
        // On a grid of seconds, duplicates are equal segments.
        let mut distinct: Vec<&Segment> = Vec::new();
        for one in &truth {
            if !distinct.contains(&one) {
                distinct.push(one);
            }
        }
        prop_assert_eq!(found.duplicates, truth.len() - distinct.len());
        let labels: BTreeSet<&str> = truth.iter().map(|one| one.label.as_str()).collect();
        for (at, threshold) in detection::THUMOS14.into_iter().enumerate() {
            let mut sum = 0.0;
            for (label, class) in labels.iter().zip(&found.classes) {
                let of_class = distinct.iter().copied().filter(|one| one.label == *label);
                let truth: Vec<&Segment> = of_class.collect();
                let mine: Vec<&Prediction> =
                    predictions.iter().filter(|one| one.segment.label == *label).collect();
                let expected = 100.0 * naive_detection(&truth, &mine, threshold);
                prop_assert!((class.precision[at] - expected).abs() < NEAR);
                sum += expected;
            }
            prop_assert!((found.map[at] - sum / labels.len() as f64).abs() < NEAR);
        }
    }

    #[test]
    fn soft_nms_multiplies_what_was_taken_before(
        spans in vec((span(), 0_u32..9), 0..12), sigma in 0.1_f64..2.0,
    ) {
        let segments: Vec<([f64; 2], f64)> =
            spans.iter().map(|(span, score)| (*span, f64::from(*score) / 8.0)).collect();
        let found = detection::soft_nms(&segments, sigma, 0.0).unwrap();
        prop_assert_eq!(found.iter().map(|(at, _)| at).collect::<BTreeSet<_>>().len(), segments.len());
        for (place, (at, score)) in found.iter().enumerate() {
            let squares: f64 = found[..place]
                .iter()
                .map(|(before, _)| naive_tiou(segments[*before].0, segments[*at].0).powi(2))
                .sum();
            prop_assert!((score - segments[*at].1 * (-squares / sigma).exp()).abs() < 1e-12);
            prop_assert!(place == 0 || found[place - 1].1 >= *score);
        }
    }

    #[test]
    fn grounding_by_cells(queries in vec((span(), vec(span(), 0..6)), 1..12)) {
        let list: Vec<grounding::Query> = queries
            .iter()
            .map(|(truth, predicted)| grounding::Query { truth: *truth, predicted: predicted.clone() })
            .collect();
        let found = grounding::evaluate(&list, &[0.3, 0.5, 0.7], &[1, 3]).unwrap();
        let overlap = |at: usize| -> Vec<f64> {
            let (truth, predicted) = &queries[at];
            predicted.iter().map(|one| naive_tiou(*one, *truth)).collect()
        };
        let all: Vec<Vec<f64>> = (0..queries.len()).map(overlap).collect();
        let first: f64 = all.iter().filter_map(|of| of.first()).sum();
        prop_assert!((found.miou - 100.0 * first / all.len() as f64).abs() < NEAR);
        for (k, threshold, share) in found.recall {
            let best = |of: &&Vec<f64>| of[..k.min(of.len())].iter().fold(0.0, |a, &b| f64::max(a, b)) >= threshold;
            let expected = 100.0 * all.iter().filter(best).count() as f64 / all.len() as f64;
            prop_assert!((share - expected).abs() < NEAR);
        }
    }

    #[test]
    fn region_and_boundary_by_all_pairs(
        a in pixels([9, 12]), b in pixels([9, 12]), radius in 0_usize..5,
    ) {
        let size = [9, 12];
        let map = |inside: &Vec<bool>| Bitmap::new("mask", size, inside.clone()).unwrap();
        let found = tracking::boundary_f(&map(&a), &map(&b), radius).unwrap();
        prop_assert!((found - naive_f(size, &a, &b, radius)).abs() < 1e-12);
        let set = |map: &[bool]| (0..108).filter(|&at| map[at]).collect::<BTreeSet<usize>>();
        let (a_set, b_set) = (set(&a), set(&b));
        let union = a_set.union(&b_set).count();
        let expected = a_set.intersection(&b_set).count() as f64 / union.max(1) as f64;
        let expected = if union == 0 { 1.0 } else { expected };
        prop_assert_eq!(tracking::mask_iou(&map(&a), &map(&b)).unwrap(), expected);
    }

    #[test]
    fn masks_of_themselves_are_perfect(mask in bitmap([7, 5]), runs in vec(0_usize..4, 1..9)) {
        let found = tracking::masks(&[(mask.clone(), mask)], tracking::TOLERANCE).unwrap();
        prop_assert_eq!((found.j, found.f, found.both), (100.0, 100.0, 100.0));
        let sum: usize = runs.iter().sum();
        let made = Bitmap::from_runs("mask", [1, 9], &runs);
        prop_assert_eq!(made.is_ok(), sum == 9);
    }

    #[test]
    fn boxes_by_pixels(a in (0_i32..6, 0_i32..6, 0_i32..5, 0_i32..5), b in (0_i32..6, 0_i32..6, 0_i32..5, 0_i32..5)) {
        let corners = |(x, y, w, h): (i32, i32, i32, i32)| [x, y, x + w, y + h].map(f64::from);
        let inside = |(x, y, w, h): (i32, i32, i32, i32)| -> BTreeSet<(i32, i32)> {
            (x..x + w).flat_map(|c| (y..y + h).map(move |r| (r, c))).collect()
        };
        let (one, two) = (inside(a), inside(b));
        let expected = one.intersection(&two).count() as f64 / one.union(&two).count().max(1) as f64;
        let found = tracking::box_iou(corners(a), corners(b));
        prop_assert!((found - expected).abs() < 1e-12);
        // The area under the success curve counts thresholds below the overlap.
        let below = (0..21).filter(|step| f64::from(*step) / 20.0 < found).count();
        let success = tracking::success(&[found]).unwrap();
        prop_assert!((success.auc - 100.0 * below as f64 / 21.0).abs() < NEAR);
    }
}
