//! Rows of another network in the places of placeholder words.

use burn::tensor::{Int, Tensor, TensorData};
use schemas::node::NodeError;

use super::labelled::IGNORED;
use super::padding::rows;

/// Which places of a batch of texts hold a placeholder.
#[derive(Debug, Clone)]
pub struct Places {
    /// For each place of each sample, the row that stands there.
    at: Vec<Vec<Option<usize>>>,
}

impl Places {
    /// The places of `placeholder` in `[B, L]`; each sample must have `count` of them.
    pub fn of(ids: &Tensor<2, Int>, placeholder: i64, count: usize) -> Result<Self, NodeError> {
        let mut at = Vec::new();
        for (sample, words) in rows(ids).iter().enumerate() {
            let mut found = 0;
            let one = |word: &i64| {
                (*word == placeholder).then(|| {
                    found += 1;
                    found - 1
                })
            };
            at.push(words.iter().map(one).collect());
            if found != count {
                let reason = format!(
                    "sample {sample} has {found} words {placeholder} for {count} rows of `visual`; \
                     write as many placeholders as there are rows"
                );
                return Err(NodeError::Data { what: "port `ids`".to_owned(), reason });
            }
        }
        Ok(Self { at })
    }

    /// The words `[B, L]` with 0 for each placeholder, which may be no word of the vocabulary.
    pub fn words(&self, ids: Tensor<2, Int>) -> Tensor<2, Int> {
        self.replaced(ids, 0)
    }

    /// The labels `[B, L]` without those of placeholders.
    pub fn unlabelled(&self, labels: Tensor<2, Int>) -> Tensor<2, Int> {
        self.replaced(labels, IGNORED)
    }

    /// Tokens `[B, L, D]` with the rows `[B, Q, D]` in their places; gradients flow to both.
    pub fn splice(&self, x: Tensor<3>, visual: Tensor<3>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let rows = visual.dims()[1];
        let from = |sample: usize| {
            let one = move |(place, row): (usize, &Option<usize>)| match row {
                None => (sample * tokens + place) as i64,
                Some(row) => (batch * tokens + sample * rows + row) as i64,
            };
            self.at[sample].iter().enumerate().map(one)
        };
        let from: Vec<i64> = (0..batch).flat_map(from).collect();
        let from = Tensor::<1, Int>::from_data(from.as_slice(), &x.device().inner());
        let visual = visual.cast(x.dtype()).reshape([batch * rows, width]);
        let all = Tensor::cat(vec![x.reshape([batch * tokens, width]), visual], 0);
        all.select(0, from).reshape([batch, tokens, width])
    }

    fn replaced(&self, ids: Tensor<2, Int>, by: i64) -> Tensor<2, Int> {
        let held = rows(&ids).into_iter().flatten();
        let places = self.at.iter().flatten();
        let one = |(id, row): (i64, &Option<usize>)| if row.is_some() { by } else { id };
        let values: Vec<i64> = held.zip(places).map(one).collect();
        Tensor::from_data(TensorData::new(values, ids.dims()), &ids.device().inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn ids() -> Tensor<2, Int> {
        Tensor::from_data([[1, 9, 9, 2], [9, 3, 4, 9]], &Device::flex())
    }

    #[test]
    fn rows_stand_where_the_placeholders_were_and_get_their_gradients() {
        let device = Device::flex().autodiff();
        let places = Places::of(&ids(), 9, 2).unwrap();
        let x = Tensor::<3>::zeros([2, 4, 3], &device).require_grad();
        let visual = Tensor::<3>::from_data([[[1.0; 3], [2.0; 3]], [[3.0; 3], [4.0; 3]]], &device);
        let visual = visual.require_grad();
        let out = places.splice(x.clone(), visual.clone());
        let first: Vec<f32> =
            out.clone().inner().slice_dim(2, 0..1).into_data().try_to_vec().unwrap();
        assert_eq!(first, [0.0, 1.0, 2.0, 0.0, 3.0, 0.0, 0.0, 4.0]);
        let all = out.sum().backward();
        let sum = |t: Tensor<3>| t.grad(&all).unwrap().sum().into_scalar::<f32>();
        assert_eq!((sum(x), sum(visual)), (12.0, 12.0));
        assert_eq!(places.words(ids()).into_data().to_string().matches('9').count(), 0);
        let labels: Vec<i64> = places.unlabelled(ids()).into_data().iter::<i64>().collect();
        assert_eq!(labels, [1, -100, -100, 2, -100, 3, 4, -100]);
    }

    #[test]
    fn counts_that_differ_are_refused_by_sample() {
        let one_more = Tensor::from_data([[9, 9, 1], [9, 9, 9]], &Device::flex());
        let message = Places::of(&one_more, 9, 2).unwrap_err().to_string();
        assert!(message.contains("sample 1 has 3 words 9 for 2 rows"), "{message}");
    }
}
