//! ModernBERT: words, layers and heads.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use schemas::node::NodeError;

use super::Stack;
use crate::init::Init;
use crate::layers::block::Block;
use crate::layers::linear::Linear;
use crate::layers::mlp::Activation;
use crate::layers::norm::Norm;

/// Scores of all words, with the table of the word embeddings as last matrix.
#[derive(Module, Debug)]
pub struct WordHead {
    /// `[D, D]`.
    pub dense: Linear,
    /// After the activation.
    pub norm: Norm,
    /// Of each word, `[V]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl WordHead {
    fn new(stack: &Stack, vocab: usize, init: &Init) -> Self {
        Self {
            dense: init.linear(stack.width, stack.width, stack.biases.head, 1.0),
            norm: Norm::new(stack.norm(), stack.width, init),
            bias: stack.biases.words.then(|| init.constant([vocab], 0.0)),
        }
    }

    /// `[B, L, D]`; what meets the table of words.
    pub fn features(&self, x: Tensor<3>) -> Tensor<3> {
        self.norm.forward(Activation::Gelu.apply(self.dense.forward(x)))
    }
}

/// Embeddings of words.
#[derive(Module, Debug)]
pub struct Words {
    /// `[V, D]`.
    pub table: Param<Tensor<2>>,
    /// Of the rows.
    pub norm: Norm,
}

/// The network, or a run of its layers.
#[derive(Module, Debug)]
pub struct ModernBert {
    /// Where the network begins.
    pub words: Option<Words>,
    /// The layers.
    pub blocks: Vec<Block>,
    /// After the last layer.
    pub norm: Option<Norm>,
    /// Head of words.
    pub mlm: Option<WordHead>,
    /// What the layers are.
    #[module(skip)]
    pub stack: Stack,
}

/// Which parts a network has beside its layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Words that it begins with.
    pub vocab: Option<usize>,
    /// Whether there is a norm after the last layer.
    pub norm: bool,
    /// Whether there is a head of words.
    pub mlm: bool,
}

impl ModernBert {
    /// Draws the parameters.
    pub fn new(stack: Stack, parts: Parts, init: &Init) -> Self {
        let norm = || Norm::new(stack.norm(), stack.width, init);
        let words = |vocab| Words { table: init.normal([vocab, stack.width], 0.02), norm: norm() };
        let head = |vocab| WordHead::new(&stack, vocab, init);
        Self {
            words: parts.vocab.map(words),
            blocks: stack.blocks(init),
            norm: parts.norm.then(norm),
            mlm: parts.vocab.filter(|_| parts.mlm).map(head),
            stack,
        }
    }

    /// Rows of words `[B, L]`, before their norm; refuses numbers that name none.
    pub fn rows(&self, ids: Tensor<2, Int>) -> Result<Tensor<3>, NodeError> {
        let words = self.words.as_ref().ok_or(NodeError::MissingInput { port: "hidden".into() })?;
        let table = words.table.val();
        let ([batch, length], [all, width]) = (ids.dims(), table.dims());
        let held = ids.clone().inner().to_data().convert::<i64>();
        let wrong = held.iter::<i64>().enumerate().find(|(_, id)| !(0..all as i64).contains(id));
        if let Some((place, id)) = wrong {
            let (sample, token) = (place / length.max(1), place % length.max(1));
            let reason = format!(
                "sample {sample}, token {token} is {id}, but there are {all} words; use the \
                 vocabulary of this network"
            );
            return Err(NodeError::Data { what: "port `ids`".to_owned(), reason });
        }
        let rows = table.select(0, ids.reshape([batch * length]));
        Ok(rows.reshape([batch, length, width]))
    }

    /// What enters the first layer, from rows `[B, L, D]`.
    pub fn enter(&self, rows: Tensor<3>) -> Tensor<3> {
        match &self.words {
            Some(words) => words.norm.forward(rows),
            None => rows,
        }
    }

    /// What leaves the last layer, from its residual stream `[B, L, D]`.
    pub fn leave(&self, x: Tensor<3>) -> Tensor<3> {
        match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        }
    }

    /// Scores of all words, `[B, L, V]`.
    pub fn scores(&self, x: Tensor<3>) -> Option<Tensor<3>> {
        let (words, head) = (self.words.as_ref()?, self.mlm.as_ref()?);
        let [batch, length, width] = x.dims();
        let x = head.features(x).reshape([batch * length, width]);
        let scores = x.matmul(words.table.val().transpose());
        let scores = match &head.bias {
            Some(bias) => scores + bias.val().unsqueeze::<2>(),
            None => scores,
        };
        let all = scores.dims()[1];
        Some(scores.reshape([batch, length, all]))
    }
}
