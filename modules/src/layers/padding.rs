//! Padded batches of texts: positions, and where each row begins.

use burn::tensor::{Int, Tensor};
use schemas::node::NodeError;

/// Refuses words that the embedding table has no row for: the backend would panic on them.
pub fn check_ids(ids: &Tensor<2, Int>, words: usize) -> Result<(), NodeError> {
    let length = ids.dims()[1].max(1);
    let data = ids.clone().inner().to_data().convert::<i64>();
    let wrong = data.iter::<i64>().enumerate().find(|(_, id)| !(0..words as i64).contains(id));
    wrong.map_or(Ok(()), |(place, id)| {
        let (sample, at) = (place / length, place % length);
        Err(NodeError::Data {
            what: "port `ids`".to_owned(),
            reason: format!(
                "word {id} of sample {sample}, place {at}, is beyond a vocabulary of {words}; use \
                 the model's tokenizer, or set `size.vocabulary`"
            ),
        })
    })
}

/// Position of each word of a padded batch: how many ones of the mask come before it.
pub fn positions(mask: &Tensor<2, Int>) -> Vec<Vec<usize>> {
    let count = |row: &[i64]| {
        let mut next = 0;
        let one = |there: &i64| {
            next += usize::from(*there != 0);
            next.saturating_sub(1)
        };
        row.iter().map(one).collect()
    };
    rows(mask).iter().map(|row| count(row)).collect()
}

/// A mask, row by row.
pub(crate) fn rows(mask: &Tensor<2, Int>) -> Vec<Vec<i64>> {
    let data: Vec<i64> = mask.clone().inner().to_data().iter::<i64>().collect();
    data.chunks(mask.dims()[1].max(1)).map(<[i64]>::to_vec).collect()
}

/// First place of each row of a batch that is padded on the left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows(Vec<usize>);

impl Rows {
    /// From the mask of prompts `[rows, tokens]`; without one no row is padded. Prompts longer than
    /// the context are refused, and those that do not end at the right.
    pub fn of(
        mask: Option<&Tensor<2, Int>>,
        [count, tokens]: [usize; 2],
        context: usize,
    ) -> Result<Self, NodeError> {
        let refuse = |reason| NodeError::Data { what: "the prompt".to_owned(), reason };
        let first = match mask {
            None => vec![0; count],
            Some(mask) if mask.dims() != [count, tokens] => {
                let shape = mask.dims();
                let expected = [count, tokens];
                return Err(refuse(format!("a mask of {shape:?} does not fit {expected:?} words")));
            }
            Some(mask) => {
                let first = |(row, mask): (usize, &Vec<i64>)| {
                    let first = mask.iter().position(|there| *there != 0);
                    let whole = first.filter(|first| mask[*first..].iter().all(|one| *one != 0));
                    whole.ok_or_else(|| {
                        refuse(format!("row {row} does not end with words; pad on the left"))
                    })
                };
                rows(mask).iter().enumerate().map(first).collect::<Result<_, _>>()?
            }
        };
        let longest = tokens - first.iter().copied().min().unwrap_or(0);
        if tokens == 0 || longest > context {
            let reason = match tokens {
                0 => "is empty; begin with at least one word".to_owned(),
                _ => format!("has {longest} tokens, more than the context of {context}; cut it"),
            };
            return Err(refuse(reason));
        }
        Ok(Self(first))
    }

    /// Words of each row, when the batch has so many places.
    pub fn lengths(&self, places: usize) -> Vec<usize> {
        self.0.iter().map(|first| places - first).collect()
    }

    /// Position of the word at a place, in each row; one for all where no row is padded.
    pub fn positions(&self, place: usize) -> Vec<Vec<usize>> {
        match self.padded() {
            true => self.0.iter().map(|first| vec![place - first]).collect(),
            false => vec![vec![place]],
        }
    }

    /// The run of places that are words, in each row; none where no row is padded.
    pub fn runs(&self, places: usize) -> Option<Vec<[usize; 2]>> {
        self.padded().then(|| self.0.iter().map(|first| [*first, places]).collect())
    }

    /// The rows of these numbers.
    pub fn select(&mut self, rows: &[usize]) {
        self.0 = rows.iter().map(|row| self.0[*row]).collect();
    }

    fn padded(&self) -> bool {
        self.0.iter().any(|first| *first > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn mask<const N: usize>(rows: [[i64; N]; 2]) -> Tensor<2, Int> {
        Tensor::from_data(rows, &Device::flex())
    }

    #[test]
    fn positions_count_the_ones() {
        let left = positions(&mask([[0, 0, 1, 1], [1, 1, 1, 1]]));
        assert_eq!(left, [[0, 0, 0, 1], [0, 1, 2, 3]]);
        assert_eq!(positions(&mask([[1, 1, 0, 0], [1, 0, 1, 1]])), [[0, 1, 1, 1], [0, 0, 1, 2]]);
    }

    #[test]
    fn prompts_that_do_not_fit_are_refused_with_numbers() {
        let left = mask([[0, 0, 1, 1], [0, 1, 1, 1]]);
        assert_eq!(Rows::of(Some(&left), [2, 4], 3).unwrap(), Rows(vec![2, 1]));
        let message = |result: Result<Rows, NodeError>| result.unwrap_err().to_string();
        let long = message(Rows::of(Some(&left), [2, 4], 2));
        assert!(long.contains("has 3 tokens, more than the context of 2"), "{long}");
        let right = message(Rows::of(Some(&mask([[1, 1], [1, 0]])), [2, 2], 9));
        assert!(right.contains("row 1") && right.contains("pad on the left"), "{right}");
        assert!(message(Rows::of(None, [1, 0], 9)).contains("empty"));
    }
}
