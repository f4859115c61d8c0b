//! Cross entropy of word scores at the tokens that have a label.

use std::collections::BTreeMap;

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use schemas::node::NodeError;

use crate::losses::cross_entropy::{CrossEntropy, accuracy};

/// The label of a token that does not count.
pub const IGNORED: i64 = -100;

/// Tokens that have a label.
#[derive(Debug, Clone)]
pub struct Labelled {
    places: Vec<i64>,
    labels: Vec<i64>,
    device: Device,
}

/// What the scores are worth.
#[derive(Debug, Clone)]
pub struct Scored {
    /// Mean cross entropy, `[1]`, in nats.
    pub loss: Tensor<1>,
    /// Share of tokens whose largest score is the label, `[1]`.
    pub accuracy: Tensor<1>,
    /// Share of texts with labels, all of whose tokens are right, `[1]`: what greedy writing gets right.
    pub exact: Tensor<1>,
}

impl Labelled {
    /// Tokens of `[B, L]` labels that are not ignored; refuses those that are no word of `words`.
    pub fn find(labels: &Tensor<2, Int>, words: usize) -> Result<Self, NodeError> {
        let [_, length] = labels.dims();
        let data = labels.to_data().convert::<i64>();
        let (mut places, mut held) = (Vec::new(), Vec::new());
        for (place, label) in data.iter::<i64>().enumerate() {
            if label == IGNORED {
                continue;
            }
            if label < 0 || label >= words as i64 {
                let (sample, token) = (place / length.max(1), place % length.max(1));
                let what = "port `labels`".to_owned();
                let reason = format!(
                    "sample {sample}, token {token} is {label}, no word of {words}; write {IGNORED} \
                     where no word is to be told"
                );
                return Err(NodeError::Data { what, reason });
            }
            places.push(place as i64);
            held.push(label);
        }
        Ok(Self { places, labels: held, device: labels.device() })
    }

    /// The same labels, told by the token before them; `length` is that of a text.
    pub fn shifted(mut self, length: usize) -> Self {
        let pairs = self.places.into_iter().zip(self.labels);
        let later = pairs.filter(|(place, _)| place % length as i64 != 0);
        (self.places, self.labels) = later.map(|(place, label)| (place - 1, label)).unzip();
        self
    }

    /// Scores `[B, L, V]` at these tokens. With smoothing s the target is `1 - s` on the label plus
    /// `s / V` on every word. Without any token the loss is 0.
    pub fn score(&self, logits: Tensor<3>, smoothing: f64) -> Scored {
        let [batch, length, words] = logits.dims();
        let count = self.places.len();
        if count == 0 {
            let zero =
                logits.slice_dim(0, 0..batch.min(1)).sum().mul_scalar(0.0).cast(FloatDType::F32);
            return Scored { loss: zero.clone(), accuracy: zero.clone(), exact: zero };
        }
        let ints = |values: &[i64], shape: [usize; 1]| {
            Tensor::<1, Int>::from_data(TensorData::new(values.to_vec(), shape), &self.device)
        };
        let labels = ints(&self.labels, [count]);
        // Only scores that count are normalised: they are few, and V is large.
        let rows = logits.reshape([batch * length, words]);
        let rows = rows.select(0, ints(&self.places, [count])).cast(FloatDType::F32);
        let right = rows.clone().inner().argmax(1).reshape([count]).equal(labels.clone().inner());
        let exact = self.exact(&right.into_data().iter::<bool>().collect::<Vec<_>>(), length);
        let accuracy = accuracy(rows.clone(), labels.clone());
        let loss = CrossEntropy::new(smoothing).forward(rows, labels);
        Scored { loss, accuracy, exact }
    }

    /// Share of texts of `length` tokens whose labels are all right.
    fn exact(&self, right: &[bool], length: usize) -> Tensor<1> {
        let mut texts: BTreeMap<i64, bool> = BTreeMap::new();
        for (place, right) in self.places.iter().zip(right) {
            *texts.entry(place / length as i64).or_insert(true) &= right;
        }
        let all = texts.values().filter(|right| **right).count();
        Tensor::from_floats([all as f32 / texts.len() as f32], &self.device)
    }
}
