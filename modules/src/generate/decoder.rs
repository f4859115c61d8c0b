//! What a network needs to write: scores of the next word, and a memory of what it has read.

use burn::tensor::{Device, Int, Tensor, TensorData};
use schemas::node::NodeError;

/// What a text begins with.
#[derive(Debug, Clone)]
pub enum Input {
    /// Words, `[B, L]`.
    Ids(Tensor<2, Int>),
    /// What enters the first block, `[B, L, D]`, for example with rows of another network in it.
    Embeddings(Tensor<3>),
}

/// The beginnings of a batch of texts.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// What was written so far.
    pub input: Input,
    /// 1 = word, 0 = padding on the left, `[B, L]`; all are words when absent.
    pub mask: Option<Tensor<2, Int>>,
}

impl Prompt {
    /// Texts of different lengths, padded on the left with word 0, which nobody sees.
    pub fn of_words(texts: &[Vec<i64>], device: &Device) -> Self {
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        let row = |text: &Vec<i64>, of: fn(i64) -> i64| {
            let padding = std::iter::repeat_n(0, longest - text.len());
            padding.chain(text.iter().map(|word| of(*word))).collect::<Vec<_>>()
        };
        let batch = |of: fn(i64) -> i64| {
            let values: Vec<i64> = texts.iter().flat_map(|text| row(text, of)).collect();
            Tensor::from_data(TensorData::new(values, [texts.len(), longest]), device)
        };
        let ragged = texts.iter().any(|text| text.len() < longest);
        Self { input: Input::Ids(batch(|word| word)), mask: ragged.then(|| batch(|_| 1)) }
    }

    /// Texts, and places of the longest one.
    pub fn dims(&self) -> [usize; 2] {
        match &self.input {
            Input::Ids(ids) => ids.dims(),
            Input::Embeddings(x) => [x.dims()[0], x.dims()[1]],
        }
    }
}

/// A network that tells the next word. It is called without autodiff.
pub trait Decoder {
    /// What it keeps of the words that it has read, for each row of a batch.
    type Cache;

    /// Longest text, in tokens.
    fn context(&self) -> usize;

    /// Reads the beginnings; returns the memory and the scores of each next word, `[B, V]`.
    fn prefill(&self, prompt: &Prompt) -> Result<(Self::Cache, Tensor<2>), NodeError>;

    /// Reads one more word in each row; returns the scores of each next word, `[rows, V]`.
    fn step(&self, ids: &[i64], cache: &mut Self::Cache) -> Result<Tensor<2>, NodeError>;

    /// Goes on with the rows of these numbers, in this order; a row may come several times.
    fn select(&self, cache: &mut Self::Cache, rows: &[usize]);
}
