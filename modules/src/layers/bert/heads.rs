//! What BERT predicts: hidden words, whether one text follows another.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::size::TextSize;
use crate::init::Init;
use crate::layers::linear::Linear;
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;

/// Scores of all words for each token, with the table of the word embeddings as last matrix.
#[derive(Module, Debug)]
pub struct WordHead {
    /// `[D, D]`.
    pub dense: Linear,
    /// After the activation.
    pub norm: Norm,
    /// Of each word, `[V]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    activation: Activation,
}

impl WordHead {
    /// A head of a size.
    pub fn new(size: &TextSize, activation: Activation, init: &Init) -> Self {
        Self {
            dense: init.linear(size.width, size.width, true, 1.0),
            norm: Norm::layer(size.width, size.eps, init),
            bias: init.constant([size.vocab], 0.0),
            activation,
        }
    }

    /// Tokens `[B, L, D]` and the table of words, `[V, D]`; returns `[B, L, V]`.
    pub fn forward(&self, x: Tensor<3>, table: Tensor<2>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let words = table.dims()[0];
        let x = self.norm.forward(self.activation.apply(self.dense.forward(x)));
        let scores = x.reshape([batch * tokens, width]).matmul(table.transpose());
        (scores + self.bias.val().unsqueeze::<2>()).reshape([batch, tokens, words])
    }
}

/// The first token of each sample, `[B, L, D]` to `[B, D]`.
pub fn first_token(x: Tensor<3>) -> Tensor<2> {
    let [batch, _, width] = x.dims();
    x.slice_dim(1, 0..1).reshape([batch, width])
}
