//! Which keys a query sees: for each query one run of them.
//!
//! Causal, local, padded and packed attention are all runs, and runs intersect. A kernel skips what
//! lies outside, where a matrix of zeros and ones would be as large as the scores.

use std::sync::Arc;

/// The first key and the one after the last, for each query of each sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans {
    runs: Arc<Vec<[u32; 2]>>,
    queries: usize,
    keys: usize,
    causal: bool,
}

impl Spans {
    /// Every query sees every key. Queries stand at the last positions of the keys, as they do when
    /// earlier keys come from a cache.
    pub fn all(queries: usize, keys: usize) -> Self {
        let runs = Arc::new(vec![[0, keys as u32]; queries]);
        Self { runs, queries, keys, causal: false }
    }

    /// And none that comes after it.
    pub fn causal(self) -> Self {
        let alone = queries_see_all(&self);
        let causal = alone && self.queries == self.keys;
        Self { causal, ..self.cut(|position| [0, position + 1]) }
    }

    /// And none that is more than `before` keys earlier or `after` keys later.
    pub fn near(self, before: usize, after: usize) -> Self {
        self.cut(|position| [position.saturating_sub(before), position + after + 1])
    }

    /// And in each sample none outside the given run, as in padded batches.
    pub fn within(self, samples: &[[usize; 2]]) -> Self {
        let rows = |sample: usize| self.rows(sample).iter().map(move |run| (sample, *run));
        let both = |(sample, [first, end]): (usize, [u32; 2])| {
            let [from, to] = samples[sample].map(|key| key as u32);
            [first.max(from), end.min(to)]
        };
        let runs = (0..samples.len()).flat_map(rows).map(both).collect();
        Self { runs: Arc::new(runs), causal: false, ..self }
    }

    /// And none of another sequence, where each sample is a row of sequences of these lengths.
    /// Queries and keys are the same tokens; tokens after the last sequence are one more.
    pub fn packed(self, lengths: &[Vec<usize>]) -> Self {
        let mut runs = Vec::with_capacity(lengths.len() * self.queries);
        for (sample, lengths) in lengths.iter().enumerate() {
            let (mut first, mut end, mut next) = (0, 0, lengths.iter());
            for (query, [from, to]) in self.rows(sample).iter().enumerate() {
                while query >= end {
                    first = end;
                    end = next.next().map_or(self.keys, |length| (end + length).min(self.keys));
                }
                runs.push([(*from).max(first as u32), (*to).min(end as u32)]);
            }
        }
        Self { runs: Arc::new(runs), causal: false, ..self }
    }

    fn cut(self, run: impl Fn(usize) -> [usize; 2]) -> Self {
        let first = self.keys - self.queries.min(self.keys);
        let both = |(i, [from, to]): (usize, &[u32; 2])| {
            let [first, end] = run(first + i % self.queries);
            [(*from).max(first as u32), (*to).min(end as u32)]
        };
        let runs = self.runs.iter().enumerate().map(both).collect();
        Self { runs: Arc::new(runs), causal: false, ..self }
    }

    /// Runs of the queries of a sample.
    fn rows(&self, sample: usize) -> &[[u32; 2]] {
        let sample = sample % self.samples();
        &self.runs[sample * self.queries..(sample + 1) * self.queries]
    }

    /// What a query of a sample sees. One that would see nothing sees one key: its output is
    /// meaningless, but finite.
    pub fn of(&self, sample: usize, query: usize) -> [usize; 2] {
        let [first, end] = self.rows(sample)[query].map(|key| key as usize);
        if first < end {
            [first, end]
        } else {
            [first.min(self.keys - 1), first.min(self.keys - 1) + 1]
        }
    }

    /// The smallest run that holds those of some queries of a sample.
    pub(crate) fn hull(&self, sample: usize, queries: std::ops::Range<usize>) -> [usize; 2] {
        let mut hull = [usize::MAX, 0];
        for query in queries {
            let [first, end] = self.of(sample, query);
            hull = [hull[0].min(first), hull[1].max(end)];
        }
        hull
    }

    /// Number of samples that differ: 1 when all are alike.
    pub fn samples(&self) -> usize {
        (self.runs.len() / self.queries.max(1)).max(1)
    }

    /// Queries and keys.
    pub fn dims(&self) -> [usize; 2] {
        [self.queries, self.keys]
    }

    /// Whether a query sees exactly the keys up to its own.
    pub fn is_causal(&self) -> bool {
        self.causal
    }
}

fn queries_see_all(spans: &Spans) -> bool {
    spans.runs.iter().all(|run| *run == [0, spans.keys as u32])
}

/// The run of keys that are there, for each row of a mask `[B, N]` of zeros and ones; none when a
/// row has a gap.
pub fn runs(mask: &[i64], keys: usize) -> Option<Vec<[usize; 2]>> {
    let run = |row: &[i64]| {
        let first = row.iter().position(|there| *there != 0).unwrap_or(0);
        let count = row.iter().filter(|there| **there != 0).count();
        let whole = row[first..first + count].iter().all(|there| *there != 0);
        whole.then_some([first, first + count])
    };
    mask.chunks(keys.max(1)).map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(spans: &Spans, sample: usize) -> Vec<[usize; 2]> {
        (0..spans.queries).map(|query| spans.of(sample, query)).collect()
    }

    #[test]
    fn runs_intersect() {
        let spans = Spans::all(4, 4).causal();
        assert!(spans.is_causal());
        assert_eq!(seen(&spans, 0), [[0, 1], [0, 2], [0, 3], [0, 4]]);
        assert_eq!(seen(&spans.clone().near(1, 9), 5), [[0, 1], [0, 2], [1, 3], [2, 4]]);
        let padded = spans.within(&[[0, 2], [1, 4]]);
        assert!(!padded.is_causal());
        assert_eq!(seen(&padded, 0), [[0, 1], [0, 2], [0, 2], [0, 2]]);
        assert_eq!(seen(&padded, 1), [[1, 2], [1, 2], [1, 3], [1, 4]]);
        assert_eq!(padded.hull(1, 1..3), [1, 3]);
    }

    #[test]
    fn a_query_after_cached_keys_sees_them() {
        assert_eq!(seen(&Spans::all(1, 5).causal(), 0), [[0, 5]]);
        assert_eq!(seen(&Spans::all(2, 5).causal().near(1, 0), 0), [[2, 4], [3, 5]]);
    }

    #[test]
    fn sequences_in_a_row_do_not_see_each_other() {
        let packed = Spans::all(5, 5).packed(&[vec![2, 2], vec![5]]);
        assert_eq!(seen(&packed, 0), [[0, 2], [0, 2], [2, 4], [2, 4], [4, 5]]);
        assert_eq!(seen(&packed, 1), [[0, 5]; 5]);
    }

    #[test]
    fn a_padding_mask_is_runs_unless_it_has_gaps() {
        assert_eq!(runs(&[1, 1, 0, 0, 1, 1], 3), Some(vec![[0, 2], [1, 3]]));
        assert_eq!(runs(&[0, 0], 2), Some(vec![[0, 0]]));
        assert_eq!(runs(&[1, 0, 1], 3), None);
    }
}
