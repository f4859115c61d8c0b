//! Which keys a query sees.

use burn::tensor::{Int, Tensor, TensorData};

use super::spans::{self, Spans};

/// Which keys a query sees, and what its scores get added; the default is all and nothing.
#[derive(Debug, Clone, Default)]
pub struct AttentionMask {
    /// Runs of keys.
    pub spans: Option<Spans>,
    /// Added to the scaled scores: `[B or 1, heads or 1, queries or 1, keys]`.
    pub bias: Option<Tensor<4>>,
}

impl AttentionMask {
    /// Runs alone.
    pub fn of(spans: Spans) -> Self {
        Self { spans: Some(spans), bias: None }
    }

    /// No query sees a later key.
    pub fn causal(tokens: usize) -> Self {
        Self::of(Spans::all(tokens, tokens).causal())
    }

    /// What [`AttentionMask::and_keys`] gives when nothing else is hidden.
    pub fn of_keys(present: &Tensor<2, Int>, queries: usize) -> Self {
        let keys = present.dims()[1];
        Self::of(Spans::all(queries, keys)).and_keys(present)
    }

    /// And in each sample only the keys where `present`, `[B, keys]`, is not 0. Rows without gaps
    /// become runs; otherwise a bias hides the others.
    pub fn and_keys(self, present: &Tensor<2, Int>) -> Self {
        let [samples, keys] = present.dims();
        let data: Vec<i64> = present.to_data().iter::<i64>().collect();
        if data.iter().all(|there| *there != 0) {
            return self;
        }
        let Self { spans, bias } = self;
        let queries = spans.as_ref().map_or(keys, |spans| spans.dims()[0]);
        if let Some(runs) = spans::runs(&data, keys) {
            let spans = spans.unwrap_or_else(|| Spans::all(queries, keys));
            return Self { spans: Some(spans.within(&runs)), bias };
        }
        let hidden = data.iter().map(|there| if *there == 0 { f32::MIN / 2.0 } else { 0.0 });
        let data = TensorData::new(hidden.collect::<Vec<_>>(), [samples, 1, 1, keys]);
        let hidden = Tensor::<4>::from_data(data, &present.device().inner());
        let bias = Some(match bias {
            Some(bias) => bias + hidden,
            None => hidden,
        });
        Self { spans, bias }
    }

    /// As numbers to add, `[B or 1, .., queries, keys]`: 0, the bias, or a number so small that the
    /// softmax gives 0.
    pub(crate) fn added(&self, like: &Tensor<4>) -> Option<Tensor<4>> {
        let hidden = self.spans.as_ref().map(|spans| {
            let [queries, keys] = spans.dims();
            let rows = (0..spans.samples()).flat_map(|s| (0..queries).map(move |q| (s, q)));
            let values = rows.flat_map(|(sample, query)| {
                let [first, end] = spans.of(sample, query);
                let one = move |key| if key < first || key >= end { f32::MIN / 2.0 } else { 0.0 };
                (0..keys).map(one)
            });
            let shape = [spans.samples(), 1, queries, keys];
            let data = TensorData::new(values.collect::<Vec<_>>(), shape);
            Tensor::<4>::from_data(data, &like.device().inner())
        });
        match (hidden, self.bias.clone()) {
            (Some(hidden), Some(bias)) => Some(hidden + bias),
            (hidden, bias) => hidden.or(bias),
        }
    }
}
