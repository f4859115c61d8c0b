//! Metrics beside reference packages, run once; their inputs and results are the constants here.
//!
//! - scikit-learn 1.9.1: `average_precision_score`, `top_k_accuracy_score`, `balanced_accuracy_score`;
//! - torchmetrics 1.9.0: `RetrievalHitRate`, `retrieval_reciprocal_rank` (its inverse is the rank);
//! - torchvision 0.26.0: `box_iou`;
//! - NumPy and SciPy 1.17.1: the loops of ActivityNet's average precision with stable sorts, and DAVIS's
//!   boundary measure with `scipy.ndimage.binary_dilation`, written again from their definitions.

use modules::metrics::detection::{Prediction, Segment, THUMOS14};
use modules::metrics::tracking::Bitmap;
use modules::metrics::{Matrix, classification, detection, retrieval, tracking};

const NEAR: f64 = 1e-9;

fn matrix(rows: &[&[f64]]) -> Matrix {
    let rows: Vec<Vec<f64>> = rows.iter().map(|row| row.to_vec()).collect();
    Matrix::from_rows("scores", &rows).unwrap()
}

fn lists(of: &[&[usize]]) -> Vec<Vec<usize>> {
    of.iter().map(|list| list.to_vec()).collect()
}

#[track_caller]
fn near(found: f64, expected: f64) {
    assert!((found - expected).abs() < NEAR, "{found}, expected {expected}");
}

/// Two rows are equal: ties.
const MANY: &[&[f64]] = &[
    &[0.0, 0.3, -0.27, -0.89],
    &[-0.45, -0.99, 0.06, 1.34],
    &[-0.49, -0.62, 0.49, 0.36],
    &[-1.84, -0.24, -1.27, 0.27],
    &[-1.34, -0.46, -1.9, -1.29],
    &[-1.84, -0.24, -1.27, 0.27],
    &[0.16, -0.19, -2.52, -0.54],
    &[-0.05, 0.11, -1.53, -0.48],
    &[-0.98, -0.81, 1.06, -0.81],
    &[-0.03, 0.88, -0.58, -0.11],
];
const MANY_LABELS: &[&[usize]] =
    &[&[0, 1, 2, 3], &[1], &[1, 3], &[0, 1, 2], &[0], &[2], &[0, 2], &[0, 2], &[1], &[2, 3]];
const MANY_PRECISION: [f64; 4] = [75.0, 43.05555555555555, 50.297619047619044, 41.11111111111111];

#[test]
fn average_precision_is_that_of_scikit_learn() {
    let found = classification::per_class_precision(&matrix(MANY), &lists(MANY_LABELS)).unwrap();
    for (found, expected) in found.iter().zip(MANY_PRECISION) {
        near(found.unwrap(), expected);
    }
    near(classification::mean_of_present(&found), 52.36607142857142);
}

const ONE: &[&[f64]] = &[
    &[-0.428, -0.304, 0.353, -0.121, -0.197, -1.114, -0.012],
    &[-0.444, 1.166, 0.653, -0.024, 0.668, -0.34, 1.052],
    &[-0.005, 0.583, -1.291, 0.347, -1.688, -2.035, -0.304],
    &[-0.9, 0.164, 2.245, -0.832, -0.624, 0.205, 0.493],
    &[-0.176, -0.206, 0.702, 0.52, -1.034, -0.079, 0.035],
    &[-1.054, 0.26, -0.858, 0.972, 0.193, 0.089, -0.591],
    &[-0.119, -1.998, -1.131, 0.363, -2.129, 0.847, -1.746],
    &[0.757, -0.845, 0.779, 0.131, -1.537, 1.249, 1.442],
    &[-0.066, -0.274, -0.16, -0.975, 1.099, -0.543, -0.051],
    &[-0.793, -0.626, -1.278, 1.257, -0.154, 0.966, 0.013],
    &[-0.694, -0.327, -0.56, 0.008, -0.375, -0.3, -1.379],
    &[-0.807, 1.654, -0.671, -1.054, 0.337, 1.407, -1.454],
];
const ONE_LABELS: [usize; 12] = [0, 1, 2, 3, 4, 5, 6, 3, 1, 4, 2, 4];

#[test]
fn accuracies_are_those_of_scikit_learn() {
    let scores = matrix(ONE);
    near(classification::top(&scores, &ONE_LABELS, 1).unwrap(), 8.333333333333332);
    near(classification::top(&scores, &ONE_LABELS, 5).unwrap(), 75.0);
    let classes = classification::per_class(&scores, &ONE_LABELS).unwrap();
    near(classification::mean_of_present(&classes), 7.142857142857142);
}

const PAIRS: &[&[f64]] = &[
    &[
        0.4248, 0.5455, 0.4461, 0.4857, 0.3892, 0.3784, 0.6336, 0.4493, 0.5292, 0.4966, 0.4559,
        0.4492, 0.563, 0.4698,
    ],
    &[
        0.4849, 0.5022, 0.6177, 0.5681, 0.5383, 0.4436, 0.3618, 0.595, 0.5966, 0.4859, 0.5542,
        0.5781, 0.5831, 0.5921,
    ],
    &[
        0.4544, 0.6515, 0.3753, 0.5862, 0.5494, 0.5874, 0.6879, 0.6484, 0.3855, 0.3311, 0.5817,
        0.3985, 0.4988, 0.584,
    ],
    &[
        0.3356, 0.289, 0.5259, 0.5044, 0.4754, 0.5039, 0.4139, 0.3487, 0.4833, 0.4028, 0.3357,
        0.5506, 0.4939, 0.5407,
    ],
    &[
        0.4011, 0.4341, 0.4001, 0.4113, 0.5195, 0.4217, 0.5356, 0.534, 0.7025, 0.3607, 0.5888,
        0.4911, 0.4986, 0.355,
    ],
    &[
        0.454, 0.5743, 0.4918, 0.5081, 0.4709, 0.6155, 0.4979, 0.28, 0.4308, 0.3031, 0.1749, 0.447,
        0.6334, 0.5047,
    ],
    &[
        0.3827, 0.4059, 0.6131, 0.5158, 0.5048, 0.4947, 0.5038, 0.5805, 0.5553, 0.5216, 0.3957,
        0.5511, 0.4316, 0.6094,
    ],
    &[
        0.3729, 0.4862, 0.4993, 0.3675, 0.6722, 0.646, 0.4536, 0.5772, 0.5379, 0.2386, 0.525,
        0.4939, 0.5083, 0.3923,
    ],
];
const RIGHT: &[&[usize]] = &[&[3], &[2, 6], &[7, 11], &[0, 2], &[9], &[10], &[13], &[11, 12]];
/// Counted from 1.
const RANKS: [usize; 8] = [6, 1, 3, 3, 13, 14, 2, 6];

#[test]
fn ranks_and_recall_are_those_of_torchmetrics() {
    let ranks = retrieval::ranks(&matrix(PAIRS), &lists(RIGHT)).unwrap();
    assert_eq!(ranks, RANKS.map(|rank| rank - 1));
    let found = retrieval::recall(&matrix(PAIRS), &lists(RIGHT)).unwrap();
    near(found.r1, 12.5);
    near(found.r5, 50.0);
    near(found.r10, 75.0);
    near(found.median_rank, 4.5);
    near(found.mean_rank, 6.0);
}

/// Video, class, begin, end.
const TRUTH: [(usize, usize, f64, f64); 12] = [
    (0, 0, 9.99, 14.0),
    (0, 0, 12.44, 15.28),
    (1, 0, 16.33, 20.08),
    (1, 0, 4.71, 9.72),
    (0, 0, 2.95, 7.32),
    (1, 0, 9.38, 14.91),
    (2, 1, 1.09, 2.26),
    (2, 1, 0.49, 5.69),
    (2, 1, 0.54, 5.57),
    (2, 1, 17.06, 19.15),
    (2, 1, 14.93, 16.13),
    (0, 1, 13.23, 17.69),
];
/// Video, class, begin, end, score; many scores are equal.
const FOUND: [(usize, usize, f64, f64, f64); 24] = [
    (0, 0, 9.68, 13.82, 0.9),
    (0, 0, 10.33, 13.97, 0.9),
    (0, 0, 12.38, 15.69, 0.3),
    (0, 0, 12.21, 15.56, 0.7),
    (1, 0, 15.81, 19.17, 0.6),
    (1, 0, 15.93, 18.93, 0.6),
    (1, 0, 3.81, 9.74, 0.5),
    (1, 0, 4.57, 9.27, 0.9),
    (0, 0, 3.58, 7.2, 0.2),
    (0, 0, 3.16, 7.47, 0.3),
    (1, 0, 8.88, 13.87, 0.0),
    (1, 0, 9.7, 14.47, 0.5),
    (2, 1, 1.66, 1.76, 0.3),
    (2, 1, 1.45, 1.55, 0.2),
    (2, 1, 0.23, 5.68, 0.7),
    (2, 1, 1.12, 5.16, 0.6),
    (2, 1, 1.19, 5.93, 0.0),
    (2, 1, 0.92, 6.33, 0.5),
    (2, 1, 17.34, 19.09, 1.0),
    (2, 1, 17.81, 18.39, 0.4),
    (2, 1, 14.14, 16.28, 0.2),
    (2, 1, 16.14, 16.24, 0.5),
    (0, 1, 13.48, 17.24, 0.1),
    (0, 1, 13.22, 17.57, 0.4),
];
const FOUND_PRECISION: [[f64; 5]; 2] = [
    [83.01587301587301, 83.01587301587301, 83.01587301587301, 83.01587301587301, 64.61640211640211],
    [70.37037037037037, 70.37037037037037, 70.37037037037037, 61.11111111111111, 61.11111111111111],
];

#[test]
fn detection_is_that_of_activitynet() {
    let segment = |video: usize, label: usize, start: f64, end: f64| Segment {
        video: video.to_string(),
        label: label.to_string(),
        span: [start, end],
    };
    let truth = TRUTH.map(|(video, label, start, end)| segment(video, label, start, end));
    let predictions = FOUND.map(|(video, label, start, end, score)| Prediction {
        segment: segment(video, label, start, end),
        score,
    });
    let found = detection::evaluate(&truth, &predictions, &THUMOS14).unwrap();
    assert_eq!((found.duplicates, found.ignored), (0, 0));
    for (class, expected) in found.classes.iter().zip(FOUND_PRECISION) {
        for (found, expected) in class.precision.iter().zip(expected) {
            near(*found, expected);
        }
    }
    near(found.average, 73.00132275132275);
}

/// Two discs (row, column, radius each), the tolerance in pixels, J, F; some leave the frame of 24 x 40.
const DISCS: [([i32; 6], usize, f64, f64); 4] = [
    ([10, 15, 7, 12, 16, 6], 1, 0.6172839506172839, 0.5451348182883938),
    ([10, 15, 7, 10, 18, 8], 2, 0.5799086757990868, 0.6528189910979229),
    ([4, 35, 8, 5, 33, 8], 1, 0.8, 0.5141776937618148),
    ([20, 3, 6, 15, 6, 7], 3, 0.3333333333333333, 0.34210526315789475),
];

#[test]
fn masks_score_as_in_davis() {
    let disc = |row: i32, column: i32, radius: i32| {
        let place = |at: i32| ((at / 40 - row).pow(2), (at % 40 - column).pow(2));
        let inside = |at: i32| place(at).0 + place(at).1 <= radius * radius;
        Bitmap::new("mask", [24, 40], (0..24 * 40).map(inside).collect()).unwrap()
    };
    for ([r, c, radius, r2, c2, radius2], tolerance, j, f) in DISCS {
        let (a, b) = (disc(r, c, radius), disc(r2, c2, radius2));
        near(tracking::mask_iou(&a, &b).unwrap(), j);
        near(tracking::boundary_f(&a, &b, tolerance).unwrap(), f);
    }
}

#[test]
fn boxes_overlap_as_in_torchvision() {
    for (a, b, expected) in [
        ([0.0, 0.0, 10.0, 8.0], [2.0, 3.0, 11.0, 9.0], 0.425531914893617),
        ([2.5, 1.5, 7.25, 9.0], [2.5, 1.5, 7.25, 9.0], 1.0),
        ([-3.0, -2.0, 1.0, 4.5], [0.5, -5.0, 8.0, 0.25], 0.017509727626459144),
    ] {
        near(tracking::box_iou(a, b), expected);
    }
}
