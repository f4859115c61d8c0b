//! Retrieval: ranks of the right items, recall, dual softmax, re-ranking.
//!
//! A matrix has a row per query and a column per item. Items are ordered by a stable ascending sort of
//! the scores, reversed: of equal scores, the item with the higher index comes first. Several right items:
//! the best ranked counts. Source: InternVideo2's retrieval evaluation.

use super::{Error, Matrix, descending, length, mean, median, percent};

/// Score of a pair that re-ranking did not look at.
pub const LEFT_OUT: f64 = -100.0;

/// How well queries find their items.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recall {
    /// Percentage of queries with a right item at the first place.
    pub r1: f64,
    /// The same among the first 5.
    pub r5: f64,
    /// The same among the first 10.
    pub r10: f64,
    /// Mean of the three.
    pub mean: f64,
    /// Median rank, counted from 1.
    pub median_rank: f64,
    /// Mean rank, counted from 1.
    pub mean_rank: f64,
    /// Queries.
    pub queries: usize,
}

/// Rank of each query's best right item, counted from 0. `right` lists the right items of each query.
pub fn ranks(scores: &Matrix, right: &[Vec<usize>]) -> Result<Vec<usize>, Error> {
    check(scores, right)?;
    let mut place = vec![0; scores.columns()];
    let ranks = scores.iter().zip(right).map(|(row, right)| {
        for (rank, item) in descending(row).into_iter().enumerate() {
            place[item] = rank;
        }
        right.iter().map(|&item| place[item]).min().unwrap_or_default()
    });
    Ok(ranks.collect())
}

fn check(scores: &Matrix, right: &[Vec<usize>]) -> Result<(), Error> {
    length("right", right, scores.rows(), "one per row of the scores")?;
    for (query, items) in right.iter().enumerate() {
        super::some(&format!("right[{query}]"), items)?;
        if let Some(at) = items.iter().position(|&item| item >= scores.columns()) {
            let place = format!("right[{query}][{at}]");
            return Err(Error::index(place, items[at], scores.columns()));
        }
    }
    Ok(())
}

/// Recall from ranks that count from 0.
pub fn recall_of(ranks: &[usize]) -> Result<Recall, Error> {
    super::some("ranks", ranks)?;
    let within = |k: usize| percent(ranks.iter().filter(|&&rank| rank < k).count(), ranks.len());
    let [r1, r5, r10] = [1, 5, 10].map(within);
    let from_one: Vec<f64> = ranks.iter().map(|&rank| rank as f64 + 1.0).collect();
    Ok(Recall {
        r1,
        r5,
        r10,
        mean: (r1 + r5 + r10) / 3.0,
        median_rank: median(&from_one),
        mean_rank: mean(from_one.iter().copied()),
        queries: ranks.len(),
    })
}

/// Recall of queries in rows.
pub fn recall(scores: &Matrix, right: &[Vec<usize>]) -> Result<Recall, Error> {
    recall_of(&ranks(scores, right)?)
}

/// `r_mean`: mean of the mean recalls of both directions.
pub fn r_mean(there: &Recall, back: &Recall) -> f64 {
    f64::midpoint(there.mean, back.mean)
}

/// Turns references around: the right queries of each item, from the right items of each query. `at`
/// names them in errors. An item may end up with no query.
pub fn inverted(at: &str, right: &[Vec<usize>], items: usize) -> Result<Vec<Vec<usize>>, Error> {
    let mut back = vec![Vec::new(); items];
    for (query, of_query) in right.iter().enumerate() {
        for (place, &item) in of_query.iter().enumerate() {
            let wrong = || Error::index(format!("{at}[{query}][{place}]"), item, items);
            let list = back.get_mut(item).ok_or_else(wrong)?;
            if list.last() != Some(&query) {
                list.push(query);
            }
        }
    }
    Ok(back)
}

/// Dual softmax: S' = S · softmax(scale · S), where the softmax is over queries (each column sums to 1).
/// InternVideo2 uses cosines and a scale of 1, which is nearly flat.
pub fn dual_softmax(scores: &Matrix, scale: f64) -> Result<Matrix, Error> {
    super::finite(|| "scale".to_owned(), scale)?;
    let turned = scores.transposed().map_rows(|column| {
        let share = softmax(&column.iter().map(|score| score * scale).collect::<Vec<_>>());
        column.iter().zip(share).map(|(score, share)| score * share).collect()
    });
    Ok(turned.transposed())
}

/// Softmax of finite numbers. Products that overflow count as the largest numbers there are.
pub(super) fn softmax(values: &[f64]) -> Vec<f64> {
    let clamped = |value: &f64| value.clamp(f64::MIN, f64::MAX);
    let top = values.iter().map(clamped).fold(f64::MIN, f64::max);
    let powers: Vec<f64> = values.iter().map(|value| (clamped(value) - top).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// The scores of `second` for the `k` best items of each query by `first`; `LEFT_OUT` for all others.
/// Of equal scores of `first`, those with the higher index are taken first.
pub fn rerank(first: &Matrix, second: &Matrix, k: usize) -> Result<Matrix, Error> {
    if k == 0 {
        return Err(Error::range("k", k, "at least 1"));
    }
    for (found, wanted) in [(second.rows, first.rows), (second.columns, first.columns)] {
        if found != wanted {
            let (at, reason) = ("scores".to_owned(), "rows and columns as in the first scores");
            return Err(Error::Length { at, found, wanted, reason });
        }
    }
    let mut values = vec![LEFT_OUT; second.values.len()];
    for (query, row) in first.iter().enumerate() {
        for item in descending(row).into_iter().take(k) {
            values[query * first.columns + item] = second.row(query)[item];
        }
    }
    Ok(Matrix { values, ..*second })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: &[&[f64]]) -> Matrix {
        let rows: Vec<Vec<f64>> = rows.iter().map(|row| row.to_vec()).collect();
        Matrix::from_rows("scores", &rows).unwrap()
    }

    #[test]
    fn the_best_right_item_counts() {
        let scores = matrix(&[&[0.9, 0.1, 0.5], &[0.2, 0.8, 0.3], &[0.1, 0.7, 0.6]]);
        let right = [vec![0], vec![0, 2], vec![0]];
        assert_eq!(ranks(&scores, &right).unwrap(), [0, 1, 2]);
        let found = recall(&scores, &right).unwrap();
        assert_eq!(
            (found.r1, found.r5, found.median_rank, found.mean_rank),
            (100.0 / 3.0, 100.0, 2.0, 2.0)
        );
        assert_eq!(found.mean, (100.0 / 3.0 + 200.0) / 3.0);
    }

    #[test]
    fn of_equal_scores_the_higher_index_is_first() {
        let scores = matrix(&[&[0.5, 0.5, 0.5, 0.1]]);
        let rank = |item| ranks(&scores, &[vec![item]]).unwrap()[0];
        assert_eq!([0, 1, 2, 3].map(rank), [2, 1, 0, 3]);
    }

    #[test]
    fn wrong_references_are_named() {
        let scores = matrix(&[&[0.5, 0.4], &[0.1, 0.2]]);
        let error = |right: &[Vec<usize>]| ranks(&scores, right).unwrap_err().to_string();
        let few = "`right` has 1 entries, but must have 2: one per row of the scores";
        assert_eq!(error(&[vec![0]]), few);
        assert_eq!(error(&[vec![0], vec![]]), "`right[1]` is empty; give at least one");
        assert_eq!(error(&[vec![0], vec![1, 2]]), "`right[1][1]` is 2, but must be below 2");
        assert!(inverted("right", &[vec![0], vec![2]], 2).is_err());
        assert!(recall_of(&[]).is_err());
    }

    #[test]
    fn references_turn_around() {
        let back = inverted("right", &[vec![0, 1], vec![2, 2], vec![1]], 4).unwrap();
        assert_eq!(back, [vec![0], vec![0, 2], vec![1], vec![]]);
    }

    #[test]
    fn dual_softmax_is_over_queries() {
        let scores = matrix(&[&[1.0, 0.0], &[1.0, 2.0]]);
        let found = dual_softmax(&scores, 1.0).unwrap();
        let e2 = 2.0_f64.exp();
        assert_eq!(found.row(0), [0.5, 0.0]);
        assert!((found.row(1)[1] - 2.0 * e2 / (1.0 + e2)).abs() < 1e-15);
        // A query that is near to everything no longer wins everywhere.
        let hub = matrix(&[&[0.8, 0.7], &[0.9, 0.1]]);
        let right = [vec![1], vec![0]];
        assert_eq!(ranks(&hub, &right).unwrap(), [1, 0]);
        assert_eq!(ranks(&dual_softmax(&hub, 10.0).unwrap(), &right).unwrap(), [0, 0]);
        assert!(dual_softmax(&hub, f64::INFINITY).is_err());
        let huge = dual_softmax(&matrix(&[&[1e300], &[-1e300]]), 1e300).unwrap();
        assert_eq!((huge.row(0), huge.row(1)), (&[1e300][..], &[-0.0][..]));
    }

    #[test]
    fn only_the_best_are_ranked_again() {
        let first = matrix(&[&[0.9, 0.8, 0.1], &[0.1, 0.1, 0.1]]);
        let second = matrix(&[&[1.0, 2.0, 9.0], &[3.0, 4.0, 5.0]]);
        let found = rerank(&first, &second, 2).unwrap();
        assert_eq!(found.row(0), [1.0, 2.0, LEFT_OUT]);
        assert_eq!(found.row(1), [LEFT_OUT, 4.0, 5.0]);
        assert_eq!(rerank(&first, &second, 7).unwrap(), second);
        assert!(rerank(&first, &second, 0).is_err());
        assert!(rerank(&first, &matrix(&[&[1.0]]), 1).is_err());
    }
}
