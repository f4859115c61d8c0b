//! Classification: views, prompts, top-k, accuracy per class, average precision of many labels.
//!
//! A matrix has a row per clip and a column per class. A label is among the k largest when fewer than k
//! classes come before it: those with larger scores, and of equal scores those with the lower index.

use super::retrieval::softmax as softmax_of;
use super::{Error, Matrix, descending, length, mean, percent};

/// Scores to probabilities over classes, per row.
pub fn softmax(scores: &Matrix) -> Matrix {
    scores.map_rows(softmax_of)
}

/// Scores to a probability for each class.
pub fn sigmoid(scores: &Matrix) -> Matrix {
    scores.map_rows(|row| row.iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect())
}

/// Groups indices by the number that `of` gives each; every number up to the largest must occur.
fn groups(at: &str, of: &[usize]) -> Result<Vec<Vec<usize>>, Error> {
    let mut found: Vec<Vec<usize>> = Vec::new();
    for (index, &group) in of.iter().enumerate() {
        // A number without gaps below it is smaller than the count of entries.
        if group >= of.len() {
            return Err(Error::index(format!("{at}[{index}]"), group, of.len()));
        }
        if group >= found.len() {
            found.resize(group + 1, Vec::new());
        }
        found[group].push(index);
    }
    match found.iter().position(Vec::is_empty) {
        Some(group) => Err(Error::range(at, format!("without {group}"), "each number from 0 on")),
        None => Ok(found),
    }
}

/// Mean over the rows of each video. `video` says which video a row is a view of.
pub fn mean_over_views(scores: &Matrix, video: &[usize]) -> Result<Matrix, Error> {
    length("video", video, scores.rows(), "one per row of the scores")?;
    let groups = groups("video", video)?;
    let each = |c: usize, rows: &[usize]| mean(rows.iter().map(|&row| scores.row(row)[c]));
    let values = groups.iter().flat_map(|rows| (0..scores.columns).map(move |c| each(c, rows)));
    let values = values.collect();
    Matrix::new("scores", groups.len(), scores.columns, values)
}

/// Mean over the columns of each class. `class` says which class a column is a prompt of: the zero-shot
/// score of a class is its mean similarity over prompt templates.
pub fn mean_over_prompts(scores: &Matrix, class: &[usize]) -> Result<Matrix, Error> {
    length("class", class, scores.columns(), "one per column of the scores")?;
    let groups = groups("class", class)?;
    let each = |row: &[f64], columns: &[usize]| mean(columns.iter().map(|&column| row[column]));
    let values = scores.iter().flat_map(|row| groups.iter().map(move |of| each(row, of)));
    let values = values.collect();
    Matrix::new("scores", scores.rows, groups.len(), values)
}

/// Classes before the label.
fn rank(row: &[f64], label: usize) -> usize {
    let before = |(class, &score): (usize, &f64)| {
        score > row[label] || (score == row[label] && class < label)
    };
    row.iter().enumerate().filter(|one| before(*one)).count()
}

fn check(scores: &Matrix, labels: &[usize]) -> Result<(), Error> {
    length("labels", labels, scores.rows(), "one per clip")?;
    match labels.iter().position(|&label| label >= scores.columns()) {
        Some(at) => Err(Error::index(format!("labels[{at}]"), labels[at], scores.columns())),
        None => Ok(()),
    }
}

/// Percentage of clips whose label is among the `k` largest.
pub fn top(scores: &Matrix, labels: &[usize], k: usize) -> Result<f64, Error> {
    check(scores, labels)?;
    if k == 0 {
        return Err(Error::range("k", k, "at least 1"));
    }
    let pairs = scores.iter().zip(labels);
    Ok(percent(pairs.filter(|(row, label)| rank(row, **label) < k).count(), labels.len()))
}

/// Accuracy of each class in percent; none for a class without clips.
pub fn per_class(scores: &Matrix, labels: &[usize]) -> Result<Vec<Option<f64>>, Error> {
    check(scores, labels)?;
    let mut counts = vec![(0, 0); scores.columns()];
    for (row, &label) in scores.iter().zip(labels) {
        counts[label].0 += usize::from(rank(row, label) == 0);
        counts[label].1 += 1;
    }
    Ok(counts.into_iter().map(|(hits, of)| (of > 0).then(|| percent(hits, of))).collect())
}

/// Mean of what is there.
pub fn mean_of_present(values: &[Option<f64>]) -> f64 {
    mean(values.iter().flatten().copied())
}

/// Average precision, between 0 and 1: sum over distinct scores, from the largest, of the gain in recall
/// times the precision there. Equal scores are one threshold, so their order does not matter. None
/// without a positive.
pub fn average_precision(scores: &[f64], positive: &[bool]) -> Result<Option<f64>, Error> {
    length("positive", positive, scores.len(), "one per score")?;
    for (at, &score) in scores.iter().enumerate() {
        super::finite(|| format!("scores[{at}]"), score)?;
    }
    let all = positive.iter().filter(|&&yes| yes).count();
    if all == 0 {
        return Ok(None);
    }
    let order = descending(scores);
    let (mut seen, mut hits, mut sum) = (0_usize, 0_usize, 0.0);
    for equal in order.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let new = equal.iter().filter(|&&index| positive[index]).count();
        seen += equal.len();
        hits += new;
        sum += new as f64 / all as f64 * (hits as f64 / seen as f64);
    }
    Ok(Some(sum))
}

/// Average precision of each class in percent, where a clip has any number of labels; none for a class
/// without clips. Charades' mAP is the mean over those that are there.
pub fn per_class_precision(
    scores: &Matrix,
    labels: &[Vec<usize>],
) -> Result<Vec<Option<f64>>, Error> {
    length("labels", labels, scores.rows(), "one per clip")?;
    let mut positive = vec![vec![false; scores.rows()]; scores.columns()];
    for (clip, of_clip) in labels.iter().enumerate() {
        for (at, &label) in of_clip.iter().enumerate() {
            let place = || format!("labels[{clip}][{at}]");
            let column = positive.get_mut(label);
            column.ok_or_else(|| Error::index(place(), label, scores.columns()))?[clip] = true;
        }
    }
    if labels.iter().all(Vec::is_empty) {
        return Err(Error::range(
            "labels",
            "without any label",
            "a list with labels of some clips",
        ));
    }
    let columns = scores.transposed();
    let each = columns.iter().zip(&positive);
    each.map(|(column, positive)| Ok(average_precision(column, positive)?.map(|ap| 100.0 * ap)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: &[&[f64]]) -> Matrix {
        let rows: Vec<Vec<f64>> = rows.iter().map(|row| row.to_vec()).collect();
        Matrix::from_rows("scores", &rows).unwrap()
    }

    #[test]
    fn the_lower_of_equal_classes_is_first() {
        let scores = matrix(&[&[0.5, 0.5, 0.1], &[0.5, 0.5, 0.1], &[0.1, 0.2, 0.3]]);
        let labels = [0, 1, 0];
        assert_eq!(top(&scores, &labels, 1).unwrap(), 100.0 / 3.0);
        assert_eq!(top(&scores, &labels, 2).unwrap(), 200.0 / 3.0);
        assert_eq!(top(&scores, &labels, 5).unwrap(), 100.0);
        assert_eq!(per_class(&scores, &labels).unwrap(), [Some(50.0), Some(0.0), None]);
        assert_eq!(mean_of_present(&[Some(50.0), Some(0.0), None]), 25.0);
    }

    #[test]
    fn views_are_averaged_as_probabilities() {
        // As logits class 0 wins with 5 to 4; as probabilities class 1 wins twice of three.
        let scores = matrix(&[&[5.0, 0.0], &[0.0, 2.0], &[0.0, 2.0], &[1.0, 3.0]]);
        let video = [0, 0, 0, 1];
        let found = mean_over_views(&softmax(&scores), &video).unwrap();
        assert_eq!((found.rows(), top(&found, &[1, 1], 1).unwrap()), (2, 100.0));
        let plain = mean_over_views(&scores, &video).unwrap();
        assert_eq!(top(&plain, &[1, 1], 1).unwrap(), 50.0);
        let gap = mean_over_views(&scores, &[0, 0, 2, 2]).unwrap_err().to_string();
        assert_eq!(gap, "`video` is without 1, but must be each number from 0 on");
        let far = mean_over_views(&scores, &[0, 0, 0, usize::MAX]).unwrap_err().to_string();
        assert!(far.starts_with("`video[3]` is "), "{far}");
    }

    #[test]
    fn prompts_of_a_class_are_averaged() {
        let scores = matrix(&[&[0.9, 0.1, 0.6, 0.6]]);
        let found = mean_over_prompts(&scores, &[0, 0, 1, 1]).unwrap();
        assert_eq!(found.row(0), [0.5, 0.6]);
        assert!(mean_over_prompts(&scores, &[0, 0, 1]).is_err());
    }

    #[test]
    fn average_precision_of_a_hand_made_list() {
        // Hits at places 1 and 3: (1 + 2/3) / 2.
        let found = average_precision(&[0.9, 0.8, 0.7, 0.1], &[true, false, true, false]).unwrap();
        assert!((found.unwrap() - (1.0 + 2.0 / 3.0) / 2.0).abs() < 1e-15);
        // All equal: the share of positives.
        assert_eq!(average_precision(&[0.5; 4], &[true, false, false, false]).unwrap(), Some(0.25));
        assert_eq!(average_precision(&[0.5], &[false]).unwrap(), None);
        assert!(average_precision(&[f64::NAN], &[true]).is_err());
    }

    #[test]
    fn clips_may_have_several_labels_or_none() {
        let scores = matrix(&[&[0.9, 0.1, 0.0], &[0.8, 0.9, 0.0], &[0.1, 0.2, 0.0]]);
        let found = per_class_precision(&scores, &[vec![0], vec![1, 1], vec![]]).unwrap();
        assert_eq!(found, [Some(100.0), Some(100.0), None]);
        let error = per_class_precision(&scores, &[vec![], vec![0, 3], vec![]]).unwrap_err();
        assert_eq!(error.to_string(), "`labels[1][1]` is 3, but must be below 3");
        assert!(per_class_precision(&scores, &[vec![], vec![], vec![]]).is_err());
        let error = top(&scores, &[0, 1, 5], 1).unwrap_err().to_string();
        assert_eq!(error, "`labels[2]` is 5, but must be below 3");
    }
}
